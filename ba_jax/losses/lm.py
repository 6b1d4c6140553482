"""Masked cross-entropy of the text and of the audio codes (paper 3.3), as sums over positions.

The caller divides the sums by the totals of the whole batch, which may come in microbatches. Logits
are large (152,064 float32 a position in the full model), so they are computed for a chunk of
positions at a time: `losses.targets` in training, `sum_over_chunks` without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class CrossEntropy(NamedTuple):
    """Values of each position, or (after `sums`) of each row; float32.

    Attributes:
      loss: negative log-likelihood, in nats; label-smoothed if asked.
      square: squared log-partition, for the z-loss (PaLM).
      correct: 1 where the target has the largest logit.
    """

    loss: jax.Array
    square: jax.Array
    correct: jax.Array

    def sums(self, mask_XL: jax.Array) -> CrossEntropy:
        """Sums (...) over the positions where the mask is true; others may hold anything finite."""
        return CrossEntropy(*(jnp.sum(jnp.where(mask_XL, x, 0), axis=-1) for x in self))


def cross_entropy(
    logits_XV: jax.Array, targets_X: jax.Array, label_smoothing: float = 0.0
) -> CrossEntropy:
    """Cross-entropy of each position.

    Args:
      logits_XV: (..., V), any float type; computed with in float32.
      targets_X: classes; one out of range gives a finite value without meaning.
      label_smoothing: share of the target's probability that is spread evenly over all classes.
    """
    logits = logits_XV.astype(jnp.float32)
    partition_X = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it stays local where the classes are sharded.
    is_target = jax.nn.one_hot(targets_X, logits.shape[-1], dtype=bool)
    target_X = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    correct_X = target_X >= jnp.max(logits, axis=-1)
    if label_smoothing:
        mean_X = jnp.mean(logits, axis=-1)
        target_X = (1 - label_smoothing) * target_X + label_smoothing * mean_X
    return CrossEntropy(partition_X - target_X, partition_X**2, correct_X.astype(jnp.float32))


def compact(mask_BL: jax.Array, capacity: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Move the masked positions of each row to its front.

    A batch sharded over its rows needs no communication.

    Args:
      mask_BL: positions to keep.
      capacity: size of the result's rows; masked positions past it are lost.
      arrays: (B, L, ...).

    Returns:
      (mask (B, capacity) of the filled positions, then each array (B, capacity, ...); positions
      past them repeat position 0).
    """

    def pick(mask_L: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        (at_N,) = jnp.nonzero(mask_L, size=capacity, fill_value=0)
        filled_N = jnp.arange(capacity) < jnp.sum(mask_L)
        return filled_N, *(array[at_N] for array in arrays)

    return jax.vmap(pick)(mask_BL, *arrays)


def sum_over_chunks(
    function: Callable[..., Any], chunk: int, mask_BL: jax.Array, *arrays: jax.Array
) -> Any:
    """Sum of `function(mask, *arrays)` over chunks of `chunk` positions of each row.

    The last chunk is padded with zeros, false in the mask. A batch sharded over rows needs no
    communication.

    Args:
      function: maps arrays (B, chunk, ...) to a pytree of float arrays, sums over masked positions.
      chunk: positions at a time; 0 or at least L: all at once.
      mask_BL: positions that count.
      arrays: (B, L, ...).
    """
    arrays = (mask_BL, *arrays)
    length = mask_BL.shape[1]
    if chunk <= 0 or length <= chunk:
        return function(*arrays)
    chunks = -(-length // chunk)

    def cut(array: jax.Array) -> jax.Array:
        fill = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, fill).reshape(len(array), chunks, chunk, *array.shape[2:])
        return jnp.moveaxis(array, 1, 0)

    xs = tuple(map(cut, arrays))
    shapes = jax.eval_shape(function, *(x[0] for x in xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Any, arrays: tuple[jax.Array, ...]):
        return jax.tree.map(jnp.add, total, function(*arrays)), None

    return jax.lax.scan(add, zeros, xs)[0]
