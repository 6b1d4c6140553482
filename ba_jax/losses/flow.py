"""Losses of the flow-matching decoder (paper 3.2): prior of mu, conditional flow matching.

Each loss comes as one value an item, float32, summed over its valid frames and averaged over the
bins: the caller adds the items and divides by the frames of the whole batch. Padding may hold
anything, NaN included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ba_jax.models import layers


def _frames_sum(x_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Sum over an item's valid frames of the mean over bins, (B,)."""
    return jnp.sum(jnp.mean(layers.zero_past(x_BTM, lengths_B), axis=2), axis=1)


def _inside(x_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    # Before the difference, not after it: the gradient of a NaN would be NaN under any mask.
    return layers.zero_past(x_BTM.astype(jnp.float32), lengths_B)


def l1_B(x_BTM: jax.Array, target_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """|x - target|, as the module says: the prior loss of mu, the error of a mel."""
    error = _inside(x_BTM, lengths_B) - _inside(target_BTM, lengths_B)
    return _frames_sum(jnp.abs(error), lengths_B)


def cfm_B(velocity_BTM: jax.Array, target_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """(v - u)^2, as the module says. Over sum(m) frames it is sum((v - u)^2 m) / (sum(m) * 80)."""
    error = _inside(velocity_BTM, lengths_B) - _inside(target_BTM, lengths_B)
    return _frames_sum(jnp.square(error), lengths_B)


def dropped_B(keys_B: jax.Array, share: float) -> jax.Array:
    """Which items lose their condition: booleans, true with probability `share`, by their keys."""
    return jax.vmap(lambda key: jax.random.uniform(key))(keys_B) < share
