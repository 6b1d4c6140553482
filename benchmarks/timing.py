"""Interleaved timing of several ways to compute a result, and its report.

Machines are noisy and thread pools of different libraries disturb each other, so absolute times
of separate runs cannot be compared. Here every round times each candidate once, in an order that
rotates, with a pause and an untimed call before each sample; ratios are taken within a round and
their median reported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

# Long enough for the thread pools' workers to stop spinning after their last task.
PAUSE_SECONDS = 0.01
# Shorter calls are repeated within a sample.
SAMPLE_SECONDS = 0.02
# With a larger share of other work on the CPUs a ratio is not meaningful.
QUIET = 0.05


def pin_threads(count: int) -> None:
    """Confine this process to `count` CPUs, which bounds the thread pools of all libraries.

    Pools are sized when a library is loaded, so the interpreter restarts itself, confined, if it
    has more CPUs.

    Raises:
      ValueError: fewer CPUs are available.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(allowed):
        raise ValueError(f"threads = {count}: expected 1 to {len(allowed)}, the number of CPUs")
    if count < len(allowed):
        os.sched_setaffinity(0, allowed[:count])
        os.execv(sys.executable, sys.orig_argv)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Cost of a call of each candidate, an entry per round.

    Attributes:
      seconds: name -> wall-clock seconds.
      cpu_seconds: name -> seconds of CPU, summed over the process's threads; it counts what idle
        workers spend spinning.
      others: share of the CPUs that was busy with other work meanwhile. If workers wait for each
        other by spinning (torch's OpenMP), even a small share can cost a factor.
    """

    seconds: Mapping[str, list[float]]
    cpu_seconds: Mapping[str, list[float]]
    others: float = 0.0

    def median(self, name: str) -> float:
        """Median wall-clock seconds of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, baseline: str, ours: str) -> tuple[float, float, float]:
        """(lower quartile, median, upper quartile) of seconds(baseline) / seconds(ours)."""
        return _quartiles(self.seconds[baseline], self.seconds[ours])

    def cpu_ratio(self, baseline: str, ours: str) -> float:
        """Median of cpu_seconds(baseline) / cpu_seconds(ours)."""
        return _quartiles(self.cpu_seconds[baseline], self.cpu_seconds[ours])[1]


def cpu_busy_seconds() -> float:
    """Seconds since boot that this process's CPUs were busy, or used by the host."""
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _quartiles(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios of each round."""
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
    busy_clock: Callable[[], float] = cpu_busy_seconds,
    sleep: Callable[[float], None] = time.sleep,
) -> Samples:
    """Time the candidates round by round until the budget is spent.

    Args:
      candidates: name -> call that returns when its result is complete.
      budget_seconds: budget of all rounds together, beyond `min_rounds`.
      min_rounds, max_rounds: bounds on the number of rounds.
      clock, cpu_clock, busy_clock, sleep: replaced in tests.

    Returns:
      The samples of every round.
    """
    repeats = {}
    for name, call in candidates.items():
        call()  # compiles, fills caches
        start = clock()
        call()
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(clock() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    busy_start, cpu_start = busy_clock(), cpu_clock()
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
            seconds[name].append((after - before) / repeats[name])
            cpu_seconds[name].append((cpu_after - cpu_before) / repeats[name])
    process = cpu_clock() - cpu_start
    available = (clock() - start) * len(os.sched_getaffinity(0))
    others = max(0.0, busy_clock() - busy_start - process) / available
    return Samples(seconds, cpu_seconds, others)


def environment(threads: int, size: str) -> dict:
    """Return the facts that the numbers depend on."""
    import jax
    import torch
    import transformers

    names = [
        line.split(":", 1)[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "threads": threads,
        "size": size,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table_line(cells: Sequence[str]) -> str:
    """Format cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def report(
    facts: Mapping,
    columns: Sequence[str],
    measured: Iterable[dict],
    table_row: Callable[[dict], str],
    legend: str,
    name: str,
    path: pathlib.Path | None,
) -> None:
    """Print a table row by row, and the rows that other processes disturbed.

    Args:
      facts: machine and options, see `environment`.
      columns: titles.
      measured: rows; "others" is the share of the CPUs that other processes used.
      table_row: formats a row as Markdown.
      legend: text below the table.
      name: key of a row's name.
      path: JSON file for facts and rows, or None.
    """
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    print(table_line(columns))
    print(table_line(["---"] * len(columns)), flush=True)
    rows = []
    for row in measured:
        rows.append(row)
        print(table_row(row), flush=True)
    print(legend)
    busy = sorted({row[name] for row in rows if row["others"] > QUIET})
    if busy:
        print(f"NOT MEANINGFUL, other processes used over {QUIET:.0%} of the CPUs: {busy}")
    if path:
        path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
