"""Cutting and filling: nothing is lost or reordered, bounds hold if possible."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.corpora.interleave.cuts import best_cuts, fill_records

lengths = st.lists(st.floats(0.0, 20.0), min_size=1, max_size=12)


def total_cost(units, costs, ends, *, target, low, high) -> float:
    cost, start = 0.0, 0
    for end in ends:
        length = sum(units[start:end])
        cost += ((length - target) / target) ** 2
        cost += 1e3 * (max(low - length, 0) + max(length - high, 0)) / target
        cost += costs[end - 1] if end < len(units) else 0.0
        start = end
    return cost


@given(lengths, st.data())
def test_cuts_are_the_best_of_all(units, data):
    cost = st.one_of(st.floats(0, 2), st.just(math.inf))
    costs = data.draw(st.lists(cost, min_size=len(units), max_size=len(units)))
    bounds = {"target": 5.0, "low": 2.0, "high": 8.0}
    ends = best_cuts(units, costs, **bounds)
    assert ends == sorted(set(ends)) and ends[-1] == len(units)
    assert not any(math.isinf(costs[end - 1]) for end in ends[:-1])
    places = [i for i in range(1, len(units)) if not math.isinf(costs[i - 1])]
    best = min(
        total_cost(units, costs, [*some, len(units)], **bounds)
        for count in range(len(places) + 1)
        for some in itertools.combinations(places, count)
    )
    assert total_cost(units, costs, ends, **bounds) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_cuts_are_even():
    assert best_cuts([1.0] * 12, [0.0] * 12, target=4, low=2, high=6) == [4, 8, 12]


def test_an_expensive_cut_is_avoided():
    costs = [0.0] * 12
    costs[3] = 5.0
    assert best_cuts([1.0] * 12, costs, target=4, low=2, high=6) == [3, 7, 12] or best_cuts(
        [1.0] * 12, costs, target=4, low=2, high=6
    ) == [5, 8, 12]


def test_without_allowed_cuts_the_sequence_stays_whole():
    assert best_cuts([9.0, 9.0, 9.0], [math.inf] * 3, target=4, low=2, high=6) == [3]
    assert best_cuts([], [], target=4, low=2, high=6) == []


@pytest.mark.parametrize(
    ("units", "costs", "bounds"),
    [
        ([1.0], [], {"target": 4, "low": 2, "high": 6}),
        ([1.0], [0.0], {"target": 1, "low": 2, "high": 6}),
        ([1.0], [0.0], {"target": 7, "low": 2, "high": 6}),
        ([1.0], [0.0], {"target": 0, "low": 0, "high": 6}),
    ],
)
def test_bad_arguments(units, costs, bounds):
    with pytest.raises(ValueError, match="expected"):
        best_cuts(units, costs, **bounds)


@given(
    st.lists(st.tuples(st.floats(0.1, 40.0), st.booleans()), max_size=60), st.floats(30.0, 300.0)
)
def test_records_are_continuous_and_short(parts, limit):
    seconds, is_kept = [s for s, _ in parts], [k for _, k in parts]
    records, lone = fill_records(seconds, is_kept, limit=limit)
    last = 0
    for start, end in records:
        assert last <= start and end - start >= 2
        assert all(is_kept[start:end])
        assert sum(seconds[start:end]) < limit
        last = end
    used = [part for start, end in records for part in range(start, end)]
    assert sorted(used + lone) == [part for part, kept in enumerate(is_kept) if kept]


@given(st.lists(st.floats(1.0, 15.0), min_size=2, max_size=120))
def test_no_part_of_a_run_is_left_out(seconds):
    records, lone = fill_records(seconds, [True] * len(seconds), limit=300.0)
    assert lone == []
    assert [i for start, end in records for i in range(start, end)] == list(range(len(seconds)))
    # The fewest possible records, up to one where parts do not divide evenly.
    assert len(records) <= sum(seconds) // 300 + 2


def test_records_of_a_run_are_even():
    assert fill_records([10.0] * 32, [True] * 32, limit=300)[0] == [(0, 16), (16, 32)]


def test_a_lost_part_ends_a_record():
    kept = [True, True, False, True, False, True, True, True]
    assert fill_records([5.0] * 8, kept, limit=300) == ([(0, 2), (5, 8)], [3])
    seconds = [5.0, 5.0, 300.0, 5.0, 5.0]
    assert fill_records(seconds, [True] * 5, limit=300) == ([(0, 2), (3, 5)], [2])
