"""Packing of token sequences into rows of fixed length, padded at their ends.

Each example has its own segment id and positions from 0: attention never crosses examples (see
`packed_mask` in `ba_jax.models.llm`), and RoPE does not depend on the place in the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ba_jax.data.sequence import TokenSequence

_WINDOW = 1024  # sequences packed together, beside at most as many that wait from before
_FULL = 0.97  # rows below this share are packed again with the next window


class PackedRows(NamedTuple):
    """Rows of fixed length for the model; all arrays are (rows, L) but the codes.

    Attributes:
      ids_BL: int32, 0 at padding.
      codes_BLQ: int32, 0 without audio.
      positions_BL: int32, from 0 within each example.
      segments_BL: int32, 1.. within a row, 0 at padding.
      text_target_BL, audio_target_BL: as in `TokenSequence`, false at padding. An example's first
        position is never a target: the position before belongs to another example.
    """

    ids_BL: np.ndarray
    codes_BLQ: np.ndarray
    positions_BL: np.ndarray
    segments_BL: np.ndarray
    text_target_BL: np.ndarray
    audio_target_BL: np.ndarray

    @property
    def real_share(self) -> float:
        """Share of positions that hold a token."""
        return float((self.segments_BL > 0).mean())


def pack(
    lengths: Sequence[int],
    row_length: int,
    *,
    loads_NK: np.ndarray | None = None,
    capacity_K: Sequence[int] = (),
) -> tuple[list[list[int]], list[int]]:
    """Assign sequences to rows: longest first, each to the fullest row that has room (best fit).

    A pure function of its arguments; equal lengths keep their order, as do the sequences of a row.
    `loads_NK` and `capacity_K` are K other resources that a sequence takes and a row has; integers.

    Returns:
      (indices of each row's sequences, indices of sequences that no row can hold).
    """
    needs = np.asarray(lengths, np.int64).reshape(-1, 1)
    if row_length < 1 or (len(needs) and needs.min() < 1):
        raise ValueError(f"row_length = {row_length}, lengths {lengths}: expected at least 1")
    if loads_NK is not None:
        needs = np.concatenate([needs, np.asarray(loads_NK, np.int64)], axis=1)
    capacity = np.asarray([row_length, *capacity_K], np.int64)
    fits = (needs <= capacity).all(axis=1)
    room = np.tile(capacity, (len(needs), 1))
    rows: list[list[int]] = []
    for i in sorted(np.flatnonzero(fits), key=lambda i: -lengths[i]):
        open_rows = room[: len(rows) + 1]  # the last one is empty
        has_room = (open_rows >= needs[i]).all(axis=1)
        row = int(np.where(has_room, open_rows[:, 0], row_length + 1).argmin())
        room[row] -= needs[i]
        if row == len(rows):
            rows.append([])
        rows[row].append(int(i))
    return [sorted(row) for row in rows], np.flatnonzero(~fits).tolist()


def pack_many(
    lengths_N: np.ndarray, row_length: int, *, loads_NK: np.ndarray, capacity_K: Sequence[int] = ()
) -> tuple[list[np.ndarray], np.ndarray]:
    """Assign any number of sequences to as many rows as they need, in linear time, see `pack`.

    A pure function of its arguments. Sequences are shuffled once, so that neighbours in a dataset
    do not share a row, and packed in windows. `loads_NK` may have no columns.
    """
    order = np.random.default_rng(0).permutation(len(lengths_N))
    needs_NK = np.column_stack([lengths_N, loads_NK])
    whole_K = np.asarray([row_length, *capacity_K])
    rows, too_long = [], [np.zeros(0, np.int64)]
    waiting = np.zeros(0, np.int64)
    for start in range(0, len(order), _WINDOW):
        window = np.concatenate([waiting, order[start : start + _WINDOW]])
        packed, unpacked = pack(
            lengths_N[window], row_length, loads_NK=loads_NK[window], capacity_K=capacity_K
        )
        too_long.append(window[unpacked])
        groups = [window[row] for row in packed]
        # A row whose loads have reached their capacity is as full as one without free positions.
        fills = [float((needs_NK[group].sum(0) / whole_K).max()) for group in groups]
        again, places = [], 0 if start + _WINDOW >= len(order) else _WINDOW
        for at in np.argsort(fills, kind="stable"):
            if fills[at] < _FULL and len(groups[at]) <= places:
                again.append(groups[at])
                places -= len(groups[at])
            else:
                rows.append(groups[at])
        waiting = np.concatenate([np.zeros(0, np.int64), *again])
    return rows, np.sort(np.concatenate(too_long))


def to_rows(
    sequences: Sequence[TokenSequence],
    rows: Sequence[Sequence[int]],
    row_length: int,
    codebooks: int,
) -> PackedRows:
    """Write sequences to arrays; `rows` are the indices of each row's, `codebooks` is Q."""
    shape = (len(rows), row_length)
    packed = PackedRows(
        ids_BL=np.zeros(shape, np.int32),
        codes_BLQ=np.zeros((*shape, codebooks), np.int32),
        positions_BL=np.zeros(shape, np.int32),
        segments_BL=np.zeros(shape, np.int32),
        text_target_BL=np.zeros(shape, bool),
        audio_target_BL=np.zeros(shape, bool),
    )
    for row, indices in enumerate(rows):
        start = 0
        for segment, index in enumerate(indices, 1):
            sequence = sequences[index]
            here = slice(start, start + len(sequence))
            packed.ids_BL[row, here] = sequence.ids_L
            packed.codes_BLQ[row, here] = sequence.codes_LQ
            packed.positions_BL[row, here] = np.arange(len(sequence))
            packed.segments_BL[row, here] = segment
            packed.text_target_BL[row, here] = sequence.text_target_L
            packed.audio_target_BL[row, here] = sequence.audio_target_L
            packed.text_target_BL[row, start] = packed.audio_target_BL[row, start] = False
            start += len(sequence)
    return packed
