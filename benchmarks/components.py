"""Time each component against a PyTorch counterpart on the same CPU, as ratios.

    python -m benchmarks.components                         # everything, about 5 minutes
    python -m benchmarks.components --only head,vocoder --seconds 30 --json out.json

Both sides hold the same weights (random, carried over by the conversion tables), get the same
inputs, and their results are compared before the clock starts. A ratio is the baseline's time
over ours: above 1 we are faster. Aims are printed beside the measurements and not enforced.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import torch

from benchmarks import cases, timing

LEGEND = """
ratio: median over rounds of the baseline's wall-clock time over ours; CPU ratio: the same for CPU
times; apart: largest difference between the two sides' results over their peak (codes and tokens:
share that differs); others: share of the CPUs that other processes used meanwhile."""
COLUMNS = (
    "component",
    "size",
    "baseline, ms",
    "ours, ms",
    "ratio (quartiles)",
    "aim",
    "CPU ratio",
    "apart",
    "others",
)


def measure(case: cases.Case, seconds: float) -> list[dict]:
    """Time a case and return its rows."""
    samples = timing.interleave(case.candidates, seconds)
    rows = []
    for comparison in case.comparisons:
        low, ratio, high = samples.ratio(comparison.baseline, comparison.ours)
        rows.append(
            {
                "component": comparison.label,
                "size": case.sizes,
                "baseline_ms": 1e3 * samples.median(comparison.baseline),
                "ours_ms": 1e3 * samples.median(comparison.ours),
                "ratio": ratio,
                "ratio_quartiles": [low, high],
                "cpu_ratio": samples.cpu_ratio(comparison.baseline, comparison.ours),
                "others": samples.others,
                "rounds": len(samples.seconds[comparison.ours]),
                "aim": comparison.aim,
                "difference": case.difference,
            }
        )
    return rows


def table_row(row: dict) -> str:
    """Format a row of the Markdown table."""
    low, high = row["ratio_quartiles"]
    aim = "" if row["aim"] is None else f">= {row['aim']:g}"
    cells = (
        row["component"],
        row["size"],
        f"{row['baseline_ms']:.3g}",
        f"{row['ours_ms']:.3g}",
        f"**{row['ratio']:.2f}** ({low:.2f}-{high:.2f}, {row['rounds']} rounds)",
        aim,
        f"{row['cpu_ratio']:.2f}",
        f"{row['difference']:.1e}",
        f"{row['others']:.0%}",
    )
    return timing.table_line(cells)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.components",
        description="Times each component against a PyTorch counterpart on this CPU.",
    )
    parser.add_argument("--size", choices=sorted(cases.SIZES), default="medium")
    parser.add_argument(
        "--only",
        default=",".join(cases.CASES),
        help=f"comma-separated, from {', '.join(cases.CASES)}",
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="timing budget per component")
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=min(2, cpus), help="CPUs, for both sides")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    options = parser.parse_args(argv)
    options.only = [name.strip() for name in options.only.split(",")]
    unknown = [name for name in options.only if name not in cases.CASES]
    if unknown:
        parser.error(f"--only: no component {unknown}; expected names from {list(cases.CASES)}")
    if not 1 <= options.threads <= cpus:
        parser.error(f"--threads {options.threads}: expected 1 to {cpus}, the number of CPUs")
    return options


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Yield the rows of each component."""
    for name in options.only:
        yield from measure(cases.CASES[name](cases.SIZES[options.size]), options.seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(argv)
    timing.pin_threads(options.threads)
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(options.threads)
    facts = timing.environment(options.threads, options.size)
    timing.report(facts, COLUMNS, run(options), table_row, LEGEND, "component", options.json)


if __name__ == "__main__":
    sys.exit(main())
