"""Rates over a window, by a clock that the test moves."""

from __future__ import annotations

import jax
import pytest

from ba_jax.metrics.chips import peak_flops
from ba_jax.metrics.throughput import Throughput


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(throughput: Throughput, clock: Clock, *seconds: float, tokens=10.0, flops=0.0) -> None:
    for passed in seconds:
        clock.now += passed
        throughput.step({"tokens": tokens, "audio_seconds": 3.0, "examples": 2.0}, flops)


def test_amounts_over_the_time_of_the_window(clock):
    throughput = Throughput(skip=0, clock=clock)
    throughput.start()
    run(throughput, clock, 1.0, 2.0, 1.0)
    assert throughput.report() == {
        "throughput/tokens_per_second": 30 / 4,
        "throughput/audio_seconds_per_second": 9 / 4,
        "throughput/examples_per_second": 6 / 4,
        "throughput/step_seconds": 4 / 3,
    }
    assert throughput.report() == {}  # a window of its own
    run(throughput, clock, 5.0, tokens=50.0)
    assert throughput.report()["throughput/tokens_per_second"] == 10.0


def test_compilation_is_left_out(clock):
    throughput = Throughput(skip=2, clock=clock)
    throughput.start()
    run(throughput, clock, 60.0)
    assert throughput.report() == {}
    run(throughput, clock, 60.0, 2.0)
    assert throughput.report()["throughput/step_seconds"] == 2.0


def test_evaluation_is_left_out(clock):
    throughput = Throughput(skip=0, clock=clock)
    throughput.start()
    run(throughput, clock, 1.0)
    clock.now += 1000  # evaluation, checkpoint
    throughput.start()
    run(throughput, clock, 3.0)
    assert throughput.report()["throughput/step_seconds"] == 2.0


def test_mfu_is_flops_over_what_the_devices_could_do(clock):
    throughput = Throughput(devices=4, peak=100.0, skip=1, clock=clock)
    throughput.start()
    run(throughput, clock, 9.0, 2.0, 3.0, flops=500.0)
    assert throughput.report()["throughput/mfu"] == 1000 / (5 * 4 * 100)
    run(throughput, clock, 1.0)
    assert "throughput/mfu" not in throughput.report()  # no FLOPs are known


def test_every_process_feeds_its_share(clock):
    throughput = Throughput(devices=4, peak=100.0, processes=2, skip=0, clock=clock)
    throughput.start()
    run(throughput, clock, 2.0, flops=50.0)
    rates = throughput.report()
    assert rates["throughput/tokens_per_second"] == 2 * 10 / 2
    assert rates["throughput/mfu"] == 2 * 50 / (2 * 4 * 100)
    assert rates["throughput/step_seconds"] == 2.0


def test_no_mfu_without_a_peak(clock):
    throughput = Throughput(peak=peak_flops(jax.devices("cpu")[0]), skip=0, clock=clock)
    throughput.start()
    run(throughput, clock, 1.0, flops=1e9)
    assert "throughput/mfu" not in throughput.report()


def test_bad_use_is_refused(clock):
    with pytest.raises(ValueError, match="devices 0"):
        Throughput(devices=0)
    with pytest.raises(ValueError, match="peak 0"):
        Throughput(peak=0)
    with pytest.raises(RuntimeError, match="before start"):
        Throughput(clock=clock).step({})
