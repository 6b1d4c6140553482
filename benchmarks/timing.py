"""Interleaved timing of several ways to compute the same thing.

Machines are noisy and thread pools of different libraries disturb each other, so absolute times
of separate runs say little. Here every round times each candidate once, in an order that rotates,
with a pause and an untimed call before each sample; ratios are taken within a round and their
median reported.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping

# Long enough for the thread pools' workers to stop spinning after their last task.
PAUSE_SECONDS = 0.01
# A sample shorter than this is repeated within itself.
SAMPLE_SECONDS = 0.02


def pin_threads(count: int) -> None:
    """Confines this process to `count` CPUs, which bounds every library's thread pool alike.

    Pools are sized when a library is loaded, so the interpreter starts itself anew, confined, if
    it has more CPUs than that.

    Raises:
      ValueError: if there are fewer.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(allowed):
        raise ValueError(f"threads = {count}: expected 1 to {len(allowed)}, the CPUs there are")
    if count < len(allowed):
        os.sched_setaffinity(0, allowed[:count])
        os.execv(sys.executable, sys.orig_argv)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a call of each candidate cost, one entry a round, all lists equally long.

    Attributes:
      seconds: name -> wall-clock seconds.
      cpu_seconds: name -> seconds of CPU, summed over the process's threads; less disturbed by
        other processes, but it counts what idle workers spend spinning.
    """

    seconds: Mapping[str, list[float]]
    cpu_seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median wall-clock seconds of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, baseline: str, ours: str) -> tuple[float, float, float]:
        """(lower quartile, median, upper quartile) of seconds(baseline) / seconds(ours)."""
        return _quartiles(self.seconds[baseline], self.seconds[ours])

    def cpu_ratio(self, baseline: str, ours: str) -> float:
        """Median of cpu_seconds(baseline) / cpu_seconds(ours)."""
        return _quartiles(self.cpu_seconds[baseline], self.cpu_seconds[ours])[1]


def _quartiles(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios taken round by round."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    if len(ratios) == 1:
        return (ratios[0],) * 3
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    budget_seconds: float,
    *,
    min_rounds: int = 5,
    max_rounds: int = 200,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    sleep: Callable[[float], None] = time.sleep,
) -> Samples:
    """Times the candidates round by round until the budget is spent.

    Args:
      candidates: name -> call that returns only when its result is there.
      budget_seconds: for all rounds together; `min_rounds` are run whatever they cost.
      min_rounds, max_rounds: bounds on the number of rounds.
      clock, cpu_clock, sleep: replaced in tests.

    Returns:
      The samples of every round.
    """
    repeats = {}
    for name, call in candidates.items():
        call()  # compiles, fills caches
        start = clock()
        call()
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(clock() - start, 1e-7)))
    samples = Samples({name: [] for name in candidates}, {name: [] for name in candidates})
    names = list(candidates)
    start = clock()
    for number in range(max_rounds):
        if number >= min_rounds and clock() - start >= budget_seconds:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            sleep(PAUSE_SECONDS)
            candidates[name]()
            before, cpu_before = clock(), cpu_clock()
            for _ in range(repeats[name]):
                candidates[name]()
            cpu_after, after = cpu_clock(), clock()
            samples.seconds[name].append((after - before) / repeats[name])
            samples.cpu_seconds[name].append((cpu_after - cpu_before) / repeats[name])
    return samples
