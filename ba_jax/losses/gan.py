"""Losses of the vocoder: least-squares GAN, feature matching, multi-scale mel.

Follows HiFi-GAN (arXiv 2010.05646, section 2.4), with one float32 value per item, so that the
caller can weigh items. Crops may be shorter than their array: `samples_B` are real, and means run
over them alone. Feature maps are (B, rows, columns, C), rows in time; a row counts if the middle of
its part of the waveform is real. That is exact for full crops. At the end of a shorter crop a row
also sees the zeros that follow, in the recording and in the generated waveform alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ba_jax.audio.mel import MelGeometry, log_mel_batch
from ba_jax.losses.flow import l1_B
from ba_jax.models.layers import length_mask

Features = Sequence[Sequence[jax.Array]]
"""Feature maps of each discriminator; the last one of each is its score."""


def real_rows(samples_B: jax.Array, samples: int, rows: int) -> jax.Array:
    """(B, rows) booleans: the row's middle lies before the item's end, of `samples` in all."""
    middle = (jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows
    return middle[None, :] < (samples_B.astype(jnp.float32) / samples)[:, None]


def _mean_B(x: jax.Array, samples_B: jax.Array, samples: int) -> jax.Array:
    """Mean of a (B, rows, columns, C) map over an item's real rows; 0 without any."""
    real = real_rows(samples_B, samples, x.shape[1])
    row_means = jnp.mean(x, axis=(2, 3))
    count_B = jnp.maximum(jnp.sum(real, axis=1), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(real, row_means, 0), axis=1) / count_B


def _scores(features: Features) -> list[jax.Array]:
    return [maps[-1].astype(jnp.float32) for maps in features]


def discriminator_B(
    real: Features, generated: Features, samples_B: jax.Array, samples: int
) -> jax.Array:
    """(D(x) - 1)^2 + D(G)^2, means over patches, summed over the discriminators."""
    losses = [
        _mean_B(jnp.square(x - 1), samples_B, samples) + _mean_B(jnp.square(g), samples_B, samples)
        for x, g in zip(_scores(real), _scores(generated), strict=True)
    ]
    return sum(losses)


def generator_B(generated: Features, samples_B: jax.Array, samples: int) -> jax.Array:
    """(D(G) - 1)^2, mean over patches, summed over the discriminators."""
    return sum(_mean_B(jnp.square(g - 1), samples_B, samples) for g in _scores(generated))


def feature_matching_B(
    real: Features, generated: Features, samples_B: jax.Array, samples: int
) -> jax.Array:
    """|D_i(x) - D_i(G)|, the mean of each map i, summed over the maps of all discriminators."""
    losses = [
        _mean_B(jnp.abs(x.astype(jnp.float32) - g.astype(jnp.float32)), samples_B, samples)
        for real_maps, generated_maps in zip(real, generated, strict=True)
        for x, g in zip(real_maps, generated_maps, strict=True)
    ]
    return sum(losses)


def multi_mel_B(
    generated_BS: jax.Array,
    real_BS: jax.Array,
    samples_B: jax.Array,
    geometries: Sequence[MelGeometry],
) -> jax.Array:
    """|log mel(G) - log mel(x)|, means over frames and bins, averaged over the geometries.

    An item too short for a geometry adds 0 there.
    """
    total = jnp.zeros(samples_B.shape, jnp.float32)
    for geometry in geometries:
        real, frames_B = log_mel_batch(real_BS, samples_B, geometry)
        generated, _ = log_mel_batch(generated_BS, samples_B, geometry)
        total += l1_B(generated, real, frames_B) / jnp.maximum(frames_B, 1)
    return total / len(geometries)


def f0_B(f0_BT: jax.Array, target_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """|f0 - target| in Hz, mean over an item's frames; unvoiced frames have the target 0."""
    real = length_mask(lengths_B, f0_BT.shape[1])
    error = jnp.where(real, f0_BT, 0) - jnp.where(real, target_BT, 0)
    return jnp.sum(jnp.abs(error), axis=1) / jnp.maximum(lengths_B, 1)
