"""Initial values of a run: a checkpoint for each component, missing components, random values."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax import optim, sharding
from ba_jax.checkpoints import components
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.config import ConfigError, from_mapping, to_mapping
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.llm import LLMConfig
from ba_jax.stages.lm import LMSettings, LMStage
from ba_jax.tree import flatten, unflatten
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.evals import small_bench

SIZES = (5, 4)
LLM = LLMConfig(40, 8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn_width=8)
CONFIG = BaichuanAudioConfig(
    llm=LLM,
    audio_embed=AudioEmbedConfig(width=8, codebook_sizes=SIZES),
    audio_head=AudioHeadConfig(width=8, layers=1, codebook_sizes=SIZES, head_dim=8),
)
KEY = jax.random.key(1)
STAGE1 = (("llm/.*", None), (".*", 1.0))


def stage_of(config=CONFIG) -> LMStage:
    return LMStage(config, LMSettings())


@functools.cache
def initial(config):
    """A stage's initialiser, compiled once."""
    return jax.jit(stage_of(config).init)


def sources(init, rules=STAGE1, stage=None):
    stage = stage or stage_of()
    names = flatten(jax.eval_shape(stage.init, KEY)["params"])
    rates = optim.learning_rate_multipliers(names, rules)
    training = {name.split("/")[0] for name, rate in rates.items() if rate}
    return components.initial_sources(init, stage.components, training)


