"""Packing: nothing lost, nothing cut, little padding, and no example that sees another."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.data.packing import pack, to_rows
from ba_jax.data.sequence import Sequence


def sequence_of(length: int, seed: int) -> Sequence:
    rng = np.random.default_rng(seed)
    return Sequence(
        rng.integers(1, 1000, length).astype(np.int32),
        rng.integers(1, 64, (length, 3)).astype(np.int32),
        rng.random(length) < 0.5,
        rng.random(length) < 0.5,
    )


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 32), st.integers(1, 8))
def test_every_sequence_is_somewhere_exactly_once(lengths, row_length, rows):
    packing = pack(lengths, row_length, rows)
    everywhere = [*packing.left_over, *packing.too_long, *(i for r in packing.rows for i in r)]
    assert sorted(everywhere) == list(range(len(lengths)))
    assert packing.too_long == tuple(i for i, n in enumerate(lengths) if n > row_length)
    free = [row_length - sum(lengths[i] for i in row) for row in packing.rows]
    assert len(free) == rows and min(free) >= 0
    # What was left over would really not have fitted anywhere.
    assert all(lengths[i] > max(free) for i in packing.left_over)
    assert packing == pack(list(lengths), row_length, rows)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_rows_hold_the_sequences_unchanged(lengths):
    sequences = [sequence_of(n, i) for i, n in enumerate(lengths)]
    packing = pack(lengths, 16, 4)
    rows = to_rows(sequences, packing, 16, codebooks=3)
    for row, indices in enumerate(packing.rows):
        counts = collections.Counter(rows.segments_BL[row].tolist())
        for segment, index in enumerate(indices, 1):
            here = rows.segments_BL[row] == segment
            want = sequences[index]
            np.testing.assert_array_equal(rows.ids_BL[row, here], want.ids_L)
            np.testing.assert_array_equal(rows.codes_BLQ[row, here], want.codes_LQ)
            np.testing.assert_array_equal(rows.positions_BL[row, here], np.arange(len(want)))
            for got, target in (
                (rows.text_target_BL, want.text_target_L),
                (rows.audio_target_BL, want.audio_target_L),
            ):
                np.testing.assert_array_equal(got[row, here][1:], target[1:])
                assert not got[row, here][0]  # predicted from another example
            assert counts.pop(segment) == len(want)
        assert set(counts) <= {0}
        padding = rows.segments_BL[row] == 0
        for array in rows:
            assert not array[row, padding].any()
    assert rows.real_share == pytest.approx(
        sum(len(sequences[i]) for r in packing.rows for i in r) / rows.ids_BL.size
    )


def test_over_95_percent_of_positions_are_real_at_4096():
    """Utterances of 1 to 25 s with their text, and some long interleaved ones."""
    rng = np.random.default_rng(0)
    short = rng.lognormal(np.log(90), 0.7, 700).astype(int)
    long = rng.integers(600, 4000, 40)
    lengths = np.clip(np.concatenate([short, long]), 8, 4096).tolist()
    rows = int(sum(lengths) / 4096)
    packing = pack(lengths, 4096, rows)
    real = sum(lengths[i] for row in packing.rows for i in row)
    assert real / (rows * 4096) > 0.95


@pytest.mark.parametrize(
    "lengths, row_length, rows, message",
    [
        ([3, 0], 8, 1, r"lengths\[1\] = 0: expected at least 1"),
        ([3], 0, 1, "row_length = 0, rows = 1"),
        ([3], 8, 0, "row_length = 8, rows = 0"),
    ],
)
def test_illegal_sizes_are_errors(lengths, row_length, rows, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, row_length, rows)
