"""Config files of the release, read and written."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from ba_jax.checkpoints import arrays, layout
from ba_jax.config import from_mapping
from ba_jax.convert import engine, hf_config, tables
from ba_jax.convert.engine import ConversionError
from ba_jax.convert.export import export_checkpoint
from ba_jax.convert.importer import import_checkpoint
from ba_jax.convert.sources import checkpoint_config
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.models.llm import rope_table
from configs.models import SIZES, get_config
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.convert.helpers import QWEN2, TINY


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


# --- settings of RoPE, windows and other decoders -------------------------------------------------

PARSERS = {
    "omni": (hf_config.parse_baichuan_config, tiny_values()),
    "qwen2": (hf_config.parse_qwen2_config, QWEN2),
}
NAN, INFINITY = float("nan"), float("inf")
ROPE = {"rope_type": "default", "rope_theta": 5e5}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.fixture(params=PARSERS)
def parse(request):
    """Parses the config of a kind with changes; None removes a key."""

    def parse(**changes):
        parser, values = PARSERS[request.param]
        return parser({k: v for k, v in {**values, **changes}.items() if v is not REMOVED}).llm

    return parse


REMOVED = object()
MOVED = {"rope_theta": REMOVED}


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_scaling": None, "rope_parameters": None}, 1e6),
        ({"rope_scaling": {}, "rope_parameters": {}}, 1e6),
        ({"rope_scaling": {"type": "default"}}, 1e6),
        ({"rope_scaling": {"rope_type": "default", "type": "default"}}, 1e6),
        ({"rope_scaling": {"rope_type": None, "factor": None}}, 1e6),
        ({"rope_scaling": {"rope_type": "default", "factor": 1.0}}, 1e6),
        ({"rope_scaling": {"type": "linear", "factor": 1.0}}, 1e6),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_parameters": {"partial_rotary_factor": 1.0}, "partial_rotary_factor": 1}, 1e6),
        ({**MOVED, "rope_parameters": ROPE}, 5e5),
        ({**MOVED, "rope_scaling": ROPE}, 5e5),
        ({**MOVED, "rope_parameters": {"rope_theta": 500000}}, 5e5),
        ({"rope_theta": None, "rope_parameters": ROPE, "rope_scaling": ROPE}, 5e5),
        ({**MOVED, "rope_parameters": {FULL: ROPE}}, 5e5),
        ({**MOVED, "rope_parameters": {FULL: ROPE, SLIDING: ROPE}}, 5e5),
        ({"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}, 1e6),
        ({"use_sliding_window": None, "sliding_window": None}, 1e6),
        ({"layer_types": [FULL, FULL], "mlp_bias": False, "attention_bias": True}, 1e6),
        ({"num_key_value_heads": REMOVED, "head_dim": REMOVED}, 1e6),
        ({"dtype": "float16", "torch_dtype": "bfloat16", "initializer_range": NAN}, 1e6),
    ],
)
def test_settings_that_change_nothing(parse, changes, theta):
    config = parse(**changes)
    assert config.rope_theta == theta
    if "num_key_value_heads" in changes:
        assert config.kv_heads == config.heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (MOVED, "key 'rope_theta' is missing"),
        (
            {"rope_parameters": ROPE},
            "rope_theta = 1000000.0, rope_parameters: rope_theta = 500000.0: expected the same",
        ),
        (
            {**MOVED, "rope_parameters": {FULL: ROPE, SLIDING: {"rope_theta": 1e4}}},
            "full_attention: rope_theta = 500000.0, rope_parameters: sliding_attention: rope_theta",
        ),
        *(
            (
                {place: {name: kind, "factor": 4.0}},
                f"{place}: {name} = {kind!r} is not supported, expected 'default'",
            )
            for place, name, kind in [
                ("rope_scaling", "type", "yarn"),
                ("rope_scaling", "rope_type", "linear"),
                ("rope_scaling", "type", "dynamic"),
                ("rope_scaling", "type", "mrope"),
                ("rope_parameters", "rope_type", "longrope"),
                ("rope_parameters", "rope_type", "llama3"),
                ("rope_parameters", "rope_type", "yarn"),
            ]
        ),
        ({"rope_scaling": {"type": "yarn", "rope_type": "default"}}, "type = 'yarn' is not"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "type = 'dynamic' is not"),
        ({"rope_scaling": {"factor": 4.0, "type": "yarn"}}, "type = 'yarn' is not"),
        ({"rope_scaling": {"factor": 2.0}}, "factor = 2.0 is not supported, expected 1.0"),
        ({"rope_scaling": {"mrope_section": [1, 2]}}, "mrope_section = .* expected None"),
        ({"rope_scaling": {"factor": True}}, "factor = True is not supported"),
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn', expected dict"),
        ({"rope_parameters": {FULL: {"type": "yarn"}}}, f"{FULL}: type = 'yarn' is not"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25 is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ({"use_sliding_window": "false"}, "use_sliding_window = 'false' is not supported"),
        ({"layer_types": [FULL, SLIDING]}, f"layer_types = ['{SLIDING}'] is not"),
        ({"layer_types": "x"}, "layer_types = 'x' is not supported, expected 'full_attention'"),
        ({"attention_bias": False}, "attention_bias = False"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported, expected False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, expected 'silu'"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5 is not supported, expected 1.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not"),
        ({"is_causal": False}, "is_causal = False is not supported, expected True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not"),
        ({"text_config": {"hidden_size": 3}}, "text_config = {'hidden_size': 3} is not"),
        *(
            ({key: value}, f"{key} = ")
            for key in ("rope_theta", "rms_norm_eps", "hidden_size", "vocab_size")
            for value in (NAN, INFINITY, -INFINITY, -1, True, "32", [], {}, 10**400)
        ),
        ({"rope_theta": 0}, "rope_theta = 0.0, expected more than 0"),
        ({"rope_theta": "1" * 1000}, "rope_theta = '1{59}, expected float$"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000, expected at most 256"),
        ({"num_attention_heads": 256, "head_dim": None}, "head_dim = 0 is too small"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false', expected bool"),
    ],
)
def test_settings_that_change_the_computation(parse, changes, message):
    with pytest.raises(ConversionError, match=message.replace("[", r"\[")):
        parse(**changes)


@pytest.mark.parametrize("switch", [{}, {"use_sliding_window": None}])
def test_a_window_without_its_switch(switch):
    """Transformers' Qwen2 has no window then; the switch is its own."""
    hf_config.parse_qwen2_config({**QWEN2, **switch, "sliding_window": 16})
    assert transformers.Qwen2Config(sliding_window=16).sliding_window is None
    values = {k: v for k, v in tiny_values().items() if k != "use_sliding_window"}
    with pytest.raises(ConversionError, match="sliding_window = 131072 is not supported"):
        hf_config.parse_baichuan_config({**values, **switch})


