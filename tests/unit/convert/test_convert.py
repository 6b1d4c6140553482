"""Import and export end to end, through the command line's `main`.

tests/integration/test_docs.py runs it as a process, on the page docs/conversion.md.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from ba_jax.checkpoints import arrays as checkpoint
from ba_jax.convert import importer, sources
from ba_jax.convert.__main__ import main
from ba_jax.convert.engine import TensorInfo
from ba_jax.convert.names import RenamedSource
from ba_jax.convert.safetensors_io import SafetensorsFolder, make_header, write_file
from ba_jax.convert.torch_pickle import load_state_dict
from ba_jax.tree import flatten
from tests.unit.convert.helpers import TINY, run, user_error

JSON_AND_SHARDS = (
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "vocoder_config.json",
)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def assert_same_files(a, b, names):
    for name in names:
        assert sha256(Path(a) / name) == sha256(Path(b) / name), name


def assert_same_pickles(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def copy_of_tiny(folder, without=()):
    """Copy the golden checkpoint to a writable folder."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("golden.npz", *without))
    os.chmod(folder, 0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def rewrite(folder, change, shard="model-00001-of-00002.safetensors"):
    """Rewrite a shard after `change(arrays)`, and the index to match."""
    opened = SafetensorsFolder(folder)
    file = opened.files[shard]
    arrays = {name: file.read(name) for name in file.tensors}
    change(arrays)
    infos = {name: TensorInfo(a.shape, a.dtype) for name, a in arrays.items()}
    (folder / shard).unlink()
    header = make_header(infos, file.metadata)
    write_file(folder / shard, header, infos, lambda name: [arrays[name]])
    index = json.loads(opened.index)
    kept = {n: f for n, f in index["weight_map"].items() if f != shard or n in arrays}
    index["weight_map"] = dict(sorted((kept | dict.fromkeys(arrays, shard)).items()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def voice(tmp_path):
    """Folder with the vocoder alone."""
    folder = tmp_path / "voice"
    folder.mkdir()
    shutil.copyfile(TINY / "hift.pt", folder / "hift.pt")
    return folder


def test_import_then_export_is_bit_identical(imported, tmp_path):
    assert run("export", "--checkpoint", imported, "--out", tmp_path / "again") == 0
    assert_same_files(TINY, tmp_path / "again", JSON_AND_SHARDS)
    assert_same_pickles(TINY / "hift.pt", tmp_path / "again" / "hift.pt")
    assert len(list((tmp_path / "again").iterdir())) == len(JSON_AND_SHARDS) + 1


def test_files_of_an_import(imported):
    names = {path.name for path in imported.iterdir()}
    expected = {"weights", "source", "config.json", "vocoder_config.json", "report.md"}
    assert names == expected | {"report.json"}
    report = json.loads((imported / "report.json").read_text())
    assert report["kind"] == "baichuan" and report["left_out"] == {}
    assert report["total"]["tensors"] == 390 + 328
    _, config = sources.checkpoint_config(imported)
    assert set(report["components"]) == set(config.components)
    assert report["components"]["llm"]["dtypes"] == ["bfloat16"]
    assert report["components"]["vocoder"]["dtypes"] == ["float32"]
    assert report["peak_rss_bytes"] > 50 << 20
    assert (
        "| vq_bridge | 31 | 53,536 | 39,064 | 185,200 | bfloat16 |"
        in (imported / "report.md").read_text()
    )


def test_values_land_where_they_belong(imported):
    reference = SafetensorsFolder(TINY)
    variables = checkpoint.load_variables(imported, components=["llm", "vq_bridge"])
    packed = reference.read("model.layers.1.self_attn.W_pack.weight").astype(np.float32)
    _, config = sources.checkpoint_config(imported)
    rows = config.llm.heads * config.llm.head_dim
    query = variables["params"]["llm"]["layers"]["query"]["kernel"]
    np.testing.assert_array_equal(np.asarray(query[1], np.float32), packed[:rows].T)
    name = "audio_tokenizer.audio_bridge_model.vq_list.2.codebook.embed"
    codebook = variables["codebook"]["vq_bridge"]["embed_2"]
    np.testing.assert_array_equal(
        np.asarray(codebook, np.float32), reference.read(name).astype(np.float32)
    )


def test_import_with_dtype_and_its_export(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("--source", TINY, "--out", out, "--dtype", "float32") == 0
    reader = checkpoint.Reader(out)
    assert reader.dtype("params/llm/embedding") == np.float32
    assert reader.dtype("codebook/vq_bridge/embed_0").name == "bfloat16"
    # bfloat16 -> float32 -> bfloat16 loses nothing.
    assert run("export", "--checkpoint", out, "--out", again, "--dtype", "bfloat16") == 0
    assert_same_files(TINY, again, [n for n in JSON_AND_SHARDS if n.startswith("model")])

    shutil.rmtree(again)
    assert run("export", "--checkpoint", out, "--out", again) == 0
    got, expected = SafetensorsFolder(again), SafetensorsFolder(TINY)
    assert got.tensors.keys() == expected.tensors.keys()
    name = "audio_head.heads.0.weight"
    assert got.tensors[name].dtype == np.float32
    np.testing.assert_array_equal(got.read(name), expected.read(name).astype(np.float32))
    index = json.loads(got.index)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in got.tensors.values())


def test_model_without_recorded_layout_is_sharded(imported, tmp_path, capsys):
    scratch, again = tmp_path / "scratch", tmp_path / "again"
    shutil.copytree(imported, scratch)
    shutil.rmtree(scratch / "source")
    limit = ("--max-shard-bytes", 1_500_000, "--vocoder-format", "safetensors")
    assert run("export", "--checkpoint", scratch, "--out", again, *limit) == 0
    opened, reference = SafetensorsFolder(again), SafetensorsFolder(TINY)
    assert len(opened.files) == 4
    assert opened.tensors == dict(reference.tensors)
    for name in reference.tensors:
        assert opened.read(name).tobytes() == reference.read(name).tobytes(), name
    transformed = safetensors.numpy.load_file(again / "hift.safetensors")
    arrays, _ = load_state_dict(TINY / "hift.pt")
    assert transformed.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(transformed[name], array)
    # A flow that the release's code would misread is exported with a note.
    assert "residual_std" not in capsys.readouterr().out
    values = json.loads((scratch / "config.json").read_text())
    values["flow_matching_config"]["cfm_params"]["residual_std"] = 0.7
    (scratch / "config.json").write_text(json.dumps(values))
    assert run("export", "--checkpoint", scratch, "--out", tmp_path / "other", *limit) == 0
    assert "residual_std = 0.7: the release's code does not know it" in capsys.readouterr().out


def test_vision_is_left_out_and_restored_from_the_base(tmp_path):
    source = copy_of_tiny(tmp_path / "source", without=["hift.pt", "vocoder_config.json"])
    vision = np.random.default_rng(0).standard_normal((300, 7)).astype(np.float16)

    def add(arrays):
        arrays["model.visual_model.patch.weight"] = vision
        arrays["model.visual_bridge_model.bias"] = vision[0]

    rewrite(source, add)
    out = tmp_path / "out"
    assert run("--source", source, "--out", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["left_out"] == {
        "model.visual_model.": {"tensors": 1, "bytes": 4200},
        "model.visual_bridge_model.": {"tensors": 1, "bytes": 14},
    }
    assert not (out / "vocoder_config.json").exists()
    names = [n for n in JSON_AND_SHARDS if n != "vocoder_config.json"]
    assert run("export", "--checkpoint", out, "--out", tmp_path / "with", "--base", source) == 0
    assert_same_files(source, tmp_path / "with", names)

    assert run("export", "--checkpoint", out, "--out", tmp_path / "bare") == 0
    bare = SafetensorsFolder(tmp_path / "bare")
    assert bare.tensors.keys() == SafetensorsFolder(TINY).tensors.keys()
    assert_same_files(source, tmp_path / "bare", ["model-00002-of-00002.safetensors"])

    other = copy_of_tiny(tmp_path / "other")
    assert run("export", "--checkpoint", out, "--out", tmp_path / "x", "--base", other) == 2


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("exprot", "; did you mean export?"),
        ("jion", "; did you mean join?"),
        ("tests/data/tiny", ""),
    ],
)
def test_unknown_command(capsys, command, hint):
    message = user_error(capsys, command, "--checkpoint", "x", "--out", "y")
    listing = "one of ('import', 'join', 'export', 'verify')"
    assert message == f"ba_jax.convert: command {command!r}, expected {listing}{hint}\n"


def test_verify_of_what_is_missing(capsys, tmp_path):
    assert main(["verify", "--checkpoint", "x", "--golden", str(tmp_path / "x.npz")]) == 2
    assert capsys.readouterr().err.startswith(f"ba_jax.convert: {tmp_path / 'x.npz'}: no such file")


def test_both_weight_norm_namings_give_the_same_checkpoint(voice, tmp_path, imported):
    arrays, _ = load_state_dict(voice / "hift.pt")
    newer = {}
    for name, array in arrays.items():
        name = name.replace("weight_g", "parametrizations.weight.original0")
        name = "generator." + name.replace("weight_v", "parametrizations.weight.original1")
        newer[name] = array
    torch.save({n: torch.from_numpy(a) for n, a in newer.items()}, tmp_path / "newer.pt")
    safetensors.numpy.save_file(newer, tmp_path / "newer.safetensors")
    expected = flatten(checkpoint.load_variables(imported, components=["vocoder"]))
    for file in (voice / "hift.pt", tmp_path / "newer.pt", tmp_path / "newer.safetensors"):
        out, again = tmp_path / f"out-{file.name}", tmp_path / f"again-{file.name}"
        assert run("--source", file, "--out", out) == 0
        assert json.loads((out / "report.json").read_text())["kind"] == "vocoder"
        got = flatten(checkpoint.load_variables(out))
        assert got.keys() == expected.keys()
        assert all(np.array_equal(got[path], expected[path]) for path in got)
        assert run("export", "--checkpoint", out, "--out", again) == 0
        if file.suffix == ".pt":
            assert_same_pickles(file, again / file.name)
        else:
            assert_same_files(file.parent, again, [file.name])


def test_vocoder_from_another_folder(tmp_path):
    source = copy_of_tiny(tmp_path / "source", without=["hift.pt", "vocoder_config.json"])
    out = tmp_path / "out"
    assert run("--source", source, "--out", out, "--vocoder", TINY / "hift.pt") == 0
    assert "vocoder" in json.loads((out / "report.json").read_text())["components"]
    assert run("export", "--checkpoint", out, "--out", tmp_path / "again") == 0
    assert_same_pickles(TINY / "hift.pt", tmp_path / "again" / "hift.pt")


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2_folder_into_the_llm_alone(tmp_path, tied):
    config = transformers.Qwen2Config(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        use_sliding_window=False,
    )
    model = transformers.Qwen2ForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "qwen")
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("--source", tmp_path / "qwen", "--out", out) == 0
    variables = checkpoint.load_variables(out)
    assert list(variables) == ["params"] and list(variables["params"]) == ["llm"]
    assert ("lm_head" in variables["params"]["llm"]) != tied
    up = model.model.layers[2].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(
        np.asarray(variables["params"]["llm"]["layers"]["up"]["kernel"][2], np.float32), up.T
    )
    assert run("export", "--checkpoint", out, "--out", again) == 0
    assert_same_files(tmp_path / "qwen", again, ["model.safetensors", "config.json"])


def test_whisper_folder_into_the_encoder_alone(tmp_path):
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=20,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "whisper")
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("--source", tmp_path / "whisper", "--out", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert list(report["components"]) == ["audio_encoder"]
    assert list(report["left_out"]) == ["model.decoder."]
    base = ("--base", tmp_path / "whisper")
    assert run("export", "--checkpoint", out, "--out", again, *base) == 0
    assert_same_files(tmp_path / "whisper", again, ["model.safetensors", "config.json"])


def test_faulty_tensors_are_named_and_nothing_is_written(tmp_path, capsys):
    source, out = copy_of_tiny(tmp_path / "source"), tmp_path / "out"

    def damage(arrays):
        del arrays["audio_head.headnorm.weight"]
        arrays["audio_head.heads.0.bias"] = arrays["audio_head.heads.0.bias"][1:]
        arrays["audio_head.heads.1.bias"] = np.zeros(33, np.int32)
        arrays["model.extra"] = np.zeros(2, np.float32)

    rewrite(source, damage)
    message = user_error(capsys, "--source", source, "--out", out)
    assert f"{source}: 4 problems" in message
    assert "missing tensor audio_head.headnorm.weight (128,)" in message
    assert "misshapen tensor audio_head.heads.0.bias: expected (65,), got (64,)" in message
    assert "wrong dtype of audio_head.heads.1.bias" in message and "got int32" in message
    assert "unknown tensor model.extra (2,)" in message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_planted_vocoder_is_refused(tmp_path, capsys):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "planted"),))

    torch.save({"conv_pre.bias": Planted()}, tmp_path / "hift.pt")
    message = user_error(capsys, "--source", tmp_path / "hift.pt", "--out", tmp_path / "out")
    assert str(tmp_path / "hift.pt") in message and "refused" in message
    assert not (tmp_path / "planted").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", b"{", "config.json: config is not valid JSON"),
        ("config.json", b'{"model_type": "gpt2"}', "model_type is 'gpt2', expected one of omni"),
        ("model.safetensors.index.json", None, "no model.safetensors.index.json"),
        ("model-00002-of-00002.safetensors", None, "missing shard model-00002-of-00002"),
        ("model-00002-of-00002.safetensors", b"x" * 9, "header length"),
        (
            "vocoder_config.json",
            b'{"base_channels": "32", "f0_channels": 16}',
            "base_channels = '32'",
        ),
        ("vocoder_config.json", b'{"base_channels": 33, "f0_channels": 16}', "vocoder_config.json"),
        (
            "vocoder_config.json",
            b'{"base_channels": 32, "f0_channels": 16, "hop": 0}',
            "hop 0: expected >= 1",
        ),
        (
            "vocoder_config.json",
            b'{"base_channels": 32, "f0_channels": 16, "noise_std": NaN}',
            "noise_std = nan: expected a number",
        ),
        ("hift.pt", b"PK\x03\x04 not a zip", "hift.pt: 14 bytes, truncated"),
    ],
)
def test_damaged_folders(tmp_path, capsys, name, data, word):
    source, out = copy_of_tiny(tmp_path / "source"), tmp_path / "out"
    (source / name).unlink()
    if data is not None:
        (source / name).write_bytes(data)
    started = time.process_time()
    kind = ("--kind", "baichuan") if name == "config.json" and data is None else ()
    message = user_error(capsys, "--source", source, "--out", out, *kind)
    assert time.process_time() - started < 2
    assert word in message and str(source) in message
    assert not out.exists()


