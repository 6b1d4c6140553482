"""Streaming: decode a segment piece by piece, with the same result as decoding it whole.

A segment's 50 Hz frames fall into blocks. Causal attention sees a frame's past, the flow's
attention also sees the rest of the frame's block; both may be limited to a number of frames before
the block. A whole segment and its pieces give equal results under the same `Blocks`.

Every piece is one block. A layer that looks back (attention, a causal convolution, running
statistics) reads the collection `cache` and writes what the piece adds into `cache_update`:

    output, changed = model.apply(
        {**variables, "cache": cache}, ..., blocks=blocks, pieces=pieces, mutable=[UPDATE]
    )
    cache = update_cache(cache, changed[UPDATE], pieces, lengths_B)

Layers do not write the cache themselves: inside a scan over layers that would copy all of it for
every piece, while `update_cache` writes the new frames in place.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

CODE_FRAMES = 4
"""50 Hz frames of a code frame."""

CACHE, UPDATE = "cache", "cache_update"
"""Collections: state before a piece, and the piece's contribution to it."""

SCAN_AXES = {CACHE: 0, UPDATE: 0}
"""`variable_axes` of a scan over layers, or over the flow's steps, that each have a cache."""


class RunningNorm(NamedTuple):
    """Statistics of a norm that cannot wait for the whole segment, static.

    Attributes:
      lead: frames that the first statistics are taken over; later ones are over all frames so far.
      prior: (mean, mean square, weight in frames), counted as frames before the first; None: none.
    """

    lead: int
    prior: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Division of a segment into blocks, and the frames that a block depends on.

    Attributes:
      sizes: 50 Hz frames of the first blocks; the last one repeats. Multiples of 4.
      lookback: frames before its block that a frame attends to; None: all.
      lead: code frames that the first statistics of the audio decoder's norms are taken over;
        later frames use the statistics of all frames so far. None: statistics of the whole
        segment, as in the reference, which requires all of it.
      norms: typical (mean, mean square) of each norm (both upsamplings', then the refine net's),
        counted into the running statistics as `norm_weight` code frames before the first; () uses
        none.

    Raises:
      ValueError: sizes that are not positive multiples of 4, a look-back shorter than a block, a
        lead outside the first block, or norms without a lead.
    """

    sizes: tuple[int, ...]
    lookback: int | None = None
    lead: int | None = None
    norms: tuple[tuple[float, float], ...] = ()
    norm_weight: float = 0.0

    def __post_init__(self):
        if not self.sizes or any(size < 1 or size % CODE_FRAMES for size in self.sizes):
            raise ValueError(f"blocks of {self.sizes} frames: expected multiples of {CODE_FRAMES}")
        if self.lookback is not None and self.lookback < max(self.sizes):
            raise ValueError(
                f"look-back of {self.lookback} frames: expected at least a block, {max(self.sizes)}"
            )
        if self.lead is not None and not 1 <= self.lead <= self.sizes[0] // CODE_FRAMES:
            raise ValueError(
                f"norms with a lead of {self.lead} code frames: expected 1 to the length of the"
                f" first block, {self.sizes[0] // CODE_FRAMES}"
            )
        if self.norms and (self.lead is None or self.norm_weight < 0):
            raise ValueError(
                f"norms with a lead of {self.lead} and a weight of {self.norm_weight}: expected a"
                " number of frames, and at least 0"
            )

    def running_norm(self, norm: int, lead: int, frames: int) -> RunningNorm | None:
        """Statistics of norm number `norm`; None: those of the whole segment.

        Args:
          norm: index into `norms`.
          lead: frames of the norm's input that `self.lead` code frames are.
          frames: frames of the norm a code frame.

        Raises:
          ValueError: `norms` without an entry for this norm.
        """
        if self.lead is None:
            return None
        if not self.norms:
            return RunningNorm(lead)
        if norm >= len(self.norms):
            raise ValueError(f"norms of {len(self.norms)} layers: expected one for each")
        return RunningNorm(lead, (*self.norms[norm], self.norm_weight * frames))

    def size(self, number: int) -> int:
        """Frames of block `number`."""
        return self.sizes[min(number, len(self.sizes) - 1)]

    def bounds(self, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """First frame, and frame past the end, of the block of each frame: two int32 (frames,)."""
        edges = np.cumsum((0, *self.sizes))
        more = max(0, -(-(frames - edges[-1]) // self.sizes[-1]))
        edges = np.append(edges, edges[-1] + self.sizes[-1] * np.arange(1, more + 1))
        number = np.searchsorted(edges, np.arange(frames), side="right") - 1
        return edges[number].astype(np.int32), edges[number + 1].astype(np.int32)

    def mask(self, lengths_B: jax.Array, frames: int, *, causal: bool) -> jax.Array:
        """(B, 1, T, T) booleans: the key is valid and inside the range that the query sees."""
        start_T, end_T = self.bounds(frames)
        key = np.arange(frames)[None, :]
        seen = key <= np.arange(frames)[:, None] if causal else key < end_T[:, None]
        if self.lookback is not None:
            seen = seen & (key >= start_T[:, None] - self.lookback)
        valid = jnp.arange(frames)[None, :] < lengths_B[:, None]
        return jnp.asarray(seen)[None, None] & valid[:, None, None, :]


class Pieces(NamedTuple):
    """Positions of a batch's pieces in their segments.

    Attributes:
      start_B: 50 Hz frames before the piece, int32: the first frame of a block.
      ends_B: the segment ends with this piece; any other piece is a whole block.
      active_B: rows that have a piece; the cache of the others does not change.
    """

    start_B: jax.Array
    ends_B: jax.Array
    active_B: jax.Array


# --- inside a layer -------------------------------------------------------------------------------


def read_cache(
    module: nn.Module, name: str, shape: tuple[int, ...], dtype: Any, pieces: Pieces
) -> jax.Array:
    """A layer's cached array (B, ...) of this shape; zeros where the segment starts."""
    if not module.has_variable(CACHE, name):
        return jnp.zeros(shape, dtype)
    cached = module.get_variable(CACHE, name)
    continues = (pieces.start_B > 0).reshape((-1,) + (1,) * (cached.ndim - 1))
    return jnp.where(continues, cached, 0)


