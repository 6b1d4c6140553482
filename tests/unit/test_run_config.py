"""Configs of runs: invalid ones, and every stage's config at full size."""

from __future__ import annotations

import copy
import functools
import importlib
import math
import pathlib
import sys

import jax
import pytest
from jax.sharding import AbstractMesh

from ba_jax import optim, sharding
from ba_jax.config import ConfigError, from_mapping
from ba_jax.models import quantized
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.run_config import STAGES, make_stage, parse_config
from ba_jax.train_state import make_layout
from ba_jax.tree import flatten
from configs import models
from tests.unit.stages import small_run
from tests.unit.test_sharding import chips

CONFIGS = {
    name: importlib.import_module(f"configs.{name}").get_config
    for name in (
        "lm_text",
        "understanding",
        "tokenizer",
        "flow_matching",
        "vocoder",
        "lm_stage1",
        "lm_stage2",
        "lm_single",
        "sft",
    )
}
SIZES = {
    "lm_text": ("nano",),
    **dict.fromkeys(("understanding", "tokenizer"), ("nano", "nano_whisper", "1b5")),
    "flow_matching": ("nano", "nano_whisper", "1b5", "7b"),
    "vocoder": ("nano", "1b5", "7b"),
    "sft": ("nano", "nano_lora", "1b5", "7b", "7b_lora"),
}
LM_SIZES = ("nano", "nano_codes", "1b5", "7b")
# fsdp and tensor.
MESHES = {
    "tiny": ((4, 1), (8, 2), (32, 4)),
    "nano": ((4, 1), (8, 2), (64, 4)),
    "full": ((4, 1), (16, 2), (64, 4), (256, 1), (256, 4)),
}
ALL = [(name, size) for name in CONFIGS for size in SIZES.get(name, LM_SIZES)]


def config(**changes):
    return small_run.text_run(pathlib.Path("/nowhere/small"), **changes)


def test_a_config_is_a_mapping_or_a_configdict():
    values = CONFIGS["lm_text"]("nano")
    assert parse_config(values) == parse_config(values.to_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new": 1}, r"config: unknown keys \['new'\]"),
        ({"train__step": 1}, r"config.train: unknown keys \['step'\]"),
        ({"train__steps": 0}, "steps = 0, expected at least 1"),
        ({"train__steps": "8"}, "config.train.steps = '8': expected int"),
        ({"train__accumulation_steps": 0}, "accumulation_steps = 0"),
        ({"train__log_every": 0}, "log_every = 0"),
        ({"train__dtype": "float16"}, "dtype = 'float16', expected one of"),
        ({"train__remat": "some"}, "remat = 'some', expected one of"),
        ({"train__attention": "flash"}, "attention 'flash', expected one of"),
        (
            {"train__quantization": "fp8"},
            "quantization = 'fp8', expected one of .'none', 'int8', 'float8'",
        ),
        ({"train__frozen_param_dtype": "int8"}, "frozen_param_dtype = 'int8', expected one of"),
        ({"train__evaluate_every": -1}, "evaluate_every = -1"),
        ({"train__evaluate_batches": 0}, "evaluate_batches = 0"),
        ({"train__profile_steps": 0}, "profile_steps = 0"),
        ({"optimizer__learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"optimizer__rules": ((".*", "fast"),)}, r"rules\[0\]\[1\] = 'fast'"),
        ({"optimizer__rules": (("llm/(", 1.0),)}, "not a regular expression"),
        ({"optimizer__momentum": 0.9}, r"config.optimizer: unknown keys \['momentum'\]"),
        ({"mesh__pipeline": 2}, r"config.mesh: unknown keys \['pipeline'\]"),
        ({"loader__workers": -1}, "workers = -1, expected at least 0"),
        ({"checkpoint__keep_last": 0}, "keep_last >= 1"),
        ({"init": []}, r"config.init = \[\]"),
        ({"seed": 1.5}, "config.seed = 1.5: expected int"),
    ],
)
def test_invalid_config(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(config(**changes))


def test_missing_section():
    incomplete = config()
    del incomplete["optimizer"]
    with pytest.raises(ConfigError, match=r"config: missing keys \['optimizer'\]"):
        parse_config(incomplete)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": {"name": "lmm"}}, "stage.name = 'lmm', expected one of .'flow', 'lm'"),
        ({"stage": {}}, "stage.name = None"),
        ({"train__attention": "cudnn"}, "train: attention 'cudnn' on cpu: expected NVIDIA"),
        ({"stage__chunks": 3}, r"stage: unknown keys \['chunks'\]"),
        ({"stage__audio": "wave"}, "stage: audio = 'wave'"),
        ({"model__llm__widht": 3}, r"model.llm: unknown keys \['widht'\]"),
    ],
)
def test_invalid_stage(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_stage(parse_config(config(**changes)))


@pytest.mark.parametrize(
    ("key", "value", "usual"), [("attention", "splash", "xla"), ("quantization", "int8", "none")]
)
def test_settings_of_a_language_model_need_one(key, value, usual, monkeypatch):
    monkeypatch.setattr(quantized, "check", lambda kind: None)
    values = CONFIGS["vocoder"]("nano").to_dict()
    values["train"][key] = value
    message = f"train.{key} = '{value}': stage vocoder has no language model, expected '{usual}'"
    with pytest.raises(ConfigError, match=message):
        make_stage(parse_config(values))


def test_quantization_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"'int8' needs qwix: pip install 'ba_jax\[quantized\]'"):
        make_stage(parse_config(config(train__quantization="int8")))