def test_vocoder_sizes_that_contradict_its_config(voice, tmp_path, capsys):
    (voice / "vocoder_config.json").write_text('{"base_channels": 64, "f0_channels": 16}')
    message = user_error(capsys, "--source", voice, "--out", tmp_path / "out")
    assert "misshapen tensor conv_pre.weight_v: expected (64, 80, 7), got (32, 80, 7)" in message


def test_out_is_overwritten_only_on_request(voice, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    message = user_error(capsys, "--source", voice, "--out", out)
    assert f"{out}: is not empty; --overwrite replaces it" in message
    assert (out / "precious").read_text() == "mine"
    assert run("--source", voice, "--out", out, "--overwrite") == 0
    assert (out / "weights").is_dir() and not (out / "precious").exists()
    # Never over the source or a folder that holds it.
    for target in (voice, tmp_path):
        message = user_error(capsys, "--source", voice, "--out", target, "--overwrite")
        assert "holds the source" in message
    message = user_error(capsys, "export", "--checkpoint", out, "--out", out, "--overwrite")
    assert "which is read" in message
    assert (voice / "hift.pt").is_file() and (out / "weights").is_dir()


def test_failed_import_writes_nothing(voice, tmp_path, monkeypatch):
    real, calls = RenamedSource.read, []

    def read(self, name, start=0, stop=None):
        calls.append(name)
        if len(calls) > 100:
            raise OSError("the disk broke")
        return real(self, name, start, stop)

    monkeypatch.setattr(RenamedSource, "read", read)
    with pytest.raises(OSError, match="the disk broke"):
        importer.import_checkpoint(voice, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]


def test_interrupted_import_writes_nothing(voice, tmp_path, monkeypatch, capsys):
    real, calls = RenamedSource.read, []

    def read(self, *arguments):
        calls.append(arguments)
        if len(calls) == 101:
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) > 101:
            time.sleep(0.5)
        return real(self, *arguments)

    monkeypatch.setattr(RenamedSource, "read", read)
    assert run("--source", voice, "--out", tmp_path / "out") == 130
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]


