"""Audio decoder: lengths, extents, causality."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models import layers
from ba_jax.models.audio_decoder import AudioDecoder


def decode(model, x, lengths, extent=None):
    return model.audio_decoder(x, lengths, extent)


def features(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(size=(1, frames, 32)).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 5])
def test_result_does_not_depend_on_the_bucket(run, frames):
    x = features(frames)
    alone = run(decode, x, np.array([frames], np.int32))
    assert alone.hidden_lengths_B.tolist() == [4 * frames - 1]
    assert alone.mel_lengths_B.tolist() == [5 * frames - 2]
    batch = np.full((2, 12, 32), np.nan, np.float32)
    batch[0, :frames] = x[0]
    out = run(decode, batch, np.array([frames, 0], np.int32))
    for name, n in (
        ("hidden_BTD", 4 * frames - 1),
        ("coarse_mel_BTM", 5 * frames - 2),
        ("refined_mel_BTM", 5 * frames - 2),
        ("unresized_mel_BTM", 8 * frames - 2),
    ):
        single, padded = np.asarray(getattr(alone, name)), np.asarray(getattr(out, name))
        np.testing.assert_allclose(padded[0, :n], single[0, :n], atol=1e-5)
        assert (padded[0, n:] == 0).all() and (padded[1] == 0).all()


def test_extent_changes_the_norms_statistics(run):
    x = np.zeros((1, 8, 32), np.float32)
    x[:, :5] = features(5)
    alone = run(decode, x, np.array([5], np.int32))
    batched = run(decode, x, np.array([5], np.int32), np.array([8], np.int32))
    difference = np.asarray(alone.refined_mel_BTM - batched.refined_mel_BTM)
    assert np.abs(difference[0, :23]).max() > 1e-3


def hidden_jacobian(config, variables, frozen_norm: bool) -> np.ndarray:
    """|d hidden(t) / d x(n)|, summed over features: (4 N - 1, N)."""
    module = AudioDecoder(config.audio_decoder)
    params = {c: v["audio_decoder"] for c, v in variables.items() if "audio_decoder" in v}

    def freeze(next_call, args, kwargs, context):
        if frozen_norm and isinstance(context.module, layers.ItemNorm):
            return args[0]
        return next_call(*args, **kwargs)

    def hidden(x):
        with nn.intercept_methods(freeze):
            return module.apply(params, x, np.array([5], np.int32)).hidden_BTD[0]

    jacobian = jax.jit(jax.jacobian(hidden))(features(5))  # (T, D, 1, N, D)
    return np.abs(np.asarray(jacobian)).sum(axis=(1, 2, 4))


def test_hidden_is_causal_but_for_the_norms_statistics(config, variables):
    """With the statistics of the norm held fixed, no frame depends on a later input."""
    jacobian = hidden_jacobian(config, variables, frozen_norm=True)
    for n in range(5):
        assert (jacobian[: 4 * n, n] == 0).all()
        assert (jacobian[4 * n :, n] > 0).all()
    assert (hidden_jacobian(config, variables, frozen_norm=False)[0] > 0).all()


def test_too_long_is_an_error(run):
    with pytest.raises(ValueError, match="position table has only 3000"):
        run(decode, jnp.zeros((1, 751, 32)), np.array([751], np.int32))


def test_lengths_on_the_host_are_the_decoders(run, config):
    codes = np.array([0, 1, 5, 9], np.int32)
    out = run(decode, np.zeros((4, 12, 32), np.float32), codes)
    sizes = config.audio_decoder
    np.testing.assert_array_equal(sizes.hidden_length(codes), out.hidden_lengths_B)
    np.testing.assert_array_equal(sizes.decoded_frames(codes), out.mel_lengths_B)
    np.testing.assert_array_equal(sizes.coarse_length(codes), out.unresized_lengths_B)
