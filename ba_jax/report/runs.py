"""Read the files of stages and evaluations; absent files are None or empty.

    RUNS/<stage>/metrics.csv, timings.csv       step,name,value
    RUNS/<stage>/config.json                    the settings, shown unchanged
    RUNS/<stage>/pictures/<step>/<name>.png     and .wav; names may have slashes
    RUNS/eval/<checkpoint>/figures.json         name -> number, null, text, or a dict of such
    RUNS/eval/<checkpoint>/items.jsonl          an item of a suite per line
    RUNS/minutes.json                           stage -> minutes; "total" if stages ran in parallel
    RUNS/commands.txt                           the commands, one per line

Malformed input is a `ReportError` that names the file and, if possible, the line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ba_jax.checkpoints.layout import CONFIG_FILE
from ba_jax.files import is_litter, list_files
from ba_jax.metrics.writers import CSV_HEADER, parse_csv

EVAL = "eval"
# Order of the stages; others follow by name.
STAGE_ORDER = "text text_lm tokenizer flow vocoder stage1 words stage2 single sft".split()
TEXTS = "question text transcribe_first heard_on_reference heard_without_flow failed".split()
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_PNG = b"\x89PNG\r\n\x1a\n"

Points = tuple[tuple[int, float], ...]  # (step, value), by step; values may be NaN or infinite


class ReportError(ValueError):
    """Malformed input, or a folder that cannot be written."""


@dataclasses.dataclass(frozen=True)
class StageRun:
    """A training stage's folder.

    Attributes:
      name: name of the folder.
      series: metric -> its points, from both CSV files; None without metrics.csv.
      pictures: step -> name without suffix -> suffix (".png", ".wav") -> file.
      config: text of config.json, or None.
    """

    name: str
    series: Mapping[str, Points] | None
    pictures: Mapping[int, Mapping[str, Mapping[str, Path]]]
    config: str | None = None


@dataclasses.dataclass(frozen=True)
class Sound:
    """A recording of an item; `path` is None if the file does not exist."""

    label: str
    name: str
    path: Path | None


@dataclasses.dataclass(frozen=True)
class SuiteItem:
    """An item of a suite; fields that the evaluation did not write are None.

    Attributes:
      hypothesis: the model's text, or the judge's transcript of its speech.
      more: other texts, by key in items.jsonl (see `TEXTS`).
    """

    suite: str
    id: str
    language: str | None = None
    reference: str | None = None
    hypothesis: str | None = None
    correct: bool | None = None
    errors: float | None = None
    units: float | None = None
    audio: tuple[Sound, ...] = ()
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        return self.correct is False or bool(self.errors)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of a checkpoint; entries of dicts become `name/key` in `figures`, `notes`.

    Attributes:
      figures: name -> number, or None for null; None without figures.json.
      notes: name -> text on how figures were computed.
    """

    name: str
    figures: Mapping[str, float | None] | None
    notes: Mapping[str, str]
    items: tuple[SuiteItem, ...]

    @property
    def normalisers(self) -> dict[str, str]:
        """Names and versions of the normalisations; {} in files from before they had versions."""
        return {key: text for key, text in self.notes.items() if key.startswith("normalisers/")}


@dataclasses.dataclass(frozen=True)
class JobRuns:
    """Input of a report."""

    folder: Path
    stages: tuple[StageRun, ...]
    evaluations: Mapping[str, Evaluation]
    minutes: Mapping[str, float] | None
    commands: tuple[str, ...] | None