def test_killed_import_writes_no_checkpoint(voice, tmp_path):
    # The signal arrives while the 101st tensor is read.
    script = (
        "import os, sys\n"
        "from ba_jax.convert.names import RenamedSource\n"
        "from ba_jax.convert.__main__ import main\n"
        "real, calls = RenamedSource.read, []\n"
        "def read(self, *arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 101:\n"
        f"        os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return real(self, *arguments)\n"
        "RenamedSource.read = read\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["--source", str(voice), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    # The partial folder remains under a name that is never read.
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[0].startswith(".out.partial-")
    assert run("--source", voice, "--out", tmp_path / "out") == 0


def test_export_of_a_damaged_checkpoint(voice, tmp_path, capsys):
    message = user_error(capsys, "export", "--checkpoint", tmp_path / "no", "--out", tmp_path / "x")
    assert f"{tmp_path / 'no'}: no such folder" in message
    assert run("--source", voice, "--out", tmp_path / "out") == 0
    shutil.rmtree(tmp_path / "out" / "weights" / "params.vocoder.conv_pre.bias")
    message = user_error(
        capsys, "export", "--checkpoint", tmp_path / "out", "--out", tmp_path / "x"
    )
    assert "array params/vocoder/conv_pre/bias cannot be opened" in message
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_that_contradicts_its_config_is_refused(tmp_path, capsys):
    assert run("--source", TINY, "--out", tmp_path / "in") == 0
    config = tmp_path / "in" / "config.json"
    values = json.loads(config.read_text())
    values["intermediate_size"] += 8
    config.write_text(json.dumps(values))
    capsys.readouterr()
    message = user_error(
        capsys, "export", "--checkpoint", tmp_path / "in", "--out", tmp_path / "out"
    )
    assert "misshapen params/llm/layers/gate/kernel" in message
    assert "expected (2, 128, 200), got (2, 128, 192)" in message
    assert not (tmp_path / "out").exists()
