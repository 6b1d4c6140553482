"""The page: what the template is given, and the files that lie beside it."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import math
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.report import charts, curves, marks, targets
from ba_jax.report.runs import Evaluation, Item, Runs, Stage

FILES = "files"
LISTENED = 8  # items of a suite that have players; the others' recordings are linked in the tables
LONG = 12  # rows from which a table is closed at first
# What an item's hypothesis is, by suite, and its other texts.
_CAME = {
    "asr": "model wrote",
    "s2tt": "model wrote",
    "qa_s2t": "model wrote",
    "qa_t2t": "model wrote",
    "qa_s2s": "judge heard",
    "tts": "judge heard",
    "codec": "judge heard",
    "reconstruction": "judge heard",
}
_MORE = {
    "text": "model wrote",
    "transcribe_first": "model read back",
    "heard_on_reference": "judge heard of the reference",
    "heard_without_flow": "judge heard without flow",
    "failed": "failed",
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_HERE = Path(__file__).resolve().parent


class Files:
    """Copies files into a folder under plain names; equal content once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._links: dict[bytes, str] = {}
        self._names: set[str] = set()

    def add(self, path: Path, name: str) -> str:
        """Copies `path`; returns its link. `name`, made plain ASCII, is what it is called."""
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in self._links:
            stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "file"
            plain, count = stem, 1
            while (plain + path.suffix).lower() in self._names:
                count += 1
                plain = f"{stem}-{count}"
            self._names.add((plain + path.suffix).lower())
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self._folder / (plain + path.suffix))
            self._links[digest] = f"{self._folder.name}/{plain}{path.suffix}"
        return self._links[digest]


def render(
    runs: Runs,
    summary: Mapping[str, Any],
    origin: Mapping[str, str],
    files: Files,
    *,
    written: str,
    command: str,
) -> str:
    """The page's HTML; everything that comes from data is escaped.

    Args:
      runs: what to show.
      summary, origin: of `targets.summarise`.
      files: takes the pictures and recordings.
      written: when, as text.
      command: that made the report.
    """
    stages = [_stage(stage, files) for stage in runs.stages]
    suites = [
        suite
        for evaluation in runs.evaluations.values()
        for suite in suite_tables(evaluation, files)
    ]
    return render_template(
        "page.html",
        headline=targets.headline(summary, origin),
        summary=summary,
        origin=origin,
        text_side=[
            ("before stage 1", summary["t2t_before"], origin.get("t2t_before")),
            ("after stage 2", summary["t2t_after"], origin.get("t2t_after")),
            (
                "after the single stage",
                summary["t2t_after_single_stage"],
                origin.get("t2t_after_single_stage"),
            ),
        ],
        mel_errors=_mel_errors(summary["mel_mae_by_codebooks"]),
        minutes=[
            (name, f"{runs.minutes[name]:.1f}", width)
            for name, _, width in _bars(
                {k: v for k, v in (runs.minutes or {}).items() if k != targets.TOTAL}
            )
        ],
        total_minutes=summary[targets.MINUTES],
        stages=stages,
        suites=suites,
        long=LONG,
        evaluations=list(runs.evaluations),
        figures=_figures(runs.evaluations),
        notes=[
            (f"{evaluation.name}: {name}", text)
            for evaluation in runs.evaluations.values()
            for name, text in evaluation.notes.items()
        ],
        commands=runs.commands,
        command=command,
        versions=versions(),
        written=written,
        runs_folder=str(runs.folder),
    )