def read_runs(folder: Path) -> JobRuns:
    """Read a folder of runs.

    Raises:
      ReportError: a folder that is absent or has nothing to report, or a malformed file.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; expected the runs of a main job")
    minutes, path = None, folder / "minutes.json"
    if path.is_file():
        minutes = _parse_object(_read_text(path), path)
    for stage, value in (minutes or {}).items():
        if not (_is_number(value) and 0 <= value < math.inf):
            raise ReportError(f"{path}: {stage} = {value!r:.80}: expected minutes, 0 or more")
    stages = [_read_stage(path) for path in _folders(folder) if path.name != EVAL]
    stages = [stage for stage in stages if stage.series is not None or stage.pictures]
    evaluations = {path.name: read_evaluation(path) for path in _folders(folder / EVAL)}
    if not (stages or evaluations or minutes):
        raise ReportError(
            f"{folder}: nothing to report; expected <stage>/metrics.csv, <stage>/pictures/, "
            "eval/<checkpoint>/figures.json or minutes.json"
        )
    commands = _read_text(folder / "commands.txt")
    if commands is not None:
        commands = tuple(line.rstrip() for line in commands.splitlines() if line.strip())
    return JobRuns(
        folder=folder,
        stages=tuple(sorted(stages, key=lambda stage: stage_rank(stage.name))),
        evaluations=dict(sorted(evaluations.items(), key=lambda pair: stage_rank(pair[0]))),
        minutes=minutes,
        commands=commands,
    )


def stage_rank(name: str) -> tuple[int, str]:
    """Sorting key of a stage's name."""
    plain = name.removeprefix("lm_")
    return (STAGE_ORDER.index(plain) if plain in STAGE_ORDER else len(STAGE_ORDER), name)


def _folders(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in paths if path.is_dir() and not is_litter(path.name))


def _read_text(path: Path) -> str | None:
    """Read a text file; None if it does not exist."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 at byte {error.start}") from error


def _parse_object(text: str, path: Path, line: int | None = None) -> dict[str, Any]:
    """Parse a JSON object, a whole file or a line of it."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}:{line or error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(content, dict):
        where = f"{path}:{line}" if line else path
        raise ReportError(f"{where}: expected an object, got {content!r:.80}")
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- stages -------------------------------------------------------------------------------------


def _read_stage(folder: Path) -> StageRun:
    files = [folder / "metrics.csv", folder / "timings.csv"]
    series: dict[str, Points] | None = None
    if files[0].is_file():
        series = {k: v for file in files if file.is_file() for k, v in read_metrics(file).items()}
    return StageRun(
        name=folder.name,
        series=series,
        pictures=_read_pictures(folder / "pictures"),
        config=_read_text(folder / CONFIG_FILE),
    )


def read_metrics(path: Path) -> dict[str, Points]:
    """Read metric -> points from lines `step,name,value`; the last value of a step counts.

    A resumed run logs the steps since its checkpoint again. A last line without a line end, where a
    run was killed, is ignored, as in `metrics.writers`.

    Raises:
      ReportError: naming the malformed line.
    """
    values: dict[str, dict[int, float]] = {}
    text = _read_text(path)
    if not text.startswith(CSV_HEADER):
        first = text.split("\n")[0]
        raise ReportError(f"{path}, line 1: {first!r}, expected the header step,name,value")
    try:
        for step, name, value in parse_csv(text, path):
            values.setdefault(name, {})[step] = value
    except ValueError as error:
        raise ReportError(str(error)) from error
    return {name: tuple(sorted(points.items())) for name, points in values.items()}


def _read_pictures(folder: Path) -> dict[int, dict[str, dict[str, Path]]]:
    pictures: dict[int, dict[str, dict[str, Path]]] = {}
    for step in _folders(folder):
        if not step.name.isdecimal():
            raise ReportError(f"{step}: expected a folder named by its step")
        names = pictures.setdefault(int(step.name), {})
        for path in list_files(step, ".png", *SOUNDS):
            if path.suffix == ".png":
                with path.open("rb") as file:
                    if file.read(len(_PNG)) != _PNG:
                        raise ReportError(f"{path}: not a PNG file")
            name = path.relative_to(step).with_suffix("").as_posix()
            names.setdefault(name, {})[path.suffix] = path
    return dict(sorted(pictures.items()))


# --- evaluations --------------------------------------------------------------------------------


