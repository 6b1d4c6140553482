"""Config files of the release, read and written."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ba_jax.checkpoints import arrays, layout
from ba_jax.config import from_mapping
from ba_jax.convert import engine, hf_config, tables
from ba_jax.convert.engine import ConversionError
from ba_jax.convert.export import export_checkpoint
from ba_jax.convert.importer import import_checkpoint
from ba_jax.convert.sources import checkpoint_config
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from configs.models import SIZES, get_config
from tests.unit.checkpoints.small_checkpoint import save_variables

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny"


def tiny_values() -> dict:
    return json.loads((TINY / "config.json").read_text())


def test_the_golden_config_is_configs_models_tiny():
    config = hf_config.parse_baichuan_config(tiny_values())
    ours = from_mapping(BaichuanAudioConfig, get_config("tiny"))
    assert dataclasses.replace(ours, vocoder=None) == config


# Not nano_whisper: its decoder is narrower than its encoder.
@pytest.mark.parametrize("size", sorted(set(SIZES) - {"nano_whisper"}))
def test_every_size_can_be_written_as_config_json(size):
    config = from_mapping(BaichuanAudioConfig, get_config(size))
    values = json.loads(json.dumps(hf_config.format_baichuan_config(config)))
    assert hf_config.parse_baichuan_config(values) == dataclasses.replace(config, vocoder=None)


def test_models_that_config_json_cannot_describe():
    with pytest.raises(ConversionError, match="vq_bridge|audio_decoder"):
        config = from_mapping(BaichuanAudioConfig, get_config("nano_whisper"))
        hf_config.format_baichuan_config(config)
    config = from_mapping(BaichuanAudioConfig, get_config("tiny"))
    chunk = dataclasses.replace(config.flow_unet, chunk=50)
    with pytest.raises(ConversionError, match=r"cannot describe this model's \['flow_unet'\]"):
        hf_config.format_baichuan_config(dataclasses.replace(config, flow_unet=chunk))
    with pytest.raises(ConversionError, match=r"this one has no \['audio_encoder', 'vq_bridge'"):
        hf_config.format_baichuan_config(config.only("llm"))


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ((), "model_type", "llama", "model_type is 'llama', expected one of omni"),
        ((), "use_norm_head", True, "use_norm_head = True is not supported"),
        ((), "attention_qkv_pack", 1, "attention_qkv_pack = 1, expected bool"),
        ((), "hidden_size", None, "hidden_size = None, expected int"),
        ((), "hidden_size", "128", "hidden_size = '128', expected int"),
        ((), "hidden_size", -4, "hidden_size = -4 is negative"),
        ((), "num_hidden_layers", 0, "num_hidden_layers = 0, expected at least 1"),
        ((), "audio_config", 3, "audio_config = 3, expected dict"),
        (("audio_config",), "d_model", True, "audio_config: d_model = True, expected int"),
        (
            ("audio_config", "vq_config"),
            "codebook_sizes",
            [64, -1],
            r"codebook_sizes = \[64, -1\], expected positive integers",
        ),
        (("flow_matching_config",), "channels", [32, 64], r"\(32, 64\), expected a single entry"),
        (("flow_matching_config",), "spk_emb_dim", 64, "spk_emb_dim = 64 is not supported"),
    ],
)
def test_errors_name_file_key_and_value(tmp_path, section, key, value, message):
    values = tiny_values()
    place = values
    for name in section:
        place = place[name]
    place[key] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConversionError, match=message) as error:
        checkpoint_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    del place[key]
    if key in ("hidden_size", "d_model", "codebook_sizes", "channels"):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ConversionError, match=f"key '{key}' is missing"):
            checkpoint_config(tmp_path)


def test_a_model_from_scratch_is_exported_and_comes_back(tmp_path):
    """Without a recorded layout, shards are made by size and config.json from the sizes."""
    config = from_mapping(BaichuanAudioConfig, get_config("tiny"))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variable_shapes(config)
    )
    folder = tmp_path / "trained"
    folder.mkdir()
    save_variables(folder / layout.WEIGHTS_FOLDER, variables)
    hf_config.write_model_config(folder, config)
    export_checkpoint(folder, tmp_path / "hf", max_shard_bytes=2_000_000, progress=False)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 3 and (tmp_path / "hf" / "hift.pt").is_file()
    import_checkpoint(tmp_path / "hf", tmp_path / "back", progress=False)
    again = arrays.load_variables(tmp_path / "back", variable_shapes(config))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_separate_q_k_v_in_a_model_folder():
    """`attention_qkv_pack: false`: the same variables from, and into, three matrices."""
    values = tiny_values() | {"attention_qkv_pack": False}
    config = hf_config.parse_baichuan_config(values)
    assert not config.llm.qkv_packed
    names = {row.source for row in tables.rows_for(config)}
    assert "model.layers.{layer}.self_attn.k_proj.bias" in names
    assert not any("W_pack" in name for name in names)
    placed = engine.expand(tables.rows_for(config), variable_shapes(config))
    assert placed["model.layers.1.self_attn.v_proj.weight"][0].source_shape == (64, 128)
