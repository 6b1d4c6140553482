"""Interleaved timing of several ways to compute a result, and its report.

Machines are noisy and thread pools of different libraries disturb each other, so absolute times
of separate runs cannot be compared. Here every round times each candidate once, in an order that
rotates, with a pause and an untimed call before each sample; ratios are taken within a round and
their median reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ba_jax import cli

# Long enough for the thread pools' workers to stop spinning after their last task.
PAUSE_SECONDS = 0.01
# Shorter calls are repeated within a sample.
SAMPLE_SECONDS = 0.02
# With a larger share of other work on the CPUs a ratio is not meaningful.
QUIET = 0.05
# Columns of `report` for the values of `Samples.compare`.
RATIO = "**{ratio:.2f}** ({ratio_quartiles[0]:.2f}-{ratio_quartiles[1]:.2f}, {rounds} rounds)"
COLUMNS = {"ratio (quartiles)": RATIO, "CPU ratio": "{cpu_ratio:.2f}", "others": "{others:.0%}"}


def format_aim(row: dict) -> str:
    """Format the least ratio hoped for, if a row has one."""
    return "" if row["aim"] is None else f">= {row['aim']:g}"


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

    def compare(self, baseline: str, ours: str, scale: float = 1.0) -> dict:
        """Compare two candidates; ratios are the baseline's cost over ours, times `scale`."""

        def quartiles(costs: Mapping[str, list[float]]) -> list[float]:
            ratios = scale * np.divide(costs[baseline], costs[ours])
            return np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()

        low, ratio, high = quartiles(self.seconds)
        return {
            "ratio": ratio,
            "ratio_quartiles": [low, high],
            "cpu_ratio": quartiles(self.cpu_seconds)[1],
            "rounds": len(self.seconds[ours]),
            "others": self.others,
        }


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


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Add the options that the timed benchmarks share."""
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--seconds", type=cli.at_least(0.0), default=seconds, help="timing budget of a case"
    )
    parser.add_argument("--json", type=cli.path, help="file for the numbers")
    parser.add_argument(
        "--threads",
        type=int,
        choices=range(1, cpus + 1),
        default=min(2, cpus),
        help="CPUs, for both sides",
    )


def prepare(threads: int) -> dict:
    """Confine this process to some CPUs; return the facts that the numbers depend on."""
    pin_threads(threads)
    import jax
    import torch
    import transformers

    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(threads)
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "threads": threads,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table_line(cells: Iterable[str]) -> str:
    """Format cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def report(
    facts: Mapping,
    columns: Mapping[str, str | Callable[[dict], str]],
    measured: Iterable[dict],
    legend: str,
    path: pathlib.Path | None,
) -> None:
    """Print a table row by row, and the rows that other processes disturbed.

    Args:
      facts: machine and options, see `prepare`.
      columns: title -> format string of a row's values, or function of a row.
      measured: rows; "others" is the share of the CPUs that other processes used.
      legend: text below the table.
      path: JSON file for facts and rows, or None.
    """
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    print(table_line(columns))
    print(table_line(["---"] * len(columns)), flush=True)
    rows, busy = [], []
    for row in measured:
        cells = [c(row) if callable(c) else c.format(**row) for c in columns.values()]
        print(table_line(cells), flush=True)
        rows.append(row)
        if row["others"] > QUIET:
            busy.append(cells[0])
    print(legend)
    if busy:
        print(f"NOT MEANINGFUL, other processes used over {QUIET:.0%} of the CPUs: {busy}")
    if path:
        path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