def read_evaluation(folder: Path) -> Evaluation:
    """Read a folder of `ba_jax.evaluate`.

    Raises:
      ReportError: a malformed file.
    """
    file, items = folder / "figures.json", folder / "items.jsonl"
    figures, notes = read_figures(file) if file.is_file() else (None, {})
    return Evaluation(
        name=folder.name,
        figures=figures,
        notes=notes,
        items=tuple(read_items(items)) if items.is_file() else (),
    )


def read_figures(path: Path) -> tuple[dict[str, float | None], dict[str, str]]:
    """Read (name -> number or None, name -> text); entries of a dict are named `name/key`.

    An interval, a list of two numbers, is split into `name/low` and `name/high`.

    Raises:
      ReportError: other values than numbers, null, texts, intervals and one level of dicts.
    """
    figures: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for name, value in _parse_object(_read_text(path), path).items():
        nested = value if isinstance(value, dict) else {"": value}
        if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            nested = {"low": value[0], "high": value[1]}
        for key, number in nested.items():
            full = f"{name}/{key}" if key else name
            if isinstance(number, str):
                notes[full] = number
            elif number is None or _is_number(number):
                figures[full] = number
            else:
                raise ReportError(f"{path}: {full} = {number!r:.80}: expected a number or a text")
    return figures, notes


def read_items(path: Path) -> list[SuiteItem]:
    """Read the items of an `items.jsonl`, in order.

    Raises:
      ReportError: naming the line and the key.
    """
    items = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        items.append(_item(_parse_object(line, path, number), f"{path}:{number}", path.parent))
    return items


def _item(content: Mapping[str, Any], where: str, folder: Path) -> SuiteItem:
    values: dict[str, Any] = {}
    for name in ("suite", "id", "language", "reference", "hypothesis"):
        value = content.get(name)
        if name == "id" and _is_number(value):
            value = str(value)
        if not isinstance(value, str) and (value is not None or name in ("suite", "id")):
            raise ReportError(f"{where}: {name} = {value!r:.80}: expected a text")
        values[name] = value
    values["correct"] = content.get("correct")
    if values["correct"] not in (True, False, None):
        raise ReportError(f"{where}: correct = {values['correct']!r:.80}: expected true or false")
    for name in ("errors", "units"):
        values[name] = content.get(name)
        if values[name] is not None and not (_is_number(values[name]) and values[name] >= 0):
            raise ReportError(f"{where}: {name} = {values[name]!r:.80}: expected a count")
    more = {name: content[name] for name in TEXTS if content.get(name) is not None}
    for name, value in more.items():
        if not isinstance(value, str):
            raise ReportError(f"{where}: {name} = {value!r:.80}: expected a text")
    return SuiteItem(
        **values, audio=_sounds(content.get("audio"), f"{where}: audio", folder), more=more
    )


def _sounds(entry: Any, where: str, folder: Path) -> tuple[Sound, ...]:
    """Parse label -> path, or a list of {"label", "path"}; an empty path means no recording."""
    if not isinstance(entry, dict | list | None):
        raise ReportError(f"{where} = {entry!r:.80}: expected label -> path")
    pairs = list(entry.items()) if isinstance(entry, dict) else []
    for row in entry if isinstance(entry, list) else ():
        pairs.append((row.get("label"), row.get("path")) if isinstance(row, dict) else (None, row))
    return tuple(_sound(label, name, where, folder) for label, name in pairs)


def _sound(label: Any, name: Any, where: str, folder: Path) -> Sound:
    """Check a recording: its path must stay inside the evaluation's folder."""
    if not isinstance(label, str) or not isinstance(name, str):
        raise ReportError(f"{where}: {label!r:.80} -> {name!r:.80}: expected label -> path")
    if not name:
        return Sound(label, name, None)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ReportError(f"{where}: {name!r} lies outside {folder}")
    if path.suffix.lower() not in SOUNDS:
        raise ReportError(f"{where}: {name!r}: expected one of {', '.join(SOUNDS)}")
    return Sound(label, name, path if path.is_file() else None)
