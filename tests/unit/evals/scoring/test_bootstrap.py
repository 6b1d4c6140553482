"""Intervals against closed forms and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.evals.scoring import bootstrap


def test_an_accuracy_is_as_uncertain_as_a_binomial():
    """100 items, 30 right: a standard error of sqrt(0.3 * 0.7 / 100)."""
    low, high = bootstrap.mean_interval([1] * 30 + [0] * 70)
    error = math.sqrt(0.3 * 0.7 / 100)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.015)
    assert high == pytest.approx(0.3 + 1.96 * error, abs=0.015)


def test_a_rate_is_recomputed_from_each_resample():
    rng = np.random.default_rng(1)
    errors, units = rng.integers(0, 5, 23), rng.integers(1, 12, 23)
    rates = sorted(
        sum(int(errors[i]) for i in row) / sum(int(units[i]) for i in row)
        for row in np.random.default_rng(0).integers(0, 23, (bootstrap.RESAMPLES, 23))
    )
    low, high = bootstrap.ratio_interval(errors, units)
    # between the order statistics around the 2.5th and the 97.5th percentile
    assert rates[24] <= low <= rates[25] and rates[974] <= high <= rates[975]


def test_pairs_stay_together():
    """Errors and units in proportion: no resample has another rate."""
    assert bootstrap.ratio_interval([1, 2, 3], [10, 20, 30]) == pytest.approx([0.1, 0.1])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
)
def test_intervals_are_reproducible_and_between_the_extremes(pairs):
    errors, units = zip(*pairs, strict=True)
    interval = bootstrap.ratio_interval(errors, units)
    assert interval == bootstrap.ratio_interval(errors, units)
    if sum(units) == 0:
        assert interval is None
    elif all(units):
        low, high = interval
        rates = [e / u for e, u in pairs]
        assert min(rates) - 1e-12 <= low <= high <= max(rates) + 1e-12


def test_no_items_and_a_single_item():
    assert bootstrap.mean_interval([]) is None
    assert bootstrap.ratio_interval([1], [4]) == [0.25, 0.25]
    assert bootstrap.interval(lambda index_I: 3.0, range(1), vectorized=False) == [3, 3]


def test_batches_change_nothing(monkeypatch):
    values = np.random.default_rng(1).random(50)
    interval = bootstrap.mean_interval(values)
    monkeypatch.setattr(bootstrap, "_BATCH", 1000)
    assert bootstrap.mean_interval(values) == interval


def test_figures_of_rows():
    rows = [
        {"language": "en", "errors": 1, "units": 2, "right": True},
        {"language": "en", "errors": 0, "units": 8, "right": False},
        {"language": "zh", "errors": 3, "units": 5},
        {"language": "zh", "errors": 2, "units": 0},
    ]
    assert bootstrap.rate_figures("wer", rows)["wer"] == 6 / 15
    assert bootstrap.macro_figures("macro", rows)["macro"] == pytest.approx((0.5 + 0 + 0.6) / 3)
    assert bootstrap.share_figures("share", rows, "right")["share"] == 0.25
    figures = bootstrap.language_figures(rows, {"en": "a", "zh": "b", "de": "c"})
    assert figures["a"] == 0.1 and figures["b"] == 1.0 and "c" not in figures
    low, high = figures["a_ci95"]
    assert 0 <= low < 0.1 < high <= 0.5
    assert bootstrap.rate_figures("none", rows[3:]) == {"none": None, "none_ci95": None}
    assert bootstrap.mean_figures("none", []) == {"none": None, "none_ci95": None}
