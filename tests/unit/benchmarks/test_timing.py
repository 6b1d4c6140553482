"""Interleaved timing, with a clock that only the candidates move."""

import json
import os
import time

import pytest

from benchmarks import timing


class Clock:
    """Time that passes when a candidate runs or the harness sleeps."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def candidate(self, name: str, seconds: float, slowdown_from: int | None = None):
        calls = 0

        def call():
            nonlocal calls
            calls += 1
            self.log.append(name)
            slow = slowdown_from is not None and calls > slowdown_from
            self.now += seconds * (3 if slow else 1)

        return call


def interleave(clock, candidates, budget, **kwargs):
    kwargs = {"busy_clock": clock} | kwargs
    return timing.interleave(
        candidates, budget, clock=clock, cpu_clock=clock, sleep=clock.sleep, **kwargs
    )


def test_ratio_of_two_speeds():
    clock = Clock()
    candidates = {"slow": clock.candidate("slow", 0.06), "fast": clock.candidate("fast", 0.02)}
    samples = interleave(clock, candidates, 2.0)
    row = samples.compare("slow", "fast")
    assert row["ratio_quartiles"] == pytest.approx([3.0, 3.0])
    assert row["ratio"] == row["cpu_ratio"] == pytest.approx(3.0)
    assert samples.compare("slow", "fast", scale=2)["ratio"] == pytest.approx(6.0)
    assert samples.median("slow") == pytest.approx(0.06)


def test_median_forgives_a_disturbed_round_and_quartiles_show_a_slowdown():
    clock = Clock()
    # From the 12th call on, ours takes three times as long: about half of the rounds.
    candidates = {"base": clock.candidate("base", 0.1), "ours": clock.candidate("ours", 0.1, 12)}
    samples = interleave(clock, candidates, 0.0, min_rounds=10, max_rounds=10)
    assert samples.compare("base", "ours")["ratio_quartiles"] == pytest.approx([1 / 3, 1.0])
    clock = Clock()
    candidates = {"base": clock.candidate("base", 0.1), "ours": clock.candidate("ours", 0.1, 20)}
    samples = interleave(clock, candidates, 0.0, min_rounds=10, max_rounds=10)
    assert samples.compare("base", "ours")["ratio"] == pytest.approx(1.0)


def test_rounds_follow_the_budget_and_its_bounds():
    def rounds(budget: float, **bounds) -> int:
        clock = Clock()
        samples = interleave(clock, {"a": clock.candidate("a", 0.5)}, budget, **bounds)
        return len(samples.seconds["a"])

    assert rounds(0.0, min_rounds=4) == 4
    assert rounds(1e9, max_rounds=7) == 7
    # A round is a pause, an untimed call and a timed one: 1.01 s.
    assert rounds(10.0, min_rounds=1) == 10


def test_short_calls_are_repeated_within_a_sample():
    clock = Clock()
    interleave(clock, {"a": clock.candidate("a", 0.002)}, 0.0, min_rounds=1)
    timed = len(clock.log) - 3  # two before the rounds, one untimed in the round
    assert timed == round(timing.SAMPLE_SECONDS / 0.002)


def test_candidates_take_turns_in_going_first():
    clock = Clock()
    candidates = {name: clock.candidate(name, 1.0) for name in "abc"}
    interleave(clock, candidates, 0.0, min_rounds=3)
    in_rounds = clock.log[6:]
    assert "".join(in_rounds[::2]) == "abcbcacab"


def test_other_work_on_the_cpus_is_reported():
    clock = Clock()
    cpus = len(os.sched_getaffinity(0))

    def everyone():
        return clock.now * (1 + cpus / 4)

    samples = interleave(clock, {"a": clock.candidate("a", 1.0)}, 0.0, busy_clock=everyone)
    assert samples.others == pytest.approx(0.25)
    samples = interleave(clock, {"a": clock.candidate("a", 1.0)}, 0.0)
    assert samples.others == pytest.approx(0.0)


def test_the_busy_clock_advances_with_work():
    before = timing.cpu_busy_seconds()
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    assert timing.cpu_busy_seconds() - before >= 0.05


@pytest.mark.parametrize("count", [0, 10**6])
def test_pin_threads_refuses_a_count_it_cannot_give(count):
    with pytest.raises(ValueError, match=str(count)):
        timing.pin_threads(count)


def test_pin_threads_leaves_a_fitting_process_alone():
    before = os.sched_getaffinity(0)
    timing.pin_threads(len(before))
    assert os.sched_getaffinity(0) == before


def test_the_report_has_a_row_for_each_comparison_and_names_disturbed_ones(tmp_path, capsys):
    rows = [
        {"name": name, "aim": aim, "ratio": 2.0, "ratio_quartiles": [1.5, 2.5]}
        | {"cpu_ratio": 1.0, "rounds": 3, "others": others}
        for name, aim, others in (("quiet", 4, 0.0), ("busy", None, 0.5))
    ]
    columns = {"name": "{name}", "aim": timing.format_aim, **timing.COLUMNS}
    path = tmp_path / "numbers.json"
    timing.report({"cpu": "tiny"}, columns, rows, "legend", path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "| quiet | >= 4 | **2.00** (1.50-2.50, 3 rounds) | 1.00 | 0% |"
    assert lines[5].startswith("| busy |  |") and lines[-1].endswith("['busy']")
    assert json.loads(path.read_text()) == {"environment": {"cpu": "tiny"}, "rows": rows}
