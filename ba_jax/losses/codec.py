"""Losses of the audio tokenizer (paper 3.1): mel reconstruction at two scales, commitment.

Each loss is one float32 value per item, summed over its valid frames and averaged over the bins:
the caller adds the items and divides by the frames of the whole batch. Padding may hold anything,
NaN included. Mels are natural logarithms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ba_jax.losses.masks import masked_difference
from ba_jax.models import layers


def mel_errors(
    mel_BTM: jax.Array, target_BTM: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(|x - target|, (x - target)^2), (B,) each."""
    error = masked_difference(mel_BTM, target_BTM, lengths_B)
    l1_B = jnp.sum(jnp.mean(jnp.abs(error), axis=2), axis=1)
    l2_B = jnp.sum(jnp.mean(jnp.square(error), axis=2), axis=1)
    return l1_B, l2_B


def coarser(mel_BTM: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A mel of about twice the hop and window: log of the mean magnitude of frames 2 t, 2 t + 1.

    The second scale of the loss. The decoder has a single grid, so both sides are made coarser from
    it; the frames' phases are unknown, hence "about".

    Returns:
      (mel with T // 2 frames, lengths_B // 2: a last single frame is dropped).
    """
    mel = layers.zero_past(mel_BTM.astype(jnp.float32), lengths_B)
    frames = mel.shape[1] // 2
    pairs = mel[:, : 2 * frames].reshape(mel.shape[0], frames, 2, mel.shape[2])
    return jnp.logaddexp(pairs[:, :, 0], pairs[:, :, 1]) - jnp.log(2.0), lengths_B // 2


def commitment_B(z_BNE: jax.Array, quantized_BNE: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """(z - q)^2 with gradient to z alone, (B,), averaged over the elements."""
    error = masked_difference(z_BNE, jax.lax.stop_gradient(quantized_BNE), lengths_B)
    return jnp.sum(jnp.mean(jnp.square(error), axis=2), axis=1)