def begin(stage, sources):
    """Initial variables of a run, flat."""
    mesh = sharding.make_mesh(sharding.MeshSettings(), jax.devices()[:1])
    shapes = jax.eval_shape(stage.init, KEY)
    shardings = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
    return flatten(components.initialize(shapes, sources, shardings, stage.init, KEY, stage.derive))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(folder, its arrays): a whole checkpoint with values of its own."""
    folder = tmp_path_factory.mktemp("stored") / "weights"
    variables = initial(CONFIG)(jax.random.key(9))
    save_variables(folder, variables)
    return folder, flatten(variables)


def test_a_frozen_component_needs_a_checkpoint():
    message = "llm is frozen and init.llm is empty.*--config.init.llm=WORKDIR"
    with pytest.raises(ConfigError, match=message):
        sources({"llm": ""})
    with pytest.raises(ConfigError, match=message):
        sources({})
    assert sources({"llm": "random"}) == {}
    assert sources({"llm": "a/b", "audio_head": "c"}) == {"llm": "a/b", "audio_head": "c"}
    # A rate of 0 freezes like None; a partly trained component needs no checkpoint.
    with pytest.raises(ConfigError, match="llm is frozen"):
        sources({}, (("llm/.*", 0.0), (".*", 1.0)))
    assert sources({}, (("llm/embedding", None), (".*", 1.0))) == {}


def test_unknown_components_and_values_are_refused():
    with pytest.raises(ConfigError, match="init: component 'lm', expected one of"):
        sources({"lm": "x", "llm": "random"})
    with pytest.raises(ConfigError, match="init.llm = 3: expected str"):
        sources({"llm": 3})
    # A component that the stage does not use is no error: templates name all.
    assert sources({"llm": "x", "vocoder": "y"}) == {"llm": "x"}


def test_loaded_components_replace_random_values(stored):
    folder, arrays = stored
    variables = begin(stage_of(), {"llm": str(folder), "audio_embed": str(folder)})
    drawn = flatten(initial(CONFIG)(KEY))
    assert sorted(variables) == sorted(drawn)
    for name, value in variables.items():
        source = drawn if name.split("/")[1] == "audio_head" else arrays
        np.testing.assert_array_equal(value, source[name], err_msg=name)
    weight = "params/llm/embedding"
    assert not np.array_equal(drawn[weight], arrays[weight])


def test_components_from_two_checkpoints(stored, tmp_path):
    folder, arrays = stored
    other = {"params": initial(CONFIG)(jax.random.key(5))["params"]}
    save_variables(tmp_path / "other", {"params": {"llm": other["params"]["llm"]}})
    variables = begin(stage_of(), {"llm": str(tmp_path / "other"), "audio_head": str(folder)})
    weights = flatten(other)
    for name, value in variables.items():
        if name.startswith("params/llm/"):
            np.testing.assert_array_equal(value, weights[name])
        elif name.startswith("params/audio_head/"):
            np.testing.assert_array_equal(value, arrays[name])


def test_a_checkpoint_of_other_sizes_lists_the_arrays(stored):
    folder, _ = stored
    wider = dataclasses.replace(CONFIG, llm=dataclasses.replace(LLM, ffn_width=16, vocab_size=50))
    with pytest.raises(CheckpointError) as error:
        begin(stage_of(wider), {"llm": str(folder)})
    text = str(error.value)
    assert "misshapen params/llm/embedding: expected (50, 8), got (40, 8)" in text
    assert text.count("misshapen") == 5 and str(folder) in text  # lm_head, gate, up, down too


def test_a_checkpoint_without_the_component(stored, tmp_path):
    folder, arrays = stored
    save_variables(tmp_path / "few", {"params": {"other": {"x": arrays["params/llm/embedding"]}}})
    with pytest.raises(CheckpointError, match="missing params/audio_head/"):
        begin(stage_of(), {"audio_head": str(tmp_path / "few")})
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}/none: no such folder")):
        begin(stage_of(), {"llm": str(tmp_path / "none")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run's workdir"):
        begin(stage_of(), {"llm": str(tmp_path / "empty")})


def test_adapters_may_be_absent_and_are_loaded_if_present(stored, tmp_path):
    folder, arrays = stored
    adapted = dataclasses.replace(CONFIG, llm=dataclasses.replace(LLM, lora_rank=2, lora_alpha=4.0))
    others = dict.fromkeys(("audio_embed", "audio_head"), str(folder))
    variables = begin(stage_of(adapted), {"llm": str(folder), **others})
    adapters = [name for name in variables if "/lora_" in name]
    assert adapters
    drawn = flatten(initial(adapted)(KEY))
    for name, value in variables.items():
        if name.startswith("params/llm/"):
            source = drawn if name in adapters else arrays
            np.testing.assert_array_equal(value, source[name], err_msg=name)
    trained = {name: np.asarray(value) + 1 for name, value in variables.items()}
    save_variables(tmp_path / "adapted", {"params": unflatten(trained)["params"]})
    again = begin(stage_of(adapted), {"llm": str(tmp_path / "adapted"), **others})
    for name in adapters:
        np.testing.assert_array_equal(again[name], trained[name])


def test_weights_of_half_precision_start_as_float32(stored, tmp_path):
    _, arrays = stored
    llm = unflatten(arrays)["params"]["llm"]
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), llm)
    save_variables(tmp_path / "half", {"params": {"llm": half}})
    variables = begin(stage_of(), {"llm": str(tmp_path / "half")})
    name = "params/llm/embedding"
    assert variables[name].dtype == jnp.float32
    expected = np.asarray(half["embedding"], np.float32)
    np.testing.assert_array_equal(variables[name], expected)


def test_embeddings_from_a_tokenizer_run(tmp_path, stored):
    """The sum of a frame's embeddings is the projection of the sum of its codebook rows."""
    draw = np.random.default_rng(0)
    tables = [draw.normal(size=(size, 6)).astype(np.float32) for size in SIZES]
    kernel = draw.normal(size=(6, 8)).astype(np.float32)
    bias = draw.normal(size=8).astype(np.float32)
    run = tmp_path / "tokenizer"
    save_variables(
        run,
        {
            "params": {"text_projection": {"kernel": kernel, "bias": bias}},
            "codebook": {"vq_bridge": {f"embed_{q}": t for q, t in enumerate(tables)}},
        },
    )
    stage = stage_of()
    flat = begin(stage, {"audio_embed": str(run), "llm": str(stored[0])})
    embeddings = [np.asarray(flat[f"params/audio_embed/embedding_{q}"]) for q in range(2)]
    for codes in ((0, 0), (4, 3), (2, 1)):
        heard = sum(embeddings[q][code] for q, code in enumerate(codes))
        z = sum(tables[q][code] for q, code in enumerate(codes))
        np.testing.assert_allclose(heard, z @ kernel + bias, rtol=1e-5, atol=1e-5)
    assert all((table[-1] == 0).all() for table in embeddings)
    np.testing.assert_array_equal(flat["params/llm/embedding"], stored[1]["params/llm/embedding"])

    wide = dataclasses.replace(CONFIG, audio_embed=AudioEmbedConfig(8, (5, 7)))
    head = dataclasses.replace(CONFIG.audio_head, codebook_sizes=(5, 7))
    other = stage_of(dataclasses.replace(wide, audio_head=head))
    with pytest.raises(CheckpointError, match=r"embedding_1 of shape \(5, 8\), expected \(8, 8\)"):
        begin(other, {"audio_embed": str(run)})


