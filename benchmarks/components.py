"""Time each component against a PyTorch counterpart on the same CPU, as ratios.

    python -m benchmarks.components                         # everything, about 5 minutes
    python -m benchmarks.components --only head,vocoder --seconds 30 --json out.json

Both sides hold the same weights (random, carried over by the conversion tables), get the same
inputs, and their results are compared before the clock starts. A ratio is the baseline's time
over ours: above 1 we are faster. Aims are printed beside the measurements and not enforced.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from ba_jax import cli
from ba_jax.config import expected
from benchmarks import cases, timing

LEGEND = """
ratio: median over rounds of the baseline's wall-clock time over ours; CPU ratio: the same for CPU
times; apart: largest difference between the two sides' results over their peak (codes and tokens:
share that differs); others: share of the CPUs that other processes used meanwhile."""
COLUMNS = {
    "component": "{component}",
    "size": "{size}",
    "baseline, ms": "{baseline_ms:.3g}",
    "ours, ms": "{ours_ms:.3g}",
    "aim": timing.format_aim,
    "apart": "{difference:.1e}",
    **timing.COLUMNS,
}


def measure(case: cases.Case, seconds: float) -> Iterator[dict]:
    """Time a case and yield its rows."""
    samples = timing.interleave(case.candidates, seconds)
    for comparison in case.comparisons:
        yield {
            "component": comparison.label,
            "size": case.sizes,
            "baseline_ms": 1e3 * samples.median(comparison.baseline),
            "ours_ms": 1e3 * samples.median(comparison.ours),
            "aim": comparison.aim,
            "difference": case.difference,
            **samples.compare(comparison.baseline, comparison.ours),
        }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser("benchmarks.components", __doc__.splitlines()[0])
    names = ",".join(cases.CASES)
    parser.add_argument("--size", choices=sorted(cases.SIZES), default="medium")
    parser.add_argument("--only", default=names, help=f"comma-separated, from {names}")
    timing.add_arguments(parser, seconds=15.0)
    options = parser.parse_args(argv)
    options.only = [name.strip() for name in options.only.split(",")]
    for name in set(options.only) - set(cases.CASES):
        parser.error(f"--only: component {expected(name, cases.CASES)}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(argv)
    facts = timing.prepare(options.threads) | {"size": options.size}
    rows = (
        row
        for name in options.only
        for row in measure(cases.CASES[name](cases.SIZES[options.size]), options.seconds)
    )
    timing.report(facts, COLUMNS, rows, LEGEND, options.json)


if __name__ == "__main__":
    main()
