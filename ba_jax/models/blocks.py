"""What a frame may depend on when a segment is decoded piece by piece, and what a piece remembers.

A segment's 50 Hz frames fall into blocks. Attention that is causal sees a frame's past, the flow's
sees all of the frame's block too; both may be kept to a number of frames before the block. The same
`Blocks` given to the decoding of a whole segment and of its pieces makes their results equal: a
piece is a block, its keys and values are attended to together with those of the blocks before.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CODE_FRAMES = 4
"""50 Hz frames of a frame of codes."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a segment is cut.

    Attributes:
      sizes: 50 Hz frames of the first blocks; the last one repeats. Multiples of 4.
      lookback: frames before its block that a frame attends to; None: all.
      lead: frames of codes that the first statistics of the audio decoder's norms are taken over;
        after them a frame's statistics are those of everything up to it. None: those of the whole
        segment, as the reference has them, for which all of it must be known.
      norms: mean and mean square that each norm usually sees (both upsamplings', then the refine
        net's), counted into the running statistics as `norm_weight` frames of codes before the
        first; () is none.

    Raises:
      ValueError: sizes that are not positive multiples of 4, a look-back shorter than a block, a
        lead that is not within the first block, or norms without a lead, or not of every norm.
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
                f"norms led in by {self.lead} frames of codes: expected 1 to those of the first "
                f"block, {self.sizes[0] // CODE_FRAMES}"
            )

        if self.norms and (self.lead is None or self.norm_weight < 0):
            raise ValueError(
                f"norms with a lead of {self.lead} and a weight of {self.norm_weight}: expected a"
                " number of frames, and at least 0"
            )

    def prior(self, norm: int, frames: int) -> tuple[float, float, float] | None:
        """What counts into the statistics of a norm with so many frames a frame of codes.

        Raises:
          ValueError: no numbers for this norm.
        """
        if not self.norms:
            return None
        if norm >= len(self.norms):
            raise ValueError(f"norms of {len(self.norms)} layers: expected one for each")
        return (*self.norms[norm], self.norm_weight * frames)

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
        """(B, 1, T, T) booleans: the key is valid, not past what the query may see, nor before."""
        start_T, end_T = self.bounds(frames)
        key = np.arange(frames)[None, :]
        seen = key <= np.arange(frames)[:, None] if causal else key < end_T[:, None]
        if self.lookback is not None:
            seen = seen & (key >= start_T[:, None] - self.lookback)
        valid = jnp.arange(frames)[None, :] < lengths_B[:, None]
        return jnp.asarray(seen)[None, None] & valid[:, None, None, :]


class KeyValue(NamedTuple):
    """Keys and values of P earlier frames, (..., B, P, H, D); frame t lies in slot t modulo P."""

    key: jax.Array
    value: jax.Array


class Place(NamedTuple):
    """Where the pieces of a batch lie in their segments.

    Attributes:
      start_B: 50 Hz frames before the piece, int32: a block's first frame.
      ends_B: the segment ends with this piece; any other piece is a whole block.
      active_B: rows that have a piece; the others keep what they remember.
    """

    start_B: jax.Array
    ends_B: jax.Array
    active_B: jax.Array


def piece_mask(
    start_B: jax.Array, capacity: int, lengths_B: jax.Array, frames: int, *, causal: bool
) -> jax.Array:
    """(B, 1, T, P + T) booleans: which remembered and own frames a piece's frames attend to."""
    before = jnp.arange(capacity)[None, :] < start_B[:, None]
    before = jnp.broadcast_to(before[:, None, :], (len(start_B), frames, capacity))
    own = jnp.arange(frames)[None, None, :] < lengths_B[:, None, None]
    own = jnp.broadcast_to(own, (len(start_B), frames, frames))
    if causal:
        own = own & jnp.tril(jnp.ones((frames, frames), bool))[None]
    return jnp.concatenate([before, own], axis=2)[:, None]


def no_key_values(
    shape: tuple[int, ...], batch: int, capacity: int, heads: int, head_dim: int, dtype: Any
) -> KeyValue:
    """Empty ones, (*shape, batch, capacity, heads, head_dim)."""
    zeros = jnp.zeros((*shape, batch, capacity, heads, head_dim), dtype)
    return KeyValue(zeros, zeros)


def begin(past: Any, start_B: jax.Array) -> Any:
    """What rows remember, nothing for those whose segment begins.

    Keys and values stay: no frame of a segment that begins attends to them.
    """
    return _choose(start_B > 0, past, jax.tree.map(jnp.zeros_like, past), lambda kept, _: kept)


def advance(past: Any, new: Any, place: Place, lengths_B: jax.Array) -> Any:
    """What rows remember after a piece of `lengths_B` frames.

    Args:
      past: tree of `KeyValue`, and of arrays (..., B, frames, channels) or (B,). The batch may
        hold several copies of the rows, one copy after the other.
      new: the same tree after the piece, its `KeyValue`s those of the piece's frames alone.
      place, lengths_B: of the piece.
    """

    def remember(old: KeyValue, own: KeyValue) -> KeyValue:
        batch, capacity = old.key.shape[-4:-2]
        frames = own.key.shape[-3]
        frame = jnp.arange(frames)[None, :]
        kept = place.active_B[:, None] & (frame < lengths_B[:, None])
        # Frames that are not kept go to a slot that is not there.
        slot = jnp.where(kept, (place.start_B[:, None] + frame) % capacity, capacity)
        slot = jnp.tile(slot, (batch // len(slot), 1))
        row = jnp.arange(batch)[:, None]
        return KeyValue(
            old.key.at[..., row, slot, :, :].set(own.key, mode="drop"),
            old.value.at[..., row, slot, :, :].set(own.value, mode="drop"),
        )

    return _choose(place.active_B, new, past, lambda own, old: remember(old, own))


def _choose(which_B: jax.Array, first: Any, second: Any, key_values: Any) -> Any:
    """Of two trees, rows of the first where `which_B`; `key_values` does `KeyValue`s."""

    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, KeyValue):
            return key_values(a, b)
        axis = max(a.ndim - 3, 0)
        which = jnp.tile(which_B, a.shape[axis] // len(which_B))
        shape = [1] * a.ndim
        shape[axis] = a.shape[axis]
        return jnp.where(which.reshape(shape), a, b)

    return jax.tree.map(choose, first, second, is_leaf=lambda x: isinstance(x, KeyValue))