# --- components of evaluation and generation ----------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """An evaluation's config of the tiny model."""
    return small_bench.tiny()


@pytest.fixture(scope="module")
def tiny_checkpoints(tmp_path_factory):
    """Folders of the tiny model: `codec`, `lm`."""
    return small_bench.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def test_the_last_checkpoint_with_a_component_provides_it(tiny, tiny_checkpoints):
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    sources = components.find(tiny_checkpoints, config, ("audio_encoder", "audio_decoder", "llm"))
    assert {name: pathlib.Path(folder).name for name, folder in sources.items()} == {
        "audio_encoder": "lm",
        "audio_decoder": "codec",
        "llm": "lm",
    }
    variables = components.load(config, sources)
    assert sorted(variables["params"]) == ["audio_decoder", "audio_encoder", "llm"]
    with pytest.raises(CheckpointError, match="none holds flow_unet"):
        components.find(tiny_checkpoints[1:], config, ("flow_unet",))
    with pytest.raises(CheckpointError, match="no such folder"):
        components.find(["nowhere"], config, ("llm",))
    other = {**tiny["model"], "llm": {**tiny["model"]["llm"], "layers": 3}}
    with pytest.raises(CheckpointError, match="misshapen params/llm"):
        components.load(from_mapping(BaichuanAudioConfig, other), {"llm": sources["llm"]})


def test_settings_that_do_not_change_shapes_must_match_the_run(tiny, tiny_checkpoints, tmp_path):
    """Other constants than in training would give noise without an error."""
    sizes = from_mapping(BaichuanAudioConfig, tiny["model"])
    for component, source, section, key, trained in (
        ("llm", tiny_checkpoints[1], "llm", "rope_theta", 5e5),
        ("flow_unet", tiny_checkpoints[0], "flow_matching", "residual_std", 0.7),
    ):
        run = tmp_path / component
        shutil.copytree(source, run / "checkpoints" / "5" / "weights")
        model = to_mapping(sizes)
        config_file = run / "config.json"
        model["flow_matching"]["steps"] = 4  # may be chosen when sampling
        config_file.write_text(json.dumps({"model": model}))
        assert components.find([str(run)], sizes, (component,))
        model[section][key] = trained
        config_file.write_text(json.dumps({"model": model}))
        message = f"trained with {section}.{key} = {trained}, .*--config.model.{section}.{key}="
        with pytest.raises(ConfigError, match=message):
            components.find([str(run)], sizes, (component,))
        assert components.find([str(run)], from_mapping(BaichuanAudioConfig, model), (component,))
        config_file.write_text("{")
        with pytest.raises(ConfigError, match="config.json: damaged, expected the config of a run"):
            components.find([str(run)], sizes, (component,))
        config_file.unlink()
        assert components.find([str(run)], sizes, (component,))


def test_layers_are_unstacked_on_a_single_cpu(tiny, tiny_checkpoints):
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    sources = components.find(tiny_checkpoints, config, ("llm",))
    mesh = sharding.make_mesh(sharding.MeshSettings(), jax.devices()[:1])
    for placement in (None, mesh):
        llm = components.load_to_generate(config, sources, placement)["params"]["llm"]
        assert "layers_0" in llm and "layers" not in llm
        assert sharding.mesh_of(llm["layers_0"]) == placement
    assert "layers" in components.load(config, sources)["params"]["llm"]
