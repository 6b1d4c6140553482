"""Write the tables of an evaluation beside its files: report.md, and index.html with players."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ba_jax.report import page
from ba_jax.report.runs import ReportError, read_evaluation

MARKDOWN, INDEX = "report.md", "index.html"
_LOW, _HIGH = "_ci95/low", "_ci95/high"
_LEFT_OUT = ("seconds/",)


@dataclasses.dataclass(frozen=True)
class FigureRow:
    """A figure, and its interval if it has one."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


class _InPlace:
    """Replaces `page.Files`: the page is beside the files, so none is copied."""

    def __init__(self, folder: Path):
        self._folder = folder

    def add(self, path: Path, name: str) -> str:
        return path.relative_to(self._folder).as_posix()


def make_rows(figures: Mapping[str, float | None]) -> list[FigureRow]:
    """Join the figures of `runs.read_figures` with their intervals; times are left out."""
    return [
        FigureRow(name, value, figures.get(name + _LOW), figures.get(name + _HIGH))
        for name, value in figures.items()
        if "_ci95" not in name and not name.startswith(_LEFT_OUT)
    ]


def write(folder: Path) -> None:
    """Write the tables of a folder of `ba_jax.evaluate`.

    Raises:
      ReportError: a malformed file, or no figures.
    """
    evaluation = read_evaluation(folder)
    if evaluation.figures is None:
        raise ReportError(f"{folder}: no figures.json, expected an evaluation")
    failed = _read_failed(folder / "failed.jsonl")
    figures = make_rows(evaluation.figures)
    notes = list(evaluation.notes.items())
    html = page.render_template(
        "evaluation.html",
        figures=figures,
        failed=failed,
        suites=page.suite_tables(evaluation, _InPlace(folder)),
        notes=notes,
        versions=page.versions(),
        long=page.LONG,
    )
    # A text may hold half of a surrogate pair, which UTF-8 cannot.
    (folder / INDEX).write_text(html, encoding="utf-8", errors="replace")
    text = format_markdown(figures, failed, notes)
    (folder / MARKDOWN).write_text(text, encoding="utf-8", errors="replace")


def format_markdown(
    figures: list[FigureRow], failed: list[dict[str, Any]], notes: list[tuple[str, str]]
) -> str:
    """Format the tables as Markdown."""
    lines = ["# Evaluation", "", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for row in figures:
        value = "not measured" if row.value is None else page.format_number(row.value)
        known = row.low is not None and row.high is not None
        interval = (
            f"{page.format_number(row.low)} to {page.format_number(row.high)}" if known else ""
        )
        lines.append(f"| {_cell(row.name)} | {value} | {interval} |")
    lines += ["", "## Failed items", ""]
    if failed:
        lines += ["They count as wrong.", "", "| suite | item | stage | why |"]
        lines.append("| --- | --- | --- | --- |")
        for failure in failed:
            cells = (_cell(failure[key]) for key in ("suite", "id", "stage", "reason"))
            lines.append(f"| {' | '.join(cells)} |")
    else:
        lines.append("None.")
    lines += ["", "## How it was made", ""]
    lines += [f"- {name}: {_cell(text)}" for name, text in notes]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _read_failed(path: str | os.PathLike) -> list[dict[str, Any]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
