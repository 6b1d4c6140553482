"""The understanding stage: text teaches features through a frozen language model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ba_jax import sharding
from ba_jax.checkpoints import components
from ba_jax.stages.base import StageError
from ba_jax.stages.tokenizer import TokenizerStage
from ba_jax.stages.understanding import UnderstandingSettings, UnderstandingStage
from ba_jax.tree import flatten
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.stages.helpers import norm
from tests.unit.stages.test_tokenizer import CONFIG, SETTINGS, batch_of, init_variables


@pytest.fixture(scope="module")
def stage() -> UnderstandingStage:
    return UnderstandingStage(CONFIG, UnderstandingSettings())


@pytest.fixture(scope="module")
def variables(stage):
    return init_variables(stage)


def test_the_text_loss_teaches_encoder_bridge_and_projection(stage, variables):
    batch = batch_of()
    # The decoder's targets are not needed.
    audio = [c._replace(hifigan_mel_BCTM=None, coarse_mel_BCTM=None) for c in batch.audio]
    arrays = stage.arrays(batch._replace(audio=tuple(audio)))
    assert set(variables["params"]) == {"audio_encoder", "vq_bridge", "llm", "text_projection"}

    @jax.jit
    def run(params):
        at = {**variables, "params": params}
        return stage.loss(at, arrays, stage.totals(arrays), jax.random.key(1), 0)

    (loss, aux), grads = jax.value_and_grad(run, has_aux=True)(variables["params"])
    assert loss == aux.metrics["text"] > 0 and 0 <= aux.metrics["text_accuracy"] <= 1
    for name in ("audio_encoder", "vq_bridge", "text_projection"):
        assert norm(grads[name]) > 1e-6, name
    assert norm(grads["vq_bridge"]["decoder_proj"]) == 0
    evaluated = stage.evaluate(variables, arrays, stage.totals(arrays), jax.random.key(2))
    np.testing.assert_allclose(evaluated["loss"], loss, rtol=1e-5)
    tokenizer = TokenizerStage(CONFIG, SETTINGS)
    assert stage.flops(arrays, ()) < tokenizer.flops(tokenizer.arrays(batch), ())
    assert stage.amounts(arrays) == tokenizer.amounts(tokenizer.arrays(batch))


def test_batches_without_text_or_mels_are_refused(stage):
    batch = batch_of()
    rows = batch.rows._replace(text_target_BL=np.zeros_like(batch.rows.text_target_BL))
    with pytest.raises(StageError, match="without audio and without text to learn"):
        stage.arrays(batch._replace(rows=rows))
    with pytest.raises(StageError, match="without mels"):
        stage.arrays(batch._replace(audio=()))
    with pytest.raises(StageError, match="the model's config has no .*llm"):
        UnderstandingStage(dataclasses.replace(CONFIG, llm=None), UnderstandingSettings())
    with pytest.raises(ValueError, match="norm_init_frames = -1"):
        UnderstandingSettings(norm_init_frames=-1)


def test_the_tokenizer_starts_from_it(variables, tmp_path):
    """The projection comes with the language model; codebooks that never trained are fitted."""
    save_variables(tmp_path / "weights", variables)
    tokenizer = TokenizerStage(CONFIG, SETTINGS)
    key, shapes = jax.random.key(3), jax.eval_shape(tokenizer.init, jax.random.key(3))
    mesh = sharding.make_mesh(sharding.MeshSettings(), jax.devices()[:1])
    shardings = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)

    def begin(*names: str, companions=tokenizer.companions):
        sources = dict.fromkeys(names, str(tmp_path / "weights"))
        args = shapes, sources, shardings, tokenizer.init, key
        return components.initialize(*args, companions=companions)

    begun = begin("audio_encoder", "vq_bridge", "llm")
    stored, loaded = flatten(variables), flatten(begun)
    for name in stored:
        np.testing.assert_array_equal(loaded[name], stored[name], err_msg=name)
    kernel = "params/text_projection/kernel"
    assert np.any(flatten(begin("vq_bridge"))[kernel] != stored[kernel])
    assert tokenizer._untrained(begun)
    begun["codebook"]["vq_bridge"]["cluster_size_1"] = np.full(16, 0.9, np.float32)
    assert not tokenizer._untrained(begun)
