"""Tables of one evaluation, beside its files: report.md, and index.html with players."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ba_jax.report import charts, page
from ba_jax.report.runs import ReportError, read_evaluation

MARKDOWN, INDEX = "report.md", "index.html"
_LOW, _HIGH = "_ci95/low", "_ci95/high"
_ASIDE = ("seconds/",)


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure, and the interval around it where there is one."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


class _InPlace:
    """Stands for `page.Files` where the page lies beside the files."""

    def __init__(self, folder: Path):
        self._folder = folder

    def add(self, path: Path, name: str) -> str:
        return path.relative_to(self._folder).as_posix()


def rows(figures: Mapping[str, float | None]) -> list[Row]:
    """Figures with their intervals, as `runs.read_figures` gives them; times are left out."""
    return [
        Row(name, value, figures.get(name + _LOW), figures.get(name + _HIGH))
        for name, value in figures.items()
        if "_ci95" not in name and not name.startswith(_ASIDE)
    ]


def write(folder: Path) -> None:
    """Writes the tables of a folder that `ba_jax.evaluate` has filled.

    Raises:
      ReportError: a malformed file, or no figures.
    """
    found = read_evaluation(folder)
    if found.figures is None:
        raise ReportError(f"{folder}: no figures.json, expected an evaluation")
    failed = _failed(folder / "failed.jsonl")
    figures = rows(found.figures)
    notes = list(found.notes.items())
    html = page.render_template(
        "evaluation.html",
        figures=figures,
        failed=failed,
        suites=page.suite_tables(found, _InPlace(folder)),
        notes=notes,
        versions=page.versions(),
        long=page.LONG,
    )
    # A text may hold half of a surrogate pair, which UTF-8 cannot.
    (folder / INDEX).write_text(html, encoding="utf-8", errors="replace")
    text = markdown(figures, failed, notes)
    (folder / MARKDOWN).write_text(text, encoding="utf-8", errors="replace")


def markdown(figures: list[Row], failed: list[dict[str, Any]], notes: list[tuple[str, str]]) -> str:
    """The tables as Markdown."""
    lines = ["# Evaluation", "", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for row in figures:
        value = "not measured" if row.value is None else charts.number(row.value)
        known = row.low is not None and row.high is not None
        around = f"{charts.number(row.low)} to {charts.number(row.high)}" if known else ""
        lines.append(f"| {_cell(row.name)} | {value} | {around} |")
    lines += ["", "## Failed items", ""]
    if failed:
        lines += ["They count as wrong.", "", "| suite | item | stage | why |"]
        lines.append("| --- | --- | --- | --- |")
        for one in failed:
            cells = (_cell(one[key]) for key in ("suite", "id", "stage", "reason"))
            lines.append(f"| {' | '.join(cells)} |")
    else:
        lines.append("None.")
    lines += ["", "## How it was made", ""]
    lines += [f"- {name}: {_cell(said)}" for name, said in notes]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _failed(path: str | os.PathLike) -> list[dict[str, Any]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
