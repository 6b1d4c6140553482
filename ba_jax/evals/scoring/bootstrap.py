"""Figures of items, with percentile bootstrap intervals.

Items are resampled with replacement, everything of an item together (the errors and units of a word
error rate), and the figure is computed anew from each resample (Efron, 1979; for word error rates
Bisani and Ney, ICASSP 2004).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

RESAMPLES = 1000
LEVEL = 0.95
SUFFIX = "_ci95"
"""Suffix of the figure that holds [lower, upper]."""
DECLARED = f"percentile bootstrap over items, {RESAMPLES} resamples, 95 %, seed 0"
_BATCH = 1 << 20  # indices drawn together


def interval(
    statistic: Callable[..., Any], *samples: Sequence[Any], vectorized: bool = True
) -> list[float] | None:
    """Return the interval [lower, upper] of `statistic(*samples)`; None for no items.

    Args:
      statistic: function of the resampled arrays; with `vectorized` it takes their `axis`.
        Resamples whose figure is not finite are left out.
      samples: sequences with an entry per item, resampled together.
      vectorized: as of `scipy.stats.bootstrap`.
    """
    items = len(samples[0])
    if not items:
        return None
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # SciPy warns of figures that are not finite
        if items > 1:
            values_R = scipy.stats.bootstrap(
                samples,
                statistic,
                n_resamples=RESAMPLES,
                batch=max(1, _BATCH // items),
                vectorized=vectorized,
                paired=True,
                method="percentile",
                rng=np.random.default_rng(0),
            ).bootstrap_distribution
        else:  # SciPy refuses a single item, whose resamples are all equal
            axis = {"axis": -1} if vectorized else {}
            values_R = np.array([statistic(*map(np.asarray, samples), **axis)])
    finite_R = values_R[np.isfinite(values_R)]
    if not len(finite_R):
        return None
    low, high = np.quantile(finite_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float]
) -> list[float] | None:
    """Return the interval of sum(numerators) / sum(denominators), an entry of each per item."""
    arrays = (np.asarray(values, np.float64) for values in (numerators, denominators))
    return interval(_ratio, *arrays)


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """Return the interval of a mean over items."""
    return ratio_interval(values, np.ones(len(values)))


def _ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int) -> np.ndarray:
    return numerators.sum(axis=axis) / denominators.sum(axis=axis)


# --- figures of items ---------------------------------------------------------------------------


def mean_figures(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return `name`, the mean, and its interval; None without values."""
    mean = sum(values) / len(values) if len(values) else None
    return {name: mean, name + SUFFIX: mean_interval(values)}


def share_figures(name: str, rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return `name`, the share of rows whose `key` is true, and its interval."""
    return mean_figures(name, [bool(row.get(key)) for row in rows])


def rate_figures(
    name: str, rows: Sequence[Mapping[str, Any]], errors: str = "errors", units: str = "units"
) -> dict[str, Any]:
    """Return `name`, errors per unit pooled over all rows, and its interval; None without units.

    A row without the keys `errors` and `units` has neither.
    """
    numerators, denominators = ([row.get(key, 0) for row in rows] for key in (errors, units))
    if sum(denominators) <= 0:
        return {name: None, name + SUFFIX: None}
    return {
        name: sum(numerators) / sum(denominators),
        name + SUFFIX: ratio_interval(numerators, denominators),
    }


def macro_figures(
    name: str, rows: Sequence[Mapping[str, Any]], errors: str = "errors", units: str = "units"
) -> dict[str, Any]:
    """Return `name`, the mean rate of the rows that have units, and its interval."""
    return mean_figures(name, [row[errors] / row[units] for row in rows if row.get(units)])


def language_figures(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    figures: Callable[..., dict[str, Any]] = rate_figures,
    **keys: str,
) -> dict[str, Any]:
    """Return `figures(name, rows, **keys)` of each language that has rows, by `names`."""
    results: dict[str, Any] = {}
    for language, name in names.items():
        if selected := [row for row in rows if row["language"] == language]:
            results |= figures(name, selected, **keys)
    return results
