"""The report's page: values for its template, and the files beside it."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import math
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.report import charts, marks, targets
from ba_jax.report.runs import SOUNDS, Evaluation, JobRuns, StageRun, SuiteItem

FILES = "files"
LISTENED = 8  # items of a suite with players; recordings of other items are linked in the tables
LONG = 12  # tables with more rows are closed at first
# Heading of the hypotheses, by suite.
_HYPOTHESES = {
    **dict.fromkeys(("asr", "s2tt", "qa_s2t", "qa_t2t"), "model wrote"),
    **dict.fromkeys(("qa_s2s", "tts", "codec", "reconstruction"), "judge heard"),
}
# Headings of an item's other texts.
_MORE = {
    "text": "model wrote",
    "transcribe_first": "model transcribed",
    "heard_on_reference": "judge heard of the reference",
    "heard_without_flow": "judge heard without flow",
    "failed": "failed",
}
_ITEM_FIELDS = ("id", "language", "correct", "errors", "units", "wrong")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_HERE = Path(__file__).resolve().parent

Link = Callable[[Path, str], str]  # returns the link of a file, given a name for its copy


class Files:
    """Copies files into a folder under plain names; equal content is copied once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._links: dict[bytes, str] = {}
        self._names: set[str] = set()

    def add(self, path: Path, name: str) -> str:
        """Copy `path` under `name`, reduced to plain ASCII; return its link."""
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


# --- numbers --------------------------------------------------------------------------------------


def format_number(value: float) -> str:
    """Format a number with four digits: 12000 -> `12k`, 0.0001 -> `1e-4`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    for least, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return _minus(f"{value / unit:.4g}{suffix}")
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return _minus(f"{float(mantissa):g}e{int(exponent)}")
    return _minus(f"{value:.4g}")


def format_column(values: Sequence[float | None]) -> list[str | None]:
    """Format a column with equal decimals, four digits of the largest number; None stays None."""
    most = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    whole = all(v is None or not math.isfinite(v) or v == int(v) for v in values)
    decimals = 0 if whole else max(3 - math.floor(math.log10(most)), 0) if most else 0

    def format_cell(value: float) -> str:
        if not math.isfinite(value) or (most and not 1e-3 <= most < 1e6):
            return format_number(value)
        return _minus(f"{value:.{decimals}f}")

    return [None if value is None else format_cell(value) for value in values]


def _minus(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") else text


# --- the page -------------------------------------------------------------------------------------


def render(
    runs: JobRuns,
    summary: Mapping[str, Any],
    origin: Mapping[str, str],
    files: Files,
    *,
    written: str,
    command: str,
) -> str:
    """Render the page's HTML; all text from data is escaped.

    `summary` and `origin` are of `targets.summarise`; `files` receives pictures and recordings;
    `written` is the time, `command` the command of the report.
    """
    stages = [_stage(stage, files) for stage in runs.stages]
    suites = [
        suite
        for evaluation in runs.evaluations.values()
        for suite in suite_tables(evaluation, files.add)
    ]
    errors = summary["mel_mae_by_codebooks"] or {}
    single = errors.get("1")
    relative = {k: v / single if single and v is not None else None for k, v in errors.items()}
    text_side = {
        "before stage 1": "t2t_before",
        "after stage 2": "t2t_after",
        "after the single stage": "t2t_after_single_stage",
    }
    minutes = {k: v for k, v in (runs.minutes or {}).items() if k != targets.TOTAL}
    return render_template(
        "page.html",
        headline=targets.headline(summary, origin),
        summary=summary,
        origin=origin,
        text_side=[(label, summary[key], origin.get(key)) for label, key in text_side.items()],
        mel_errors=[(*bar, relative[bar[0]]) for bar in _bars(errors)],
        minutes=[(name, f"{minutes[name]:.1f}", width) for name, _, width in _bars(minutes)],
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
    """Render a template of this folder with style and script; text from data is escaped."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["percent"] = targets.percent
    # Style and script are our own files.
    return environment.get_template(name).render(
        style=markupsafe.Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=markupsafe.Markup((_HERE / "sort.js").read_text(encoding="utf-8")),
        **values,
    )


def _bars(
    values: Mapping[Any, float | None], full: float = 0.0
) -> list[tuple[Any, str | None, float]]:
    """Return (name, value as text, width in percent of the largest value or `full`)."""
    finite = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
    most = max([full, *finite.values()])
    texts = format_column(list(values.values()))
    rows = []
    for name, text in zip(values, texts, strict=True):
        width = 100 * finite.get(name, 0) / most if most else 0
        rows.append((name, text, round(width, 1)))
    return rows


