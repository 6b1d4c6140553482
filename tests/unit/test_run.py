"""A loss that jumps; of signals see tests/integration/test_train.py and test_train_hosts.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.run import Losses


def fed(spike: float, window: int, values) -> Losses:
    losses = Losses(spike, window)
    for value in values:
        assert losses.jump(value) is None
    return losses


def test_a_jump_is_told_with_its_limit():
    losses = fed(4.0, 4, (1.0, 3.0, 1.0, 3.0))
    assert losses.jump(5.9) is None  # mean 2, deviation 1: up to 6
    losses = fed(4.0, 4, (9.0, 1.0, 3.0, 1.0, 3.0))  # the first is forgotten
    message = losses.jump(6.1)
    assert message.startswith("loss 6.1 after 4 of mean 2 and deviation 1: expected at most 6 ")
    assert "train.spike_standard_deviations = 4" in message


def test_it_waits_for_a_full_window_and_can_be_off():
    fed(2.0, 8, (1.0, 1.0, 1.0, 100.0))
    fed(0.0, 2, (1.0, 1.0, 100.0, 1e9))


def test_losses_that_are_all_the_same_allow_for_a_little():
    losses = fed(10.0, 3, (2.0, 2.0, 2.0))
    assert losses.jump(2.019) is None
    assert fed(10.0, 3, (2.0, 2.0, 2.0)).jump(2.021)


@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=20),
    st.floats(1, 20),
    st.floats(0, 1e4),
)
def test_the_limit_is_that_of_the_window(before, spike, loss):
    losses = fed(1e9, len(before), before)
    losses._spike = spike
    mean, spread = np.mean(before), np.std(before)
    limit = mean + spike * max(spread, 1e-3 * mean)
    if abs(loss - limit) > 1e-9 * limit:
        assert (losses.jump(loss) is not None) == (loss > limit)


@pytest.mark.parametrize("value", [float("inf"), 1e300])
def test_values_beyond_everything(value):
    assert fed(5.0, 2, (1.0, 2.0)).jump(value)