def test_sequence_axis_needs_a_language_model():
    mesh = sharding.make_mesh(sharding.MeshSettings(sequence=2), chips(2, 2))
    with pytest.raises(sharding.ShardingError, match="stage vocoder on mesh.sequence = 2"):
        make_layout(parse_config(CONFIGS["vocoder"]("nano")), mesh)


@functools.cache
def built(name: str, size: str):
    """(config, stage, shapes of its variables)."""
    parsed = parse_config(copy.deepcopy(CONFIGS[name](size).to_dict()))
    stage = make_stage(parsed)
    return parsed, stage, jax.eval_shape(stage.init, jax.random.key(0))


def test_every_stage_has_a_config():
    assert {CONFIGS[name](size).stage.name for name, size in ALL} == set(STAGES)


@pytest.mark.parametrize(("name", "size"), ALL, ids=lambda value: value)
def test_every_config_is_built_at_full_size(name, size):
    """Shapes of the stage, its optimizer rules, and a sharding on pods for every parameter."""
    parsed, stage, shapes = built(name, size)
    flat = {path: leaf.shape for path, leaf in flatten(shapes["params"]).items()}
    tops = {path.split("/")[0] for path in flat}
    assert set(stage.components) - tops <= {"vq_bridge"}
    multipliers = optim.learning_rate_multipliers(flat, parsed.optimizer.rules)
    trained = {path: rate for path, rate in multipliers.items() if rate is not None}
    optimizer = optim.make_optimizer(parsed.optimizer, trained, flat, parsed.train.steps)
    params = {path: jax.ShapeDtypeStruct(flat[path], "float32") for path in trained}
    jax.eval_shape(optimizer.init, params)
    check_shardings(flat, stage.config.heads, "nano" if "nano" in size else "full")


def test_tiny_can_be_sharded():
    """No stage has a config of this size."""
    config = from_mapping(BaichuanAudioConfig, models.get_config("tiny").to_dict())
    shapes = variable_shapes(config)["params"]
    flat = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    check_shardings(flat, config.heads, "tiny")


def check_shardings(flat, heads, kind):
    """Every parameter has a spec, and no large one is replicated."""
    for sizes in MESHES[kind]:
        mesh = AbstractMesh((2, *sizes, 2), sharding.AXES)
        for path, shape in flat.items():
            spec = sharding.parameter_spec(path, shape, mesh, heads)
            small = math.prod(shape) <= sharding.MAX_REPLICATED_SIZE or "/lora_" in path
            assert any(spec) or small, (path, shape, sizes)


def test_trained_parameters_of_the_language_stages():
    """Paper 3.3.1: stage 1 the audio parts, stage 2 all but the text's ends, the ablation all."""

    def trained(name: str, size: str) -> set[str]:
        parsed, _, shapes = built(name, size)
        multipliers = optim.learning_rate_multipliers(
            flatten(shapes["params"]), parsed.optimizer.rules
        )
        return {path for path, rate in multipliers.items() if rate}

    stage1, stage2 = trained("lm_stage1", "7b"), trained("lm_stage2", "7b")
    single, lora = trained("lm_single", "7b"), trained("sft", "7b_lora")
    assert {path.split("/")[0] for path in stage1} == {"audio_embed", "audio_head"}
    assert single - stage2 == {"llm/embedding", "llm/lm_head"} and stage1 < stage2
    assert lora and all("/lora_" in path and path.startswith("llm/") for path in lora)
    assert not any(
        path.startswith(("audio_encoder", "vq_bridge")) for path in trained("lm_stage2", "nano")
    )
