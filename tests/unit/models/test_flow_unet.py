"""Flow U-Net: chunks, padding and precision."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.models.flow_unet import FlowUNet


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def velocity_of(model, *args):
    return model.flow_unet(*args)


def test_a_frame_sees_up_to_the_end_of_its_chunk(config, variables):
    """A frame depends on all of its chunk and on nothing after it."""
    small = dataclasses.replace(config.flow_unet, chunk=4)
    params = {"params": variables["params"]["flow_unet"]}
    mu, lengths = noise(1, 10, 80, seed=1), np.array([10], np.int32)

    def velocity(x):
        return FlowUNet(small).apply(params, x, mu, np.array([0.5], np.float32), lengths)[0]

    jacobian = np.abs(np.asarray(jax.jit(jax.jacobian(velocity))(noise(1, 10, 80)))).sum(
        axis=(1, 2, 4)
    )
    for t in range(10):
        end = min((t // 4 + 1) * 4, 10)
        assert (jacobian[t, :end] > 0).all(), t
        assert (jacobian[t, end:] == 0).all(), t


def test_padding_changes_nothing(run):
    x, mu = noise(1, 7, 80), noise(1, 7, 80, seed=1)
    t, lengths = np.array([0.4], np.float32), np.array([7], np.int32)

    def padded(a):
        out = np.full((2, 11, a.shape[-1]), np.nan, np.float32)
        out[0, :7] = a[0]
        return out

    two = np.array([7, 0], np.int32)
    got = run(velocity_of, padded(x), padded(mu), np.array([0.4, 0.4], np.float32), two)
    np.testing.assert_allclose(got[0, :7], run(velocity_of, x, mu, t, lengths)[0], atol=1e-5)
    assert (np.asarray(got[0, 7:]) == 0).all() and (np.asarray(got[1]) == 0).all()


def test_bfloat16_stays_near_float32(run, config):
    x, mu = noise(1, 9, 80), noise(1, 9, 80, seed=1)
    args = x, mu, np.array([0.4], np.float32), np.array([9], np.int32)
    want = np.asarray(run(velocity_of, *args))
    got = run(velocity_of, *args, model=BaichuanAudio(config, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert np.abs(np.asarray(got, np.float32) - want).max() < 0.05 * np.abs(want).max()
