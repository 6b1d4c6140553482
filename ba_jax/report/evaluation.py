"""Write the tables of an evaluation beside its files: report.md, and index.html with players."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ba_jax import json_lines
from ba_jax.report import page
from ba_jax.report.runs import ReportError, read_evaluation

MARKDOWN, INDEX = "report.md", "index.html"


@dataclasses.dataclass(frozen=True)
class FigureRow:
    """A figure, and its interval if it has one."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


def make_rows(figures: Mapping[str, float | None]) -> list[FigureRow]:
    """Join the figures of `runs.read_figures` with their intervals; times are left out."""
    return [
        FigureRow(name, value, figures.get(f"{name}_ci95/low"), figures.get(f"{name}_ci95/high"))
        for name, value in figures.items()
        if "_ci95" not in name and not name.startswith("seconds/")
    ]


def write(folder: Path) -> None:
    """Write the tables of a folder of `ba_jax.evaluate`.

    Raises:
      ReportError: a malformed file, or no figures.
    """
    evaluation = read_evaluation(folder)
    if evaluation.figures is None:
        raise ReportError(f"{folder}: no figures.json, expected an evaluation")
    failed = json_lines.read(folder / "failed.jsonl", "id")
    figures = make_rows(evaluation.figures)
    notes = list(evaluation.notes.items())
    html = page.render_template(
        "evaluation.html",
        figures=figures,
        failed=failed,
        # The page is beside the files, so none is copied.
        suites=page.suite_tables(
            evaluation, lambda path, name: path.relative_to(folder).as_posix()
        ),
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
        interval = ""
        if row.low is not None and row.high is not None:
            interval = f"{page.format_number(row.low)} to {page.format_number(row.high)}"
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
