"""The best places to cut a sequence of units, and how to fill records with parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_OUTSIDE = 1e3  # cost per target length outside the bounds: a last resort only


def best_cuts(
    lengths_U: Sequence[float], costs_U: Sequence[float], *, target: float, low: float, high: float
) -> list[int]:
    """Group consecutive units into groups of even length with cheap cuts between them.

    Minimises, by dynamic programming, the sum over groups of ((length - target) / target)^2 plus
    the costs of the cuts. A group is shorter than `low` or longer than `high` only if the allowed
    cuts leave no choice; the caller decides about it.

    Takes time in the square of the number of units: 0.1 s for 3000.

    Args:
      lengths_U: length of each unit, 0 or more.
      costs_U: costs of a cut after each unit; math.inf forbids it. The last cost is ignored.
      target, low, high: lengths of a group.

    Returns:
      The end of each group: indices of units, increasing, the last one len(lengths_U).
    """
    count = len(lengths_U)
    if len(costs_U) != count:
        raise ValueError(f"{count} lengths and {len(costs_U)} costs, expected equal numbers")
    if not 0 <= low <= target <= high or target <= 0:
        raise ValueError(f"low {low}, target {target}, high {high}: expected them in this order")
    if not count:
        return []
    ends_V = np.concatenate([[0.0], np.cumsum(np.asarray(lengths_U, np.float64))])
    # best_V[i]: least cost of grouping the first i units, inf if no cut is allowed there.
    best_V = np.full(count + 1, math.inf)
    best_V[0] = 0.0
    previous_V = np.zeros(count + 1, np.int64)
    for end in range(1, count + 1):
        cost = 0.0 if end == count else costs_U[end - 1]
        if math.isinf(cost):
            continue
        length_V = ends_V[end] - ends_V[:end]
        outside_V = np.maximum(low - length_V, 0) + np.maximum(length_V - high, 0)
        total_V = best_V[:end] + ((length_V - target) / target) ** 2 + _OUTSIDE * outside_V / target
        start = int(np.argmin(total_V))
        best_V[end], previous_V[end] = total_V[start] + cost, start
    cuts, end = [], count
    while end:
        cuts.append(end)
        end = int(previous_V[end])
    return cuts[::-1]


def fill_records(
    seconds_P: Sequence[float], is_kept_P: Sequence[bool], *, limit: float
) -> tuple[list[tuple[int, int]], list[int]]:
    """Put consecutive parts into as few records of two or more parts as possible.

    A part that is not kept ends a record: records are continuous and shorter than `limit` seconds.
    A run of parts that is too long for a single record is divided evenly, so that no record is a
    crumb.

    Returns:
      ((first part, end) of each record, kept parts that are in no record), in order.
    """
    records, start = [], 0
    kept_P = [k and s < limit for k, s in zip(is_kept_P, seconds_P, strict=True)]
    for end in range(len(kept_P) + 1):
        if end < len(kept_P) and kept_P[end]:
            continue
        if end - start >= 2:
            records += _divide(seconds_P, start, end, limit)
        start = end + 1
    used = {part for first, end in records for part in range(first, end)}
    lone = [part for part, is_kept in enumerate(is_kept_P) if is_kept and part not in used]
    return records, lone


def _divide(seconds_P, start: int, end: int, limit: float) -> list[tuple[int, int]]:
    """Divide a run into the smallest number of even records within the limit."""
    total = sum(seconds_P[start:end])
    count = int(total // limit) + 1
    while True:
        groups, first, done = [], start, 0.0
        for number in range(count):
            goal, last, length = total * (number + 1) / count, first, 0.0
            while last < end and length + seconds_P[last] < limit:
                is_last = number == count - 1
                # A part goes to the record that its larger half falls into.
                if not is_last and last > first and done + length + seconds_P[last] / 2 > goal:
                    break
                length += seconds_P[last]
                last += 1
            groups.append((first, last))
            first, done = last, done + length
        if first == end or count > end - start:
            return [(a, b) for a, b in groups if b - a >= 2]
        count += 1
