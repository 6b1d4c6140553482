"""Masked cross-entropy of the text and of the audio codes (paper 3.3), as sums over positions.

The caller divides the sums by the totals of the whole batch, which may come in microbatches. Logits
are large (152,064 float32 a position in the full model), so they are computed for a chunk of
positions at a time, and recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ba_jax import sharding


class CrossEntropy(NamedTuple):
    """Values of each position, or (after `sums`) of each row; float32.

    Attributes:
      loss_BL: negative log-likelihood, in nats; label-smoothed if asked.
      square_BL: squared log-partition, for the z-loss (PaLM).
      correct_BL: 1 where the target has the largest logit.
    """

    loss_BL: jax.Array
    square_BL: jax.Array
    correct_BL: jax.Array

    def sums(self, mask_BL: jax.Array) -> CrossEntropy:
        """Sums (B,) over the positions where the mask is true; others may hold anything finite."""
        return CrossEntropy(*(jnp.sum(jnp.where(mask_BL, x, 0), axis=1) for x in self))


def cross_entropy(
    logits_BLV: jax.Array, targets_BL: jax.Array, label_smoothing: float = 0.0
) -> CrossEntropy:
    """Cross-entropy of each position.

    Args:
      logits_BLV: any float type; computed with in float32.
      targets_BL: classes; one out of range gives a finite value without meaning.
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
    return CrossEntropy(partition_BL - target_BL, partition_BL**2, correct_BL.astype(jnp.float32))


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
    function: Callable[..., Any],
    chunk: int,
    mask_BL: jax.Array,
    *arrays: jax.Array,
    recompute: bool = True,
    skip: bool = False,
) -> Any:
    """Sum of `function(mask, *arrays)` over chunks of `chunk` positions of each row.

    The last chunk is padded with zeros, false in the mask. A batch sharded over rows or positions
    needs no communication: a chunk takes its share of each shard.

    Args:
      function: maps arrays (B, chunk, ...) to a pytree of float arrays, sums over masked positions.
      chunk: positions at a time; 0 or at least L: all at once, with neither `recompute` nor `skip`.
      mask_BL: positions that count.
      arrays: (B, L, ...).
      recompute: keep only the sum of a chunk; the backward pass runs `function` again.
      skip: skip chunks without masked positions, at run time. All devices have to agree: for
        batches on one device.
    """
    arrays = (mask_BL, *arrays)
    length = mask_BL.shape[1]
    if chunk <= 0 or length <= chunk:
        return function(*arrays)
    parts = sharding.num_shards("length")
    if length % parts or chunk % parts:
        parts = 1
    shard, share = length // parts, chunk // parts
    chunks = -(-shard // share)

    def cut(array: jax.Array) -> jax.Array:
        rows, rest = array.shape[0], array.shape[2:]
        fill = [(0, 0), (0, 0), (0, chunks * share - shard)] + [(0, 0)] * len(rest)
        array = jnp.pad(array.reshape(rows, parts, shard, *rest), fill)
        array = array.reshape(rows, parts, chunks, share, *rest)
        return jnp.moveaxis(array, 2, 0).reshape(chunks, rows, chunk, *rest)

    xs = tuple(map(cut, arrays))
    shapes = jax.eval_shape(function, *(x[0] for x in xs))

    def zeros(*_: jax.Array) -> Any:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def run(*arrays: jax.Array) -> Any:
        if skip:
            return jax.lax.cond(jnp.any(arrays[0]), function, zeros, *arrays)
        return function(*arrays)

    if recompute:
        run = jax.checkpoint(run, prevent_cse=False)

    def add(total: Any, arrays: tuple[jax.Array, ...]):
        return jax.tree.map(jnp.add, total, run(*arrays)), None

    return jax.lax.scan(add, zeros(), xs)[0]
