"""Masking of padding before a difference is taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ba_jax.models import layers


def masked_difference(x_BTM: jax.Array, y_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """x - y in float32, 0 past the lengths.

    The mask comes before the difference: the gradient of a NaN would be NaN under any later mask.
    """
    x, y = (layers.zero_past(a.astype(jnp.float32), lengths_B) for a in (x_BTM, y_BTM))
    return x - y