def _stage(stage: StageRun, files: Files) -> dict[str, Any]:
    losses, rates = charts.stage_charts(stage.series or {})
    codebooks = charts.codebook_charts(stage.series or {})
    bars, others = [], []
    for column, quantity in enumerate(codebooks.quantities if codebooks else ()):
        last = {index: values[column] for index, values in codebooks.rows}
        if quantity in ("use", "perplexity"):
            bars.append((quantity, _bars(last, full=1.0)))
        else:
            others.append((quantity, format_column(list(last.values()))))
    return {
        "name": stage.name,
        "has_metrics": stage.series is not None,
        "losses": losses,
        "rates": rates,
        "codebooks": codebooks,
        "codebook_bars": bars,
        "codebook_others": others,
        "finals": charts.last_values(stage.series or {}),
        "mels": _first_and_last(stage, (".png",), files),
        "sounds": _first_and_last(stage, SOUNDS, files),
        "config": stage.config,
    }


def _first_and_last(stage: StageRun, suffixes: Sequence[str], files: Files) -> dict[str, Any]:
    """Select the files of the first and the last step: {"steps", "rows": (name, link per step)}."""
    paths = {
        step: {
            name: path
            for name, kinds in names.items()
            for suffix, path in kinds.items()
            if suffix in suffixes
        }
        for step, names in stage.pictures.items()
    }
    steps = [step for step, names in paths.items() if names]
    steps = steps if len(steps) < 2 else [steps[0], steps[-1]]
    rows = []
    for name in sorted({name for step in steps for name in paths[step]}):
        links = []
        for step in steps:
            path = paths[step].get(name)
            links.append(files.add(path, f"{stage.name}-{step}-{name}") if path else None)
        rows.append((name, links))
    return {"steps": steps, "rows": rows}


def suite_tables(evaluation: Evaluation, link: Link) -> list[dict[str, Any]]:
    """Return the items and totals of each suite."""
    by_suite: dict[str, list[SuiteItem]] = collections.defaultdict(list)
    for item in evaluation.items:
        by_suite[item.suite].append(item)
    tables = []
    for name, items in by_suite.items():
        rows = [_item(evaluation.name, item, link) for item in items]
        with_audio = [row for row in rows if row["audio"]]
        judged = [item for item in items if item.correct is not None]
        counted = [i for i in items if i.errors is not None and i.units is not None]
        errors, units = sum(i.errors for i in counted), sum(i.units for i in counted)
        tables.append(
            {
                "evaluation": evaluation.name,
                "name": name,
                "rows": rows,
                "with_audio": with_audio,
                "listened": _spread(with_audio, LISTENED),
                "has_question": any("question" in item.more for item in items),
                "hypothesis": _HYPOTHESES.get(name, "hypothesis"),
                "judged": len(judged),
                "right": sum(item.correct is True for item in judged),
                "errors": errors if counted else None,
                "units": units,
                "rate": errors / units if units else None,
            }
        )
    return tables


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Select `count` rows at even distances, since items are sorted by language."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _item(evaluation: str, item: SuiteItem, link: Link) -> dict[str, Any]:
    reference, hypothesis = item.reference, item.hypothesis
    if item.wrong and reference is not None and hypothesis is not None:
        pieces = marks.mark_differences(reference, hypothesis)
    else:
        pieces = tuple([] if text is None else [(text, False)] for text in (reference, hypothesis))
    audio = []
    for sound in item.audio:
        name = f"{evaluation}-{item.suite}-{item.id}-{sound.label}"
        audio.append((sound.label, sound.path and link(sound.path, name), sound.name))
    return {
        **{name: getattr(item, name) for name in _ITEM_FIELDS},
        "reference": pieces[0],
        "hypothesis": pieces[1],
        "question": item.more.get("question"),
        "more": [(_MORE[key], text) for key, text in item.more.items() if key in _MORE],
        "audio": audio,
    }


def _figures(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, list]]:
    """Return (figure, for each evaluation: (whether it has the figure, its value))."""
    by_evaluation = [evaluation.figures or {} for evaluation in evaluations.values()]
    names = dict.fromkeys(name for figures in by_evaluation for name in figures)
    return [(name, [(name in f, f.get(name)) for f in by_evaluation]) for name in names]


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and the packages, the commit and the machine."""
    rows = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows + [("commit", _commit()), ("machine", f"{platform.system()} {platform.machine()}")]


def _commit() -> str:
    """Return the commit of this module's tree."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_HERE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (", with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
