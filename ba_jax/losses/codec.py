"""Losses of the audio tokenizer (paper 3.1): mel reconstruction, commitment.

Each loss is one float32 value per item, summed over its valid frames and averaged over the bins:
the caller adds the items and divides by the frames of the whole batch. Padding may hold anything,
NaN included. Mels are natural logarithms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ba_jax.losses.masks import masked_difference


def mel_errors(
    mel_BTM: jax.Array, target_BTM: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(|x - target|, (x - target)^2), (B,) each, of the frames that both arrays have."""
    frames = min(mel_BTM.shape[1], target_BTM.shape[1])
    mel_BTM, target_BTM = mel_BTM[:, :frames], target_BTM[:, :frames]
    error = masked_difference(mel_BTM, target_BTM, lengths_B)
    l1_B = jnp.sum(jnp.mean(jnp.abs(error), axis=2), axis=1)
    l2_B = jnp.sum(jnp.mean(jnp.square(error), axis=2), axis=1)
    return l1_B, l2_B


def commitment_B(z_BNE: jax.Array, quantized_BNE: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """(z - q)^2 with gradient to z alone, (B,), averaged over the elements."""
    error = masked_difference(z_BNE, jax.lax.stop_gradient(quantized_BNE), lengths_B)
    return jnp.sum(jnp.mean(jnp.square(error), axis=2), axis=1)
