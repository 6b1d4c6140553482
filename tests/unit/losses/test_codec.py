"""Losses of the audio tokenizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.losses.codec import commitment_B, mel_errors

LENGTHS = np.array([7, 4, 0], np.int32)


@pytest.fixture(scope="module")
def mels():
    """Two mels (3, 7, 5) of three items."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3, 7, 5)).astype(np.float32)


def test_mel_errors_are_sums_over_valid_frames_of_means_over_bins(mels):
    x, target = mels
    l1_B, l2_B = jax.device_get(jax.jit(mel_errors)(x, target, LENGTHS))
    for i, frames in enumerate(LENGTHS):
        error = (x - target)[i, :frames]
        np.testing.assert_allclose(l1_B[i], np.abs(error).mean(1).sum(), rtol=1e-5)
        np.testing.assert_allclose(l2_B[i], (error**2).mean(1).sum(), rtol=1e-5)


def test_commitment_pulls_the_features_alone(mels):
    z, quantized = mels
    want = ((z - quantized) ** 2).mean(2)
    want = [want[i, :frames].sum() for i, frames in enumerate(LENGTHS)]

    @jax.jit
    def losses_and_gradients(*x):
        gradients = jax.grad(lambda *x: jnp.sum(commitment_B(*x, LENGTHS)), argnums=(0, 1))
        return commitment_B(*x, LENGTHS), gradients(*x)

    got, grads = jax.device_get(losses_and_gradients(z, quantized))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(grads[0][0], 2 * (z - quantized)[0] / 5, rtol=1e-5)
    assert not grads[1].any()


@pytest.mark.parametrize("function", [mel_errors, commitment_B])
def test_padding_may_be_nan(function, mels):
    past = (np.arange(7)[None, :] >= LENGTHS[:, None])[:, :, None]
    dirty = [np.where(past, np.nan, mel) for mel in mels]

    @jax.jit
    @jax.value_and_grad
    def total(x, y):
        return sum(jnp.sum(value) for value in jax.tree.leaves(function(x, y, LENGTHS)))

    want, grad = total(*mels)
    got, dirty_grad = total(*dirty)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(dirty_grad, grad)
    assert not np.asarray(grad)[np.broadcast_to(past, grad.shape)].any()
