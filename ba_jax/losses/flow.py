"""Losses of the flow-matching decoder (paper 3.2): prior of mu, conditional flow matching.

Each loss is one float32 value per item, summed over its valid frames and averaged over the bins:
the caller adds the items and divides by the frames of the whole batch. Padding may hold anything,
NaN included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ba_jax.losses.masks import masked_difference


def _sum_frames(errors_BTM: jax.Array) -> jax.Array:
    return jnp.sum(jnp.mean(errors_BTM, axis=2), axis=1)


def l1_B(x_BTM: jax.Array, target_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """|x - target|: the prior loss of mu, or the error of a mel."""
    return _sum_frames(jnp.abs(masked_difference(x_BTM, target_BTM, lengths_B)))


def cfm_B(velocity_BTM: jax.Array, target_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """(v - u)^2. Over sum(m) frames it is sum((v - u)^2 m) / (sum(m) * 80)."""
    return _sum_frames(jnp.square(masked_difference(velocity_BTM, target_BTM, lengths_B)))


def dropped_B(keys_B: jax.Array, share: float) -> jax.Array:
    """Items that lose their condition: booleans, true with probability `share`, by their keys."""
    return jax.vmap(lambda key: jax.random.uniform(key))(keys_B) < share
