"""Spike detection. Whole runs are in tests/integration/test_train.py and test_train_hosts.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.run import SpikeDetector


def detector(standard_deviations: float, window: int, values) -> SpikeDetector:
    losses = SpikeDetector(standard_deviations, window)
    for value in values:
        assert losses.check(value) is None
    return losses


def test_message_names_the_limit():
    losses = detector(4.0, 4, (1.0, 3.0, 1.0, 3.0))
    assert losses.check(5.9) is None  # mean 2, deviation 1: up to 6
    losses = detector(4.0, 4, (9.0, 1.0, 3.0, 1.0, 3.0))  # the first is forgotten
    message = losses.check(6.1)
    assert message.startswith("loss 6.1 after 4 of mean 2 and deviation 1: expected at most 6 ")
    assert "train.spike_standard_deviations = 4" in message


def test_no_spike_before_the_window_is_full_or_when_off():
    detector(2.0, 8, (1.0, 1.0, 1.0, 100.0))
    detector(0.0, 2, (1.0, 1.0, 100.0, 1e9))


def test_constant_losses_allow_a_small_rise():
    losses = detector(10.0, 3, (2.0, 2.0, 2.0))
    assert losses.check(2.019) is None
    assert detector(10.0, 3, (2.0, 2.0, 2.0)).check(2.021)


@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=20),
    st.floats(1, 20),
    st.floats(0, 1e4),
)
def test_limit_is_mean_plus_standard_deviations(before, spike, loss):
    losses = detector(1e9, len(before), before)
    losses._limit = spike
    mean, spread = np.mean(before), np.std(before)
    limit = mean + spike * max(spread, 1e-3 * mean)
    if abs(loss - limit) > 1e-9 * limit:
        assert (losses.check(loss) is not None) == (loss > limit)


@pytest.mark.parametrize("value", [float("inf"), 1e300])
def test_infinite_and_huge_losses_are_spikes(value):
    assert detector(5.0, 2, (1.0, 2.0)).check(value)
