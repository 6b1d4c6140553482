"""`python -m ba_jax.report --runs=DIR --out=report`: index.html, summary.json and files/.

The folder opens from disk, without a server and without network. What was not measured is shown as
such and is null in summary.json. A report that is there already is replaced whole.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ba_jax.report import page, targets
from ba_jax.report.runs import ReportError, read_runs

USER_ERROR = 2
INDEX, SUMMARY = "index.html", "summary.json"


def write_report(runs_folder: Path, out: Path) -> dict[str, Any]:
    """Writes the report of a folder of runs; returns what summary.json holds.

    Prints the headline table. A failure leaves an earlier report as it was.

    Raises:
      ReportError: input that is malformed, or an `out` that holds something else than a report.
    """
    _check_out(out)
    runs = read_runs(runs_folder)
    summary, origin = targets.summarise(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        made = Path(temporary) / "report"
        made.mkdir()
        html = page.render(
            runs,
            summary,
            origin,
            page.Files(made / page.FILES),
            written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            command=shlex.join(
                ["python", "-m", "ba_jax.report", f"--runs={runs_folder}", f"--out={out}"]
            ),
        )
        # JSON may hold half a surrogate pair, which UTF-8 cannot.
        (made / INDEX).write_text(html, encoding="utf-8", errors="replace")
        content = targets.summary_json(summary)
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        (made / SUMMARY).write_text(text, encoding="utf-8")
        if out.exists():
            shutil.move(out, Path(temporary) / "before")
        os.replace(made, out)
    print(targets.text_table(targets.headline(summary, origin), summary))
    return content


def _check_out(out: Path) -> None:
    """Only an earlier report, or an empty folder, may be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ReportError(f"{out}: exists and is not a folder; expected a folder to write")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    others = sorted(held - {INDEX, SUMMARY, page.FILES})
    if others or (held and not held >= {INDEX, SUMMARY}):
        shown = ", ".join((others or sorted(held))[:5])
        raise ReportError(f"{out}: holds {shown}; expected a new folder or an earlier report")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, also when targets were missed, or 2 for an error of the input."""
    parser = argparse.ArgumentParser(
        prog="python -m ba_jax.report",
        description="Writes the report of a main job: index.html, summary.json and files/.",
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of runs and eval/")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        write_report(arguments.runs, arguments.out)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    print(f"\nreport: {arguments.out / INDEX}")
    return 0
