"""Masked cross-entropy of the text and of the audio codes (paper 3.3), as sums over positions.

Sums, by row: what they are divided by is the whole batch's business, and a batch may come in
parts. Logits are large (a position of the full model's: 152,064 float32), so they are made for a
chunk of each row's positions at a time, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class CrossEntropy(NamedTuple):
    """Sums over the masked positions of each row, float32.

    Attributes:
      loss_B: negative log-likelihood, in nats; label-smoothed if asked.
      square_B: squared log-partition, what the z-loss (PaLM) holds down.
      correct_B: positions whose target has the largest logit.
    """

    loss_B: jax.Array
    square_B: jax.Array
    correct_B: jax.Array


def cross_entropy(
    logits_BLV: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    label_smoothing: float = 0.0,
) -> CrossEntropy:
    """Cross-entropy where the mask is true; targets elsewhere may be anything.

    Args:
      logits_BLV: any float type; computed with in float32.
      targets_BL: classes, in range where the mask is true.
      mask_BL: which positions count.
      label_smoothing: share of the target's probability that is spread evenly over all classes.
    """
    logits = logits_BLV.astype(jnp.float32)
    partition_BL = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it stays local where the classes are sharded.
    is_target = jnp.arange(logits.shape[-1])[None, None] == targets_BL[:, :, None]
    target_BL = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    if label_smoothing:
        mean_BL = jnp.mean(logits, axis=-1)
        target_BL = (1 - label_smoothing) * target_BL + label_smoothing * mean_BL
    correct_BL = jnp.argmax(logits, axis=-1) == targets_BL

    def total(values_BL: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask_BL, values_BL, 0), axis=1, dtype=jnp.float32)

    return CrossEntropy(total(partition_BL - target_BL), total(partition_BL**2), total(correct_BL))


def sum_over_chunks(function: Callable[..., Any], chunk: int, *arrays: jax.Array) -> Any:
    """Sum of `function(*pieces)` over pieces of `chunk` positions of the arrays' second axis.

    Nothing of a piece but its sum is kept: the backward pass runs `function` again. The last piece
    is filled up with zeros (false in masks). Rows stay whole, so a batch sharded over its rows
    needs no communication.

    Args:
      function: of arrays (B, chunk, ...) to a pytree of arrays; sums over positions.
      chunk: positions at a time; 0, or no fewer than there are: all at once, nothing done again.
      arrays: (B, L, ...).
    """
    length = arrays[0].shape[1]
    if chunk <= 0 or length <= chunk:
        return function(*arrays)
    pieces = -(-length // chunk)

    def cut(array: jax.Array) -> jax.Array:
        fill = [(0, 0), (0, pieces * chunk - length)] + [(0, 0)] * (array.ndim - 2)
        shape = (array.shape[0], pieces, chunk, *array.shape[2:])
        return jnp.moveaxis(jnp.pad(array, fill).reshape(shape), 1, 0)

    again = jax.checkpoint(function, prevent_cse=False)

    def add(total: Any, piece: tuple[jax.Array, ...]):
        return jax.tree.map(jnp.add, total, again(*piece)), None

    xs = tuple(map(cut, arrays))
    shapes = jax.eval_shape(function, *(x[0] for x in xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, xs)[0]


def chunked_cross_entropy(
    logits: Callable[[jax.Array], jax.Array],
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    *,
    chunk: int = 0,
    label_smoothing: float = 0.0,
) -> CrossEntropy:
    """`cross_entropy(logits(hidden_BLD), ...)`, without all logits at once.

    Args:
      logits: of hidden states (B, L', D) to (B, L', V).
      hidden_BLD, targets_BL, mask_BL: position i's hidden state predicts `targets_BL[:, i]`.
      chunk: positions of each row at a time, see `sum_over_chunks`.
      label_smoothing: as in `cross_entropy`.
    """

    def piece(hidden_BLD: jax.Array, targets_BL: jax.Array, mask_BL: jax.Array) -> CrossEntropy:
        return cross_entropy(logits(hidden_BLD), targets_BL, mask_BL, label_smoothing)

    return sum_over_chunks(piece, chunk, hidden_BLD, targets_BL, mask_BL)