def render_template(name: str, **values: Any) -> str:
    """A template of this folder as HTML, with style and script; what comes from data is escaped."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = charts.number
    environment.filters["percent"] = targets.percent
    # The SVG that `charts` builds is escaped by ElementTree; style and script are our own files.
    environment.filters["svg"] = markupsafe.Markup
    return environment.get_template(name).render(
        style=markupsafe.Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=markupsafe.Markup((_HERE / "sort.js").read_text(encoding="utf-8")),
        **values,
    )


def _bars(
    values: Mapping[Any, float | None], full: float = 0.0
) -> list[tuple[Any, str | None, float]]:
    """(name, value as text, width in percent of the largest, or of `full` if that is larger)."""
    most = max((v for v in values.values() if v is not None and math.isfinite(v)), default=full)
    most = max(most, full)
    rows = []
    shown = charts.aligned(list(values.values()))
    for (name, value), text in zip(values.items(), shown, strict=True):
        width = 100 * value / most if value is not None and math.isfinite(value) and most else 0
        rows.append((name, text, round(width, 1)))
    return rows


def _mel_errors(errors: Mapping[str, float | None] | None) -> list[tuple]:
    """(codebooks, error, width in percent, share of the error with one codebook or None)."""
    rows = []
    one = (errors or {}).get("1")
    for count, text, width in _bars(errors or {}):
        value = errors[count]
        rows.append((count, text, width, value / one if one and value is not None else None))
    return rows


def _stage(stage: Stage, files: Files) -> dict[str, Any]:
    losses, rates = curves.stage_charts(stage.series or {})
    books = curves.codebooks(stage.series or {})
    bars, others = [], []
    for place, quantity in enumerate(books.quantities if books else ()):
        last = {index: values[place] for index, values in books.rows}
        if quantity in ("use", "perplexity"):
            bars.append((quantity, _bars(last, full=1.0)))
        else:
            others.append((quantity, charts.aligned(list(last.values()))))
    return {
        "name": stage.name,
        "has_metrics": stage.series is not None,
        "losses": losses,
        "rates": rates,
        "codebooks": books,
        "codebook_bars": bars,
        "codebook_others": others,
        "finals": curves.final_rows(stage.series or {}),
        "mels": _first_and_last(stage, (".png",), files),
        "sounds": _first_and_last(stage, (".wav", ".flac", ".ogg", ".opus", ".mp3"), files),
        "config": stage.config,
    }


def _first_and_last(stage: Stage, suffixes: Sequence[str], files: Files) -> dict[str, Any]:
    """The files of the first and the last step that has any: {"steps": ..., "rows": ...}.

    A row is (name, one link or None a step).
    """
    found = {
        step: {
            name: path
            for name, kinds in names.items()
            for suffix, path in kinds.items()
            if suffix in suffixes
        }
        for step, names in stage.pictures.items()
    }
    steps = [step for step, names in found.items() if names]
    steps = steps if len(steps) < 2 else [steps[0], steps[-1]]
    rows = []
    for name in sorted({name for step in steps for name in found[step]}):
        links = []
        for step in steps:
            path = found[step].get(name)
            links.append(files.add(path, f"{stage.name}-{step}-{name}") if path else None)
        rows.append((name, links))
    return {"steps": steps, "rows": rows}


def suite_tables(evaluation: Evaluation, files: Files) -> list[dict[str, Any]]:
    """Of each suite its items, and how many were right."""
    by_suite: dict[str, list[Item]] = collections.defaultdict(list)
    for item in evaluation.items:
        by_suite[item.suite].append(item)
    made = []
    for name, items in by_suite.items():
        rows = [_item(evaluation.name, item, files) for item in items]
        with_audio = [row for row in rows if row["audio"]]
        judged = [item for item in items if item.correct is not None]
        counted = [i for i in items if i.errors is not None and i.units is not None]
        units = sum(item.units for item in counted)
        made.append(
            {
                "evaluation": evaluation.name,
                "name": name,
                "rows": rows,
                "with_audio": with_audio,
                "listened": _spread(with_audio, LISTENED),
                "has_question": any("question" in item.more for item in items),
                "came": _CAME.get(name, "hypothesis"),
                "judged": len(judged),
                "right": sum(item.correct is True for item in judged),
                "errors": sum(item.errors for item in counted) if counted else None,
                "units": units,
                "rate": sum(item.errors for item in counted) / units if units else None,
            }
        )
    return made


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows from the first to the last, evenly apart: items lie together by language."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _item(evaluation: str, item: Item, files: Files) -> dict[str, Any]:
    reference, hypothesis = item.reference, item.hypothesis
    if item.wrong and reference is not None and hypothesis is not None:
        pieces = marks.differences(reference, hypothesis)
    else:
        pieces = tuple([] if text is None else [(text, False)] for text in (reference, hypothesis))
    audio = []
    for sound in item.audio:
        name = f"{evaluation}-{item.suite}-{item.id}-{sound.label}"
        audio.append((sound.label, sound.path and files.add(sound.path, name), sound.name))
    return {
        "id": item.id,
        "language": item.language,
        "reference": pieces[0],
        "hypothesis": pieces[1],
        "correct": item.correct,
        "errors": item.errors,
        "units": item.units,
        "wrong": item.wrong,
        "question": item.more.get("question"),
        "more": [(_MORE[key], text) for key, text in item.more.items() if key in _MORE],
        "audio": audio,
    }


def _figures(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, list]]:
    """(figure, of each evaluation: (whether it has the figure, its value))."""
    names = dict.fromkeys(name for e in evaluations.values() for name in e.figures or {})
    return [
        (
            name,
            [
                (name in (e.figures or {}), (e.figures or {}).get(name))
                for e in evaluations.values()
            ],
        )
        for name in names
    ]


def versions() -> list[tuple[str, str]]:
    """Python, the packages and the commit that run here."""
    found = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found.append((package, "not installed"))
    return found + [("commit", _commit()), ("machine", f"{platform.system()} {platform.machine()}")]


def _commit() -> str:
    """The commit of the tree that this module lies in."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_HERE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (", with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