def write_cache(module: nn.Module, name: str, value: jax.Array) -> None:
    """Set a layer's cached array (B, frames, channels) to `value`, see `update_cache`."""
    module.put_variable(UPDATE, name, value)


def extend_keys_values(
    module: nn.Module, k_BTHD: jax.Array, v_BTHD: jax.Array, mask_B1TT: jax.Array, pieces: Pieces
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prepend the cached frames; (k_BPHD, v_BPHD, mask_B1TP). Adds the new frames to the cache.

    Frame t of a segment lies in slot t modulo the capacity. Slots that hold frames of an earlier
    segment are masked.
    """
    module.put_variable(UPDATE, "key", k_BTHD)
    module.put_variable(UPDATE, "value", v_BTHD)
    if not module.has_variable(CACHE, "key"):
        return k_BTHD, v_BTHD, mask_B1TT
    keys = jnp.concatenate([module.get_variable(CACHE, "key"), k_BTHD], axis=1)
    values = jnp.concatenate([module.get_variable(CACHE, "value"), v_BTHD], axis=1)
    capacity = keys.shape[1] - k_BTHD.shape[1]
    filled = jnp.arange(capacity)[None, :] < pieces.start_B[:, None]
    filled = jnp.broadcast_to(filled[:, None, None], (*mask_B1TT.shape[:3], capacity))
    return keys, values, jnp.concatenate([filled, mask_B1TT], axis=3)


# --- around the model -----------------------------------------------------------------------------


def _holds_frames(path: tuple[Any, ...]) -> bool:
    return path[-1].key in ("key", "value")


def empty_cache(update: Any, capacity: int) -> Any:
    """A cache of segments that have not started.

    Args:
      update: shapes of a `cache_update` collection, by `jax.eval_shape`.
      capacity: frames whose keys and values are kept.
    """

    def zeros(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        shape = leaf.shape
        if _holds_frames(path):
            shape = (*shape[:-3], capacity, *shape[-2:])
        return jnp.zeros(shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(zeros, update)


def update_cache(cache: Any, update: Any, pieces: Pieces, lengths_B: jax.Array) -> Any:
    """The cache after a piece.

    Args:
      cache, update: trees of the same structure. Keys and values are (..., B, frames, heads,
        head_dim), all other arrays (..., B, frames, channels). The batch may hold several copies of
        the rows, one after the other (guidance).
      pieces: the pieces that gave the update.
      lengths_B: their valid 50 Hz frames.
    """

    def merge(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        if not _holds_frames(path):
            active = jnp.tile(pieces.active_B, old.shape[-3] // len(lengths_B))
            active = active.reshape((1,) * (old.ndim - 3) + (-1, 1, 1))
            return jnp.where(active, new, old)
        batch, capacity = old.shape[-4:-2]
        frame = jnp.arange(new.shape[-3])[None, :]
        valid = pieces.active_B[:, None] & (frame < lengths_B[:, None])
        # Invalid frames get a slot past the capacity and are dropped.
        slot = jnp.where(valid, (pieces.start_B[:, None] + frame) % capacity, capacity)
        slot = jnp.tile(slot, (batch // len(slot), 1))
        row = jnp.arange(batch)[:, None]
        return old.at[..., row, slot, :, :].set(new, mode="drop")

    return jax.tree_util.tree_map_with_path(merge, cache, update)
