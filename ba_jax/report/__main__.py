"""Write the report of a main job: `python -m ba_jax.report --runs=DIR --out=report`.

The output folder has index.html, summary.json and files/, and opens from disk, without a server and
without network. Figures that were not measured are marked so, and null in summary.json. An earlier
report is replaced as a whole.
"""

from __future__ import annotations

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

from ba_jax import cli
from ba_jax.report import page, targets
from ba_jax.report.runs import ReportError, read_runs

NAME = "ba_jax.report"
INDEX, SUMMARY = "index.html", "summary.json"


def write_report(runs_folder: Path, out: Path) -> dict[str, Any]:
    """Write the report of a folder of runs, print the headline table, return the summary.

    A failure keeps an earlier report unchanged.

    Raises:
      ReportError: malformed input, or an `out` that holds other files than a report's.
    """
    _check_out(out)
    runs = read_runs(runs_folder)
    summary, origin = targets.summarise(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "report"
        folder.mkdir()
        html = page.render(
            runs,
            summary,
            origin,
            page.Files(folder / page.FILES),
            written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            command=shlex.join(["python", "-m", NAME, f"--runs={runs_folder}", f"--out={out}"]),
        )
        # JSON may hold half a surrogate pair, which UTF-8 cannot.
        (folder / INDEX).write_text(html, encoding="utf-8", errors="replace")
        content = targets.summary_json(summary)
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        (folder / SUMMARY).write_text(text, encoding="utf-8")
        if out.exists():
            shutil.move(out, Path(temporary) / "before")
        os.replace(folder, out)
    print(targets.text_table(targets.headline(summary, origin), summary))
    return content


def _check_out(out: Path) -> None:
    """Raise `ReportError` unless `out` is new, empty, or an earlier report."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ReportError(f"{out}: exists and is not a folder; expected a folder to write")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    others = sorted(names - {INDEX, SUMMARY, page.FILES})
    if others or (names and not names >= {INDEX, SUMMARY}):
        shown = ", ".join((others or sorted(names))[:5])
        raise ReportError(f"{out}: holds {shown}; expected a new folder or an earlier report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, also if targets were missed, or 2 for an error of the input."""
    parser = cli.Parser(
        NAME, "Write the report of a main job: index.html, summary.json and files/."
    )
    parser.add_argument("--runs", type=cli.path, required=True, help="folder of runs and eval/")
    parser.add_argument("--out", type=cli.path, default=Path("report"), help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        write_report(arguments.runs, arguments.out)
    except (ReportError, OSError) as error:
        return cli.fail(NAME, error)
    print(f"\nreport: {arguments.out / INDEX}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
