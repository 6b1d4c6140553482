"""Percentile bootstrap: how far a figure would move had other items of the same kind been drawn.

Items are resampled with replacement, all that belongs to one together (the errors and units of a
word error rate), and the figure is computed anew from each resample (Efron, 1979; for word error
rates Bisani and Ney, ICASSP 2004).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SUFFIX = "_ci95"
"""Of the figure that holds [lower, upper]."""
DECLARED = f"percentile bootstrap over items, {RESAMPLES} resamples, 95 %, seed 0"
_AT_ONCE = 1 << 20  # indices drawn together


def resamples(items: int, *, count: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Blocks of indices (some, items), `count` rows in all; the same for the same seed.

    Raises:
      ValueError: no items.
    """
    if items < 1 or count < 1:
        raise ValueError(f"{count} resamples of {items} items: expected at least 1 of each")
    rng = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // items)
    for first in range(0, count, block):
        yield rng.integers(0, items, (min(block, count - first), items))


def interval(values_R: np.ndarray, level: float = LEVEL) -> list[float] | None:
    """[lower, upper] of the figures of the resamples; NaN ones (of nothing) are left out."""
    known_R = values_R[~np.isnan(values_R)]
    if not len(known_R):
        return None
    low, high = np.quantile(known_R, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def ratio(
    numerators: Sequence[float], denominators: Sequence[float] | None = None, *, seed: int = 0
) -> list[float] | None:
    """Interval of sum(numerators) / sum(denominators), items resampled; None for no items.

    Args:
      numerators: one an item: errors, or 1 for right and 0 for wrong.
      denominators: one an item: units; None: 1 each, so that the figure is a mean.
      seed: of the resamples.
    """
    above_I = np.asarray(numerators, np.float64)
    below_I = np.ones_like(above_I) if denominators is None else np.asarray(denominators, float)
    if not len(above_I):
        return None
    values = []
    for index_RI in resamples(len(above_I), seed=seed):
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(above_I[index_RI].sum(axis=1) / below_I[index_RI].sum(axis=1))
    values_R = np.concatenate(values)
    return interval(np.where(np.isinf(values_R), np.nan, values_R))


def mean(values: Sequence[float], *, seed: int = 0) -> list[float] | None:
    """Interval of a mean over items."""
    return ratio(values, seed=seed)


# --- figures of items ---------------------------------------------------------------------------


def rate_figures(
    name: str, rows: Sequence[Mapping[str, Any]], errors: str = "errors", units: str = "units"
) -> dict[str, Any]:
    """`name`, the errors of all rows by their units, and its interval; None without units.

    Args:
      name: of the figure.
      rows: results of items; one without these keys has neither errors nor units.
      errors, units: the keys.
    """
    above, below = ([row.get(key, 0) for row in rows] for key in (errors, units))
    known = sum(below) > 0
    return {
        name: sum(above) / sum(below) if known else None,
        name + SUFFIX: ratio(above, below) if known else None,
    }


def macro_figures(
    name: str, rows: Sequence[Mapping[str, Any]], errors: str = "errors", units: str = "units"
) -> dict[str, Any]:
    """`name`, the mean of each row's own rate (rows without units left out), and its interval."""
    own = [row[errors] / row[units] for row in rows if row.get(units)]
    return mean_figures(name, own)


def share_figures(name: str, rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """`name`, the share of rows whose `key` is true (what lacks it is not), and its interval."""
    return mean_figures(name, [bool(row.get(key)) for row in rows])


def mean_figures(name: str, values: Sequence[float]) -> dict[str, Any]:
    """`name`, the mean, and its interval; None without values."""
    found = sum(values) / len(values) if len(values) else None
    return {name: found, name + SUFFIX: mean(values)}


def by_language(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], **keys: str
) -> dict[str, Any]:
    """`rate_figures` of each language that there is, under its name."""
    found: dict[str, Any] = {}
    for language, name in names.items():
        own = [row for row in rows if row["language"] == language]
        if own:
            found |= rate_figures(name, own, **keys)
    return found
