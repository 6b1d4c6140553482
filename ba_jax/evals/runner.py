"""Runs a suite's stages over its items: in batches, on one or several hosts, going on where it was.

    OUT/generations/SUITE.jsonl, judge_inputs/SUITE.jsonl, judged/SUITE.jsonl

hold a first line that says what they were made with, then one line an item: its id, and what the
stage said of it or `failed` and the reason. While a suite runs, host H of several, which has items
H, H + hosts, ..., writes OUT/hosts/H/STAGE/SUITE.jsonl after each batch; at the end host 0 puts all
of them together. Hosts that share one mesh (`Hosts.together`) do all items at the same time, host 0
alone writes and judges. A run that was killed goes on after the lines that are there, on any number
of hosts. OUT is a folder that all hosts see.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ba_jax.data.record import LANGUAGES
from ba_jax.evals.base import Bench
from ba_jax.evals.suite import EvalError, Item, Line, Suite
from ba_jax.files import write_whole
from ba_jax.types import Failure

FOLDERS = {"generate": "generations", "present": "judge_inputs", "judge": "judged"}
"""Stage -> the folder of its lines."""
STARTS = ("go on", "generate", "judge", "score")
"""Where a run begins: where it was; anew; with the saved judge inputs; with all saved lines."""
_POLL = 0.2  # seconds between two looks at what the other hosts say
_STOPPED = " stopped"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that share a run.

    Attributes:
      index, count: which of how many this is.
      token: of this run; the same on all.
      together: all compute the same on one mesh; else each has its share of the items.
    """

    index: int = 0
    count: int = 1
    token: str = "0"
    together: bool = False

    @property
    def writes(self) -> bool:
        """What this one computes is what it has to write down."""
        return self.index == 0 or not self.together

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that this one works on."""
        return items if self.together else items[self.index :: self.count]


class LineError(ValueError):
    """A file of saved lines that is damaged, or that lacks what is asked of it."""


class HostError(RuntimeError):
    """Another host stopped."""


def read_lines(path: pathlib.Path) -> tuple[dict[str, Any] | None, dict[str, Line]]:
    """(what the first line says, id -> line) of a file; (None, {}) where there is none.

    A last line without its end is one that a run was killed at: it does not count.

    Raises:
      LineError: naming the line that is malformed.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None, {}
    header, found = None, {}
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if number == 1:
                header = {"made_with": value["made_with"], **value}
            else:
                found[value["id"]] = value
        except (ValueError, KeyError, TypeError) as error:
            raise LineError(f"{path}:{number}: no line of an evaluation ({error!r})") from None
    return header, found


def write_lines(path: pathlib.Path, header: Mapping[str, Any], lines: Iterable[Line]) -> None:
    """Writes a file of lines that appears whole."""
    write_whole(path, b"".join(map(_encoded, (header, *lines))))


def _encoded(value: Mapping[str, Any]) -> bytes:
    # A judge's answer may hold half of a surrogate pair, which UTF-8 cannot.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace") + b"\n"


