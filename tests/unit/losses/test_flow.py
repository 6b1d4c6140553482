"""Losses of the flow-matching decoder against their formulas."""

from __future__ import annotations

import jax
import numpy as np

from ba_jax.losses import flow as losses

LENGTHS = np.array([5, 3, 0], np.int32)


def mels(*seeds: int) -> list[np.ndarray]:
    """Random (3, 5, 4) arrays with NaN past LENGTHS."""
    arrays = []
    for seed in seeds:
        x = np.random.default_rng(seed).normal(size=(3, 5, 4)).astype(np.float32)
        x[np.arange(5)[None] >= LENGTHS[:, None]] = np.nan
        arrays.append(x)
    return arrays


def test_sums_over_valid_frames_are_the_papers_losses():
    x, target = mels(0, 1)
    error = np.concatenate([(x - target)[i, :n] for i, n in enumerate(LENGTHS)])
    frames = LENGTHS.sum()
    cfm_B, l1_B = (
        np.asarray(jax.jit(loss)(x, target, LENGTHS)) for loss in (losses.cfm_B, losses.l1_B)
    )
    np.testing.assert_allclose(cfm_B.sum() / frames, np.sum(error**2) / (frames * 4), rtol=1e-6)
    np.testing.assert_allclose(l1_B.sum() / frames, np.abs(error).mean(), rtol=1e-6)
    assert l1_B[2] == 0


def test_padding_gets_a_gradient_of_zero():
    x, target = mels(0, 1)
    for loss in (losses.cfm_B, losses.l1_B):
        gradient = jax.jit(jax.grad(lambda x, loss=loss: loss(x, target, LENGTHS).sum()))
        valid = np.arange(5)[None] < LENGTHS[:, None]
        assert (np.asarray(gradient(x))[~valid] == 0).all()
        assert (np.asarray(gradient(x))[valid] != 0).all()


def test_the_configured_share_is_dropped():
    keys, drop = jax.random.split(jax.random.key(0), 4000), jax.jit(losses.dropped_B)
    for share in (0.0, 0.2, 1.0):
        dropped = np.asarray(drop(keys, share)).mean()
        # 4 standard deviations of a share of 4000 items
        assert abs(dropped - share) <= 4 * np.sqrt(share * (1 - share) / 4000)
