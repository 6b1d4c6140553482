"""Packing: nothing lost, nothing cut, little padding, and no example that sees another."""

from __future__ import annotations

import collections
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.data import packing as packing_module
from ba_jax.data.packing import pack, pack_many, to_rows
from ba_jax.data.sequence import TokenSequence


def sequence_of(length: int, seed: int) -> TokenSequence:
    rng = np.random.default_rng(seed)
    return TokenSequence(
        rng.integers(1, 1000, length).astype(np.int32),
        rng.integers(1, 64, (length, 3)).astype(np.int32),
        rng.random(length) < 0.5,
        rng.random(length) < 0.5,
    )


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 32))
def test_every_sequence_is_in_one_row(lengths, row_length):
    rows, too_long = pack(lengths, row_length)
    assert sorted([*too_long, *(i for row in rows for i in row)]) == list(range(len(lengths)))
    assert too_long == [i for i, n in enumerate(lengths) if n > row_length]
    assert all(0 < sum(lengths[i] for i in row) <= row_length for row in rows)
    assert (rows, too_long) == pack(list(lengths), row_length)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_rows_hold_the_sequences_unchanged(lengths):
    sequences = [sequence_of(n, i) for i, n in enumerate(lengths)]
    packed, _ = pack(lengths, 16)
    rows = to_rows(sequences, packed, 16, codebooks=3)
    for row, indices in enumerate(packed):
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
    assert rows.real_share == pytest.approx(sum(lengths) / rows.ids_BL.size)


def speech_lengths(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of utterances (log-normal, median 6 s) and positions with text and prompt."""
    rng = np.random.default_rng(0)
    seconds = np.clip(rng.lognormal(np.log(6), 0.7, count), 0.5, 30)
    return seconds, (seconds * 12.5).astype(int) + (seconds * 4).astype(int) + 12


def no_loads(lengths_N: np.ndarray) -> np.ndarray:
    return np.zeros((len(lengths_N), 0), int)


@pytest.mark.parametrize("row_length, least", [(512, 0.98), (1024, 0.98), (4096, 0.99)])
def test_padding_of_a_whole_dataset(row_length, least):
    _, lengths_N = speech_lengths(6000)
    lengths_N = np.minimum(lengths_N, row_length)
    rows, too_long = pack_many(lengths_N, row_length, loads_NK=no_loads(lengths_N))
    assert not len(too_long)
    assert lengths_N.sum() / (len(rows) * row_length) > least


def test_padding_of_a_whole_dataset_with_chunks_in_buckets():
    """Rows of 4096 with 40 chunks of up to 6 s, 16 of up to 15 s, 6 of up to 30 s."""
    seconds, lengths_N = speech_lengths(6000)
    loads_NK = np.stack([seconds > 0, seconds > 6, seconds > 15], axis=1).astype(int)
    capacity = np.array([62, 22, 6])
    rows, too_long = pack_many(lengths_N, 4096, loads_NK=loads_NK, capacity_K=capacity)
    assert not len(too_long)
    assert all((loads_NK[row].sum(0) <= capacity).all() for row in rows)
    assert lengths_N.sum() / (len(rows) * 4096) > 0.95


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), max_size=80),
    st.integers(1, 32),
    st.integers(1, 3),
    st.integers(1, 16),
)
def test_nothing_is_lost_in_windows(items, row_length, capacity, window):
    lengths_N = np.asarray([n for n, _ in items], np.int64)
    loads_NK = np.asarray([k for _, k in items], np.int64).reshape(-1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_module, "_WINDOW", window)
        rows, too_long = pack_many(lengths_N, row_length, loads_NK=loads_NK, capacity_K=[capacity])
    assert sorted([*too_long, *(i for row in rows for i in row)]) == list(range(len(items)))
    assert [i for i, (n, k) in enumerate(items) if n > row_length or k > capacity] == list(too_long)
    for row in rows:
        assert len(row)
        assert lengths_N[row].sum() <= row_length and loads_NK[row].sum() <= capacity


@pytest.mark.parametrize(
    "kind", ["speech", "half of a row and more", "all of a row, or more than half"]
)
def test_windows_stay_short_with_any_lengths(kind, monkeypatch):
    """Rows that never fill must not be packed again and again with ever more others."""
    rng = np.random.default_rng(0)
    lengths_N = {
        "speech": speech_lengths(20_000)[1],
        "half of a row and more": rng.integers(2100, 3000, 20_000),
        "all of a row, or more than half": np.where(rng.random(20_000) < 0.5, 4096, 2500),
    }[kind]
    sizes = []

    def spy(lengths, *args, **options):
        sizes.append(len(lengths))
        return pack(lengths, *args, **options)

    monkeypatch.setattr(packing_module, "pack", spy)
    begin = time.process_time()
    rows, _ = pack_many(lengths_N, 4096, loads_NK=no_loads(lengths_N))
    assert time.process_time() - begin < 5  # 0.1 to 0.4 s on one core
    assert max(sizes) <= 2 * 1024
    assert sorted(np.concatenate(rows)) == list(range(20_000))


def test_neighbours_in_a_dataset_do_not_share_rows():
    lengths_N = np.full(4000, 100)
    rows, _ = pack_many(lengths_N, 1000, loads_NK=no_loads(lengths_N))
    assert np.mean([np.abs(np.diff(row)).min() == 1 for row in rows]) < 0.1


@pytest.mark.parametrize(
    "lengths, row_length, message",
    [([3, 0], 8, r"lengths \[3, 0\]: expected at least 1"), ([3], 0, "row_length = 0")],
)
def test_illegal_sizes_are_errors(lengths, row_length, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, row_length)
