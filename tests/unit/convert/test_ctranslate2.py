"""CTranslate2 models: a small file, read back and damaged."""

import struct

import numpy as np
import pytest

from ba_jax.checkpoints import arrays
from ba_jax.convert.__main__ import main
from ba_jax.convert.ctranslate2 import CTranslate2File, read_whisper_config
from ba_jax.convert.engine import ConversionError
from ba_jax.convert.safetensors_io import SafetensorsFolder
from tests.unit.convert.helpers import assert_refused

RNG = np.random.default_rng(0)
KINDS = {np.dtype(t): i for i, t in enumerate(("f4", "i1", "i2", "i4", "f2"))}
VARIABLES = {
    "encoder/conv1/weight": RNG.standard_normal((8, 5, 3)).astype(np.float16),
    "encoder/num_heads": np.int16(2),
    "encoder/pre_norm": np.int8(1),
    "encoder/layer_0/ffn/linear_0/weight": RNG.standard_normal((16, 8)).astype(np.float16),
    "encoder/layer_1/ffn/linear_0/weight": RNG.standard_normal((16, 8)).astype(np.float32),
    "encoder/position_encodings/encodings": RNG.standard_normal((11, 8)).astype(np.float16),
}


def name_bytes(name):
    data = name.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def model_bytes(variables=VARIABLES, version=6, spec="WhisperSpec", aliases=()):
    data = struct.pack("<I", version) + name_bytes(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        value = np.asarray(value)
        data += name_bytes(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", KINDS[value.dtype], value.nbytes) + value.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(name_bytes(a) + name_bytes(b) for a, b in aliases)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_bytes(aliases=[("proj", "embed")]))
    return tmp_path / "model.bin"


def refused(path, *words):
    assert_refused(lambda: CTranslate2File(path), path, *words)


def test_reads_weights_and_scalars(path):
    model = CTranslate2File(path)
    assert model.spec == "WhisperSpec" and model.aliases == {"proj": "embed"}
    assert model.scalars == {"encoder/num_heads": 2, "encoder/pre_norm": 1}
    weights = {name: value for name, value in VARIABLES.items() if np.ndim(value)}
    assert list(model.tensors) == list(weights)
    for name, value in weights.items():
        assert model.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(model.read(name), value)
        np.testing.assert_array_equal(model.read(name, 2, 5), value[2:5])


def test_sizes_of_the_encoder(path):
    assert read_whisper_config(CTranslate2File(path)) == {
        "model_type": "whisper",
        "d_model": 8,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_mel_bins": 5,
        "max_source_positions": 11,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"encoder/num_heads": None}, "encoder/num_heads is None"),
        ({"encoder/conv1/weight": None}, "encoder/conv1/weight: expected rank 3, got none"),
        ({"encoder/conv1/weight": np.zeros((2, 2), "f4")}, "expected rank 3, got (2, 2)"),
    ],
)
def test_sizes_that_cannot_be_read(path, changes, word):
    variables = {n: v for n, v in {**VARIABLES, **changes}.items() if v is not None}
    path.write_bytes(model_bytes(variables))
    with pytest.raises(ConversionError) as caught:
        read_whisper_config(CTranslate2File(path))
    assert word in str(caught.value)


def test_other_models(path):
    path.write_bytes(model_bytes(spec="TransformerSpec"))
    with pytest.raises(ConversionError, match="spec 'TransformerSpec', expected WhisperSpec"):
        read_whisper_config(CTranslate2File(path))


def test_truncated_files(path):
    data = path.read_bytes()
    for size in (0, 3, 10, 30, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, "cut short", f"{size} bytes")


def test_damaged_headers(path):
    path.write_bytes(model_bytes(version=70000))
    refused(path, "binary version 70000, expected 4 to 6")
    good = model_bytes()
    at = good.index(b"encoder/conv1/weight\0") + len("encoder/conv1/weight") + 1
    path.write_bytes(good[: at + 1] + struct.pack("<I", 9) + good[at + 5 :])
    refused(path, "encoder/conv1/weight has 240 bytes, expected 270")
    path.write_bytes(good[: at + 13] + b"\x09" + good[at + 14 :])
    refused(path, "encoder/conv1/weight has dtype 9")
    path.write_bytes(good[:19] + struct.pack("<I", 1 << 31) + good[23:])
    refused(path)


def whisper(width=8, layers=2, ffn=16, mels=5, positions=11):
    """Draw all variables of a small Whisper's encoder, and one of its decoder."""

    def draw(*shape):
        return RNG.standard_normal(shape).astype(np.float16)

    variables = {
        "encoder/num_heads": np.int16(2),
        "encoder/conv1/weight": draw(width, mels, 3),
        "encoder/conv1/bias": draw(width),
        "encoder/conv2/weight": draw(width, width, 3),
        "encoder/conv2/bias": draw(width),
        "encoder/position_encodings/encodings": draw(positions, width),
        "encoder/layer_norm/gamma": draw(width),
        "encoder/layer_norm/beta": draw(width),
        "decoder/embeddings/weight": draw(20, width),
    }
    for i in range(layers):
        layer = f"encoder/layer_{i}"
        for block in ("self_attention", "ffn"):
            variables[f"{layer}/{block}/layer_norm/gamma"] = draw(width)
            variables[f"{layer}/{block}/layer_norm/beta"] = draw(width)
        for name, rows, columns in (
            ("self_attention/linear_0", 3 * width, width),
            ("self_attention/linear_1", width, width),
            ("ffn/linear_0", ffn, width),
            ("ffn/linear_1", width, ffn),
        ):
            variables[f"{layer}/{name}/weight"] = draw(rows, columns)
            variables[f"{layer}/{name}/bias"] = draw(rows)
        variables[f"{layer}/self_attention/linear_0/bias"][width : 2 * width] = 0
    return variables


def test_import_into_the_encoder_and_export_as_whisper(path, tmp_path):
    variables = whisper()
    path.write_bytes(model_bytes(variables))
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["--source", str(tmp_path), "--out", str(out), "--quiet"]) == 0
    layers = arrays.load_variables(out)["params"]["audio_encoder"]["layers"]
    fused = variables["encoder/layer_1/self_attention/linear_0/weight"]
    for i, name in enumerate(("query", "key", "value")):
        part = fused[8 * i : 8 * (i + 1)]
        np.testing.assert_array_equal(np.asarray(layers[name]["kernel"][1]), part.T)
    assert "bias" not in layers["key"]

    # A CTranslate2 model is imported only; the encoder comes out under the names of transformers.
    assert main(["export", "--checkpoint", str(out), "--out", str(again), "--quiet"]) == 0
    exported = SafetensorsFolder(again)
    for i, short in enumerate("qkv"):
        got = exported.read(f"model.encoder.layers.1.self_attn.{short}_proj.weight")
        np.testing.assert_array_equal(got, fused[8 * i : 8 * (i + 1)])


def test_bias_of_keys_must_be_zero(path, tmp_path, capsys):
    variables = whisper()
    variables["encoder/layer_1/self_attention/linear_0/bias"][9] = 0.5
    path.write_bytes(model_bytes(variables))
    assert main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert f"{path}: encoder/layer_1/self_attention/linear_0/bias[8:16] is not zero" in message
    assert not (tmp_path / "out").exists()