class _Journal:
    """A host's own lines of a stage; each batch is on the disk before the next begins."""

    def __init__(self, path: pathlib.Path, made_with: str):
        header, found = read_lines(path)
        if header is None or header["made_with"] != made_with:
            found = {}
        # Written anew: what follows a line that was cut short would be lost with it.
        write_lines(path, {"made_with": made_with}, found.values())
        self._file = path.open("ab")

    def add(self, lines: Iterable[Line]) -> None:
        self._file.write(b"".join(map(_encoded, lines)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def run(
    suite: Suite,
    bench: Bench,
    made_with: Mapping[str, str],
    hosts: Hosts = Hosts(),
    start: str = STARTS[0],
) -> dict[str, Any] | None:
    """All of a suite: its figures, items and failed items; None on hosts other than the first.

    Args:
      suite: which.
      bench: what it is done with; `bench.out` gets the files.
      made_with: stage -> what it depends on, as text; lines made with another are not used.
      hosts: which host this is.
      start: one of STARTS. "score" and "judge" take saved lines whatever they were made with.

    Raises:
      EvalError: no items, or two of one id.
      LineError: saved lines that are damaged, or that should be there and are not.
      HostError: another host stopped.
    """
    items = suite.items(bench)
    items += _damaged(bench, len(items))
    _check(suite, items)
    folder = bench.out
    stages = [stage for stage in FOLDERS if stage == "generate" or suite.judged]
    anew = {"go on": (), "generate": stages, "judge": stages[2:], "score": ()}[start]
    taken = {"judge": stages[:2], "score": stages}.get(start, ())
    for stage in anew:
        _own(folder, hosts, stage, suite.name).unlink(missing_ok=True)
        if hosts.index == 0:
            _merged(folder, stage, suite.name).unlink(missing_ok=True)
    if anew:
        _meet(folder, hosts, suite.name, "cleared")
    stamps = dict(made_with)
    for stage in taken:
        header, _ = read_lines(_merged(folder, stage, suite.name))
        if header is None:
            raise LineError(
                f"{_merged(folder, stage, suite.name)}: no such file; expected the lines of a run "
                "that was completed"
            )
        stamps[stage] = header["made_with"]
    try:
        for stage in stages:
            if stage not in taken:
                _run_stage(suite, bench, items, stage, stages, stamps, hosts)
    except BaseException:
        _mark(folder, hosts, suite.name, "done", _STOPPED)
        raise
    _meet(folder, hosts, suite.name, "done")
    if hosts.index:
        return None
    lines = _merge(folder, suite, items, stages, stamps)
    _forget(folder, suite.name)
    rows, failed = _score(suite, bench, items, stages, lines)
    figures = suite.figures(bench, rows)
    figures[f"{suite.name}_failed"] = len(failed)
    return {"made_with": stamps, "figures": figures, "items": rows, "failed": failed}


def _check(suite: Suite, items: Sequence[Item]) -> None:
    if not items:
        raise EvalError(f"{suite.name}: no items")
    (most, count), *_ = collections.Counter(item.id for item in items).most_common(1)
    if count > 1:
        raise EvalError(f"{suite.name}: {count} items with the id {most!r}, expected one")


def _damaged(bench: Bench, first: int) -> list[Item]:
    """Items of the records that could not be read: nobody knows what they would have asked."""
    return [
        Item(f"record-{place}", first + i, "", None, trouble=reason)
        for i, (place, reason) in enumerate(sorted(bench.damaged.items()))
    ]


def _merged(folder: pathlib.Path, stage: str, name: str) -> pathlib.Path:
    return folder / FOLDERS[stage] / f"{name}.jsonl"


def _own(folder: pathlib.Path, hosts: Hosts, stage: str, name: str) -> pathlib.Path:
    return folder / "hosts" / str(hosts.index) / FOLDERS[stage] / f"{name}.jsonl"


def _known(folder: pathlib.Path, stage: str, name: str, made_with: str) -> dict[str, Line]:
    """All lines of a stage that were made with this, whichever host wrote them."""
    found: dict[str, Line] = {}
    own = sorted(folder.glob(f"hosts/*/{FOLDERS[stage]}/{name}.jsonl"))
    for path in (_merged(folder, stage, name), *own):
        header, lines = read_lines(path)
        if header is not None and header["made_with"] == made_with:
            found |= lines
    return found


def _run_stage(
    suite: Suite,
    bench: Bench,
    items: Sequence[Item],
    stage: str,
    stages: Sequence[str],
    stamps: Mapping[str, str],
    hosts: Hosts,
) -> None:
    """What this host has to do of a stage."""
    folder = bench.out
    if stage == "judge" and not hosts.writes:  # without the model
        return
    in_step = hosts.together and stage != "judge"
    if in_step:  # all lines of the stage before are written,
        _meet(folder, hosts, suite.name, f"before-{stage}")
    known = {
        name: _known(folder, name, suite.name, stamps[name])
        for name in stages[: stages.index(stage) + 1]
    }
    if in_step:  # and read by all, before one writes on
        _meet(folder, hosts, suite.name, f"read-{stage}")
    done = known.pop(stage)
    todo = [
        item
        for item in hosts.share(items)
        if item.id not in done and all("failed" not in own[item.id] for own in known.values())
    ]
    if not todo:
        return
    work: Callable = getattr(suite, stage)
    size = bench.settings.save_every
    bench.begin(len(todo))
    with contextlib.ExitStack() as stack:
        journal = None
        if hosts.writes:
            journal = _Journal(_own(folder, hosts, stage, suite.name), stamps[stage])
            stack.callback(journal.close)
        for first in range(0, len(todo), size):
            batch = todo[first : first + size]
            usable = [item for item in batch if not _trouble(item)]
            before = [[own[item.id] for item in usable] for own in known.values()]
            made = work(bench, usable, *before) if usable else []
            said = {item.id: one for item, one in zip(usable, made, strict=True)}
            if journal is not None:
                journal.add(
                    _line(item, said.get(item.id) or Failure(_trouble(item))) for item in batch
                )
            bench.advance(len(batch))


def _trouble(item: Item) -> str:
    """Why an item cannot be used from the start."""
    if item.trouble or item.language in LANGUAGES:
        return item.trouble
    return f"language {item.language!r}, expected one of {LANGUAGES}"


def _line(item: Item, said: Line | Failure) -> Line:
    if isinstance(said, Failure):
        return {"id": item.id, "failed": said.reason}
    return {"id": item.id, **said}


def _mark(folder: pathlib.Path, hosts: Hosts, name: str, what: str, says: str = "") -> None:
    if hosts.count > 1:
        mark = folder / "hosts" / "marks" / f"{name}-{what}-{hosts.index}"
        write_whole(mark, hosts.token + says)


def _meet(folder: pathlib.Path, hosts: Hosts, name: str, what: str) -> None:
    """Waits until every host has come here.

    Raises:
      HostError: one stopped on the way. One that was killed is noticed by JAX, which ends us.
    """
    _mark(folder, hosts, name, what)
    waiting = set(range(hosts.count)) if hosts.count > 1 else set()
    while waiting:
        for index in sorted(waiting):
            marks = folder / "hosts" / "marks"
            if _said(marks / f"{name}-done-{index}") == hosts.token + _STOPPED:
                raise HostError(f"{name}: host {index} stopped; the same command goes on")
            if _said(marks / f"{name}-{what}-{index}") == hosts.token:
                waiting.remove(index)
        if waiting:
            time.sleep(_POLL)


def _said(mark: pathlib.Path) -> str:
    try:
        return mark.read_text()
    except FileNotFoundError:
        return ""


def _forget(folder: pathlib.Path, name: str) -> None:
    """Removes the hosts' own lines of a suite, which have been put together."""
    for path in folder.glob(f"hosts/*/*/{name}.jsonl"):
        path.unlink()
        with contextlib.suppress(OSError):  # of other suites there is more
            path.parent.rmdir()
            path.parent.parent.rmdir()
            path.parent.parent.parent.rmdir()


def _merge(
    folder: pathlib.Path,
    suite: Suite,
    items: Sequence[Item],
    stages: Sequence[str],
    stamps: Mapping[str, str],
) -> dict[str, dict[str, Line]]:
    """Stage -> id -> line, of all items in order, written to the files that stay.

    Raises:
      LineError: an item without a line.
    """
    found: dict[str, dict[str, Line]] = {}
    failed: set[str] = set()
    for stage in stages:
        known = _known(folder, stage, suite.name, stamps[stage])
        wanted = [item.id for item in items if item.id not in failed]
        absent = [name for name in wanted if name not in known]
        if absent:
            raise LineError(
                f"{folder / FOLDERS[stage]}: no line for {len(absent)} of {len(wanted)} items of "
                f"{suite.name}, such as {absent[0]!r}"
            )
        found[stage] = {name: known[name] for name in wanted}
        failed |= {name for name in wanted if "failed" in known[name]}
        path = _merged(folder, stage, suite.name)
        write_lines(path, {"made_with": stamps[stage]}, found[stage].values())
    return found


def _score(
    suite: Suite,
    bench: Bench,
    items: Sequence[Item],
    stages: Sequence[str],
    lines: Mapping[str, Mapping[str, Line]],
) -> tuple[list[Line], list[dict[str, str]]]:
    """(each item's result, those that failed with stage and reason)."""
    rows, failed = [], []
    for item in items:
        own: list[Line | None] = []
        trouble: tuple[str, str] | None = None
        for stage in FOLDERS:
            line = lines[stage].get(item.id) if stage in stages else None
            if line is not None and "failed" in line:
                trouble, line = (stage, line["failed"]), None
            own.append(line)
        row = None
        if not _trouble(item):
            try:
                row = suite.score(bench, item, *own)
            except ValueError as error:
                trouble = trouble or ("score", str(error))
        if row is None:
            row = {"id": item.id, "language": item.language, "reference": "", "hypothesis": ""}
            row |= {"errors": 0, "units": 0, "correct": False}
        if trouble:
            row["failed"] = ": ".join(trouble)
            failed.append({"id": item.id, "stage": trouble[0], "reason": trouble[1]})
        rows.append(row)
    return rows, failed