def test_rope_of_transformers():
    """Whatever passes has transformers' own frequencies."""
    rotary = transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding
    for settings in (ROPE, {**ROPE, "rope_type": "linear", "factor": 1.0}):
        values = {k: v for k, v in QWEN2.items() if k not in ("rope_theta", "model_type")}
        config = hf_config.parse_qwen2_config({**values, "rope_parameters": settings})
        theirs = rotary(transformers.Qwen2Config(**values, rope_parameters=settings))
        cos, _ = rope_table(np.arange(40)[None], config.llm.head_dim, config.llm.rope_theta)
        expected, _ = theirs(torch.zeros(1), torch.arange(40)[None])
        np.testing.assert_allclose(cos[0], expected[0, :, : config.llm.head_dim // 2], atol=1e-5)


def test_a_config_that_transformers_5_saved(tmp_path):
    values = tiny_values()

    class OmniConfig(transformers.PretrainedConfig):
        model_type = "omni"

    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": values.pop("rope_theta")}}
    OmniConfig(**values, **theta).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "dtype" in saved and "rope_theta" not in saved
    again = hf_config.parse_baichuan_config(saved)
    assert again == hf_config.parse_baichuan_config(tiny_values())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("audio_pad_token_id", 600, "audio_pad_token_id = 600, expected less than vocab_size"),
        ("audio_pad_token_id", 575, "two of the audio tokens have the same id"),
        ("encoder_attention_heads", 5, "heads = 5 does not divide width = 32"),
        ("encoder_layers", 10**9, "encoder_layers = 1000000000, expected at most 256"),
        ("max_audio_seconds", 10**6, "audio_encoder: 50000000 positions of width 32, expected"),
        ("max_audio_seconds", NAN, "max_audio_seconds = nan, expected int"),
    ],
)
def test_numbers_of_the_audio_config(key, value, message):
    values = tiny_values()
    values["audio_config"][key] = value
    with pytest.raises(ConversionError, match=message):
        hf_config.parse_baichuan_config(values)


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
