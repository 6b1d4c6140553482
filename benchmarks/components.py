"""Each component against a PyTorch counterpart, on the same CPU, in one run, as ratios.

    python -m benchmarks.components                         # everything, some 5 minutes
    python -m benchmarks.components --only head,vocoder --seconds 30 --json out.json

Both sides hold the same weights (random, carried over by the conversion tables), get the same
inputs, and their results are compared before the clock starts. A ratio is the baseline's time
over ours: above 1 we are faster. Nothing is gated: aims stand beside what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import torch
import transformers

from benchmarks import cases, timing

# Above this share of other work on the CPUs a ratio says little.
QUIET = 0.05
LEGEND = """
ratio: median over rounds of the baseline's wall-clock time over ours; CPU ratio: the same of CPU
time; apart: largest difference between the two sides' results over their peak (codes and tokens:
share that differs); others: share of the CPUs that other processes took meanwhile."""
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
    """Times a case and returns its rows."""
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


def table_line(cells: Sequence[str]) -> str:
    """Cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table_row(row: dict) -> str:
    """A row of the Markdown table."""
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
    return table_line(cells)


def environment(threads: int, size: str) -> dict:
    """What the numbers depend on."""
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.components",
        description="Times each component against a PyTorch counterpart on this CPU.",
    )
    parser.add_argument("--size", choices=sorted(cases.SIZES), default="medium")
    parser.add_argument(
        "--only",
        default=",".join(cases.CASES),
        help=f"comma-separated, of {', '.join(cases.CASES)}",
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="timing budget a component")
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=min(2, cpus), help="CPUs, for both sides")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers there")
    options = parser.parse_args(argv)
    options.only = [name.strip() for name in options.only.split(",")]
    unknown = [name for name in options.only if name not in cases.CASES]
    if unknown:
        parser.error(f"--only: no component {unknown}; expected some of {list(cases.CASES)}")
    if not 1 <= options.threads <= cpus:
        parser.error(f"--threads {options.threads}: expected 1 to {cpus}, the CPUs there are")
    return options


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Rows, one component after another."""
    for name in options.only:
        yield from measure(cases.CASES[name](cases.SIZES[options.size]), options.seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the Markdown table and, if asked, writes the JSON file."""
    options = parse(argv)
    timing.pin_threads(options.threads)
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(options.threads)
    facts = environment(options.threads, options.size)
    report(facts, COLUMNS, run(options), table_row, LEGEND, "component", options.json)


def report(
    facts: Mapping,
    columns: Sequence[str],
    measured: Iterable[dict],
    table_row: Callable[[dict], str],
    legend: str,
    name: str,
    path: pathlib.Path | None,
) -> None:
    """Prints a table row by row as it is measured, and which rows other work spoilt.

    Args:
      facts: about machine and options.
      columns: titles.
      measured: rows; "others" is the share of the CPUs that other processes took.
      table_row: a row as Markdown.
      legend: below the table.
      name: key of what a row measures.
      path: of a JSON file with all of it; None: none.
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
        print(f"NOT MEANINGFUL, other processes took over {QUIET:.0%} of the CPUs: {busy}")
    if path:
        path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
