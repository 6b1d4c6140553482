"""Intervals against closed forms and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.evals.scoring import bootstrap


def test_an_accuracy_is_as_uncertain_as_a_binomial():
    """100 items, 30 right: a standard error of sqrt(0.3 * 0.7 / 100)."""
    low, high = bootstrap.mean([1] * 30 + [0] * 70)
    error = math.sqrt(0.3 * 0.7 / 100)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.015)
    assert high == pytest.approx(0.3 + 1.96 * error, abs=0.015)


def test_equal_to_a_loop_over_the_same_resamples():
    rng = np.random.default_rng(1)
    errors, units = rng.integers(0, 5, 23), rng.integers(1, 12, 23)
    indices = np.concatenate(list(bootstrap.resamples(23)))
    assert indices.shape == (bootstrap.RESAMPLES, 23)
    rates = []
    for row in indices:
        rates.append(sum(int(errors[i]) for i in row) / sum(int(units[i]) for i in row))
    rates.sort()
    low, high = bootstrap.ratio(errors, units)
    # between the order statistics around the 2.5th and the 97.5th percentile
    assert rates[24] <= low <= rates[25] and rates[974] <= high <= rates[975]


def test_pairs_stay_together():
    """Errors and units in proportion: no resample has another rate."""
    assert bootstrap.ratio([1, 2, 3], [10, 20, 30]) == pytest.approx([0.1, 0.1])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_seeded_ordered_and_between_the_extremes(pairs, seed):
    errors, units = zip(*pairs, strict=True)
    found = bootstrap.ratio(errors, units, seed=seed)
    assert found == bootstrap.ratio(errors, units, seed=seed)
    if sum(units) == 0:
        assert found is None
    elif all(units):
        low, high = found
        own = [e / u for e, u in pairs]
        assert min(own) - 1e-12 <= low <= high <= max(own) + 1e-12


def test_no_items():
    assert bootstrap.mean([]) is None
    with pytest.raises(ValueError, match="1000 resamples of 0 items"):
        next(bootstrap.resamples(0))


def test_many_items_are_drawn_in_blocks(monkeypatch):
    whole = np.concatenate(list(bootstrap.resamples(50)))
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 1000)
    blocks = list(bootstrap.resamples(50))
    assert len(blocks) == 50
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


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
    found = bootstrap.by_language(rows, {"en": "a", "zh": "b", "de": "c"})
    assert found["a"] == 0.1 and found["b"] == 1.0 and "c" not in found
    low, high = found["a_ci95"]
    assert 0 <= low < 0.1 < high <= 0.5
    assert bootstrap.rate_figures("none", rows[3:]) == {"none": None, "none_ci95": None}
    assert bootstrap.mean_figures("none", []) == {"none": None, "none_ci95": None}
