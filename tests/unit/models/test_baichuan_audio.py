"""The assembly: jitted end to end, gradients everywhere, full sizes without allocating."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.models import flow_matching
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    parameter_counts,
    variable_shapes,
)
from ba_jax.models.llm import init_cache
from configs.models import get_config


def speak(model, mel, lengths, key):
    """Log-mel to codes to waveform, one traced function."""
    codes, code_lengths = model.encode(mel, lengths)
    decoded = model.decode(codes, code_lengths)
    batch, frames = decoded.hidden_BTD.shape[:2]
    noise = flow_matching.draw_noise(jax.random.split(key, batch), frames, 80)
    flow_mel, flow_lengths = model.flow_decode(
        decoded.hidden_BTD, decoded.hidden_lengths_B, noise, steps=2
    )
    wave, _ = model.vocoder(flow_mel, flow_lengths, key)
    return codes, wave, flow_lengths


@pytest.mark.deep
@pytest.mark.slow
def test_audio_to_audio_is_one_jitted_function(run):
    mel = np.random.default_rng(0).normal(size=(2, 40, 128)).astype(np.float32)
    lengths = np.array([40, 24], np.int32)
    codes, wave, flow_lengths = run(speak, mel, lengths, jax.random.key(0))
    assert codes.shape == (2, 5, 4) and flow_lengths.tolist() == [19, 11]
    assert wave.shape == (2, 19 * 480)
    wave = np.asarray(wave)
    assert np.isfinite(wave).all() and np.abs(wave[0]).max() > 0
    assert (wave[1, 11 * 480 :] == 0).all()
    mel[1, 24:] = np.nan
    _, again, _ = run(speak, mel, lengths, jax.random.key(0))
    np.testing.assert_allclose(again, wave, atol=1e-5)


def test_text_embedding_gives_way_to_audio(run, config, variables):
    ids = np.array([[5, config.tokens.audio_pad, 6, 10**6]], np.int32)
    codes = np.random.default_rng(0).integers(0, 8, (1, 4, 4)).astype(np.int32)
    codes[:, [0, 2, 3]] = 10**6  # ignored where the token is not audio
    real = np.array([[1, 1, 1, 0]], bool)
    out = np.asarray(run("embed", ids, codes, real))
    params = variables["params"]
    text = np.asarray(params["llm"]["embedding"])
    audio = sum(
        np.asarray(params["audio_embed"][f"embedding_{q}"])[codes[0, 1, q]] for q in range(4)
    )
    np.testing.assert_allclose(out[0, [0, 2]], text[[5, 6]], atol=1e-6)
    np.testing.assert_allclose(out[0, 1], audio, atol=1e-5)
    assert np.isfinite(out).all()


def losses(model, mel, lengths, ids, codes):
    """A scalar that depends on every trainable parameter but the vocoder's (test_vocoder.py)."""
    x, encoder_lengths = model.audio_encoder(mel, lengths)
    projected, _, code_lengths = model.vq_bridge(x, encoder_lengths)
    decoded = model.audio_decoder(projected, code_lengths)
    mu, mu_lengths = model.flow_prenet(decoded.hidden_BTD, decoded.hidden_lengths_B)
    velocity = model.flow_unet(mu, mu, jnp.array([0.3, 0.6]), mu_lengths)
    hidden, _ = model.hidden(ids, codes)
    logits = model.text_logits(hidden)
    audio = model.audio_logits(hidden[:, 2], codes[:, 3])
    outputs = [decoded.refined_mel_BTM, velocity, logits, *audio]
    return sum(jnp.mean(jnp.square(y.astype(jnp.float32))) for y in outputs)


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, jnp.bfloat16],
)
def test_gradients_reach_every_parameter_and_are_finite(config, variables, dtype):
    rng = np.random.default_rng(0)
    mel = rng.normal(size=(2, 33, 128)).astype(np.float32)
    lengths = np.array([33, 17], np.int32)
    ids = rng.integers(0, 570, (2, 6)).astype(np.int32)
    ids[:, 3:5] = config.tokens.audio_pad
    codes = rng.integers(0, 8, (2, 6, 4)).astype(np.int32)
    model = BaichuanAudio(config, dtype=dtype)
    trained = {k: v for k, v in variables["params"].items() if k != "vocoder"}

    @jax.jit
    def gradients(params):
        return jax.grad(
            lambda p: model.apply(
                {**variables, "params": p}, mel, lengths, ids, codes, method=losses
            )
        )(params)

    for path, grad in jax.tree_util.tree_leaves_with_path(gradients(trained)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(np.asarray(grad, np.float32)).all(), name
        # k's bias would shift all scores of a query alike: softmax cancels it.
        if not name.endswith("['key']['bias']"):
            assert np.abs(np.asarray(grad, np.float32)).max() > 0, name


def test_full_size_counts():
    """The released model's 10.35 B values and the vocoder's 21 M, counted without allocating."""
    config = from_mapping(BaichuanAudioConfig, get_config("7b"))
    counts = parameter_counts(config)
    vocoder = counts.pop("vocoder")
    assert sum(counts.values()) == 10_346_592_920
    assert vocoder == 20_821_295
    shapes = variable_shapes(config)
    assert math.prod(shapes["params"]["llm"]["layers"]["gate"]["kernel"].shape) == 28 * 3584 * 18944


def test_the_released_size_lowers_for_tpu_and_gpu():
    """A decoding step, a frame and 30 s of audio at full size, in bfloat16: traced and lowered for
    both platforms, nothing allocated."""
    config = from_mapping(BaichuanAudioConfig, get_config("7b"))
    shapes, model = variable_shapes(config), BaichuanAudio(config, dtype=jnp.bfloat16)
    cache = jax.eval_shape(lambda: init_cache(config.llm, 4, 2048, jnp.bfloat16))

    def array(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def choose(q, logits):
        return jnp.argmax(logits, axis=-1)

    def lowered(method, *args, **static):
        def call(variables, *args):
            return model.apply(variables, *args, method=method, **static)

        traced = jax.jit(call).trace(shapes, *args)
        for platform in ("tpu", "cuda"):
            traced.lower(lowering_platforms=(platform,))
        return traced.out_info

    codes, _ = lowered("encode", array(2, 3000, 128, dtype=jnp.float32), array(2))
    assert codes.shape == (2, 375, 8) and codes.dtype == jnp.int32
    decoded = lowered("decode", codes, array(2))
    assert decoded.hidden_BTD.shape == (2, 1499, 1280)
    assert decoded.refined_mel_BTM.shape == (2, 1873, 80)
    hidden, cache = lowered("hidden", array(4, 1), array(4, 1, 8), None, None, cache)
    assert cache.k_EBKPD.shape == (28, 4, 4, 2048, 128) and hidden.dtype == jnp.bfloat16
    assert lowered("generate_frame", array(4, 3584, dtype=jnp.bfloat16), choose=choose).shape == (
        4,
        8,
    )


def test_counts_agree_with_the_variables(config, variables):
    total = sum(x.size for x in jax.tree.leaves(variables))
    assert sum(parameter_counts(config).values()) == total
