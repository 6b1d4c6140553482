"""Runs a suite's phases over its items: in batches, on one or several hosts, with resume.

    OUT/generations/SUITE.jsonl, judge_inputs/SUITE.jsonl, judged/SUITE.jsonl

hold the lines of a phase (`ba_jax.evals.lines`): its result for each item, or `failed` with the
reason. While a suite runs, host H of several has items H, H + hosts, ... and appends each batch to
OUT/hosts/H/PHASE/SUITE.jsonl; at the end host 0 merges them. Hosts that share one mesh
(`Hosts.together`) run all items at the same time; host 0 alone writes and judges. A run that was
killed resumes after the saved lines, on any number of hosts. OUT is a folder that all hosts see.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ba_jax.data.record import LANGUAGES
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalError, EvalItem, Items, Line, Outputs
from ba_jax.evals.lines import Journal, read_lines, read_matching_lines, write_lines
from ba_jax.evals.suite import Suite
from ba_jax.types import Failure

FOLDERS = {"generate": "generations", "present": "judge_inputs", "judge": "judged"}
"""Phase -> folder of its lines."""
STARTS = ("resume", "generate", "judge", "score")
"""First phase of a run: the first unfinished one, or a named one, with the lines before it."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that share a run.

    Attributes:
      index, count: number of this process, and of all processes.
      together: all compute the same on one mesh; else each has its share of the items.
      wait: waits until every process calls it with the same name.
    """

    index: int = 0
    count: int = 1
    together: bool = False
    wait: Callable[[str], None] = lambda name: None

    @property
    def writes(self) -> bool:
        """This process saves its results."""
        return self.index == 0 or not self.together

    def share(self, items: Items) -> Items:
        """Return the items of this process."""
        return items if self.together else items[self.index :: self.count]


def run(
    suite: Suite,
    bench: Bench,
    made_with: Mapping[str, str],
    hosts: Hosts = Hosts(),
    start: str = STARTS[0],
) -> dict[str, Any] | None:
    """Run a suite: returns its figures, items and failed items; None on hosts other than the first.

    Args:
      suite: the suite to run.
      bench: model, data and tools; `bench.out` gets the files.
      made_with: phase -> hash of the settings it depends on; lines with another hash are not used.
      hosts: this process among all of the run.
      start: an entry of STARTS. "score" and "judge" use saved lines whatever their hash.

    Raises:
      EvalError: no items, two with one id, or saved lines that are damaged or missing.
    """
    items = suite.items(bench)
    if not items:
        raise EvalError(f"{suite.name}: no items in the data")
    items += _damaged_items(bench, len(items))
    _check_ids(suite, items)
    folder = bench.out
    phases = [phase for phase in FOLDERS if phase == "generate" or suite.judged]
    redone = {"resume": (), "generate": phases, "judge": phases[2:], "score": ()}[start]
    reused = {"judge": phases[:2], "score": phases}.get(start, ())
    for phase in redone:
        _host_path(folder, hosts, phase, suite.name).unlink(missing_ok=True)
        if hosts.index == 0:
            _merged_path(folder, phase, suite.name).unlink(missing_ok=True)
    if redone:
        hosts.wait(f"{suite.name} cleared")
    hashes = dict(made_with)
    for phase in reused:
        path = _merged_path(folder, phase, suite.name)
        header, _ = read_lines(path)
        if header is None:
            raise EvalError(f"{path}: no such file; expected the lines of a completed run")
        hashes[phase] = header["made_with"]
    for phase in phases:
        if phase not in reused:
            _run_phase(suite, bench, items, phase, phases, hashes, hosts)
    hosts.wait(f"{suite.name} done")
    if hosts.index:
        return None
    lines = _merge(folder, suite, items, phases, hashes)
    _remove_host_files(folder, suite.name)
    rows, failed = _score(suite, bench, items, lines)
    figures = suite.figures(bench, rows)
    figures[f"{suite.name}_failed"] = len(failed)
    return {"made_with": hashes, "figures": figures, "items": rows, "failed": failed}


def _check_ids(suite: Suite, items: Items) -> None:
    (most, count), *_ = collections.Counter(item.id for item in items).most_common(1)
    if count > 1:
        raise EvalError(f"{suite.name}: {count} items with the id {most!r}, expected one")


def _damaged_items(bench: Bench, first: int) -> list[EvalItem]:
    """Make items of the records that could not be read, whose questions are unknown."""
    return [
        EvalItem(f"record-{place}", first + i, "", None, trouble=reason)
        for i, (place, reason) in enumerate(sorted(bench.records.damaged.items()))
    ]


def _merged_path(folder: pathlib.Path, phase: str, name: str) -> pathlib.Path:
    return folder / FOLDERS[phase] / f"{name}.jsonl"


def _host_path(folder: pathlib.Path, hosts: Hosts, phase: str, name: str) -> pathlib.Path:
    return folder / "hosts" / str(hosts.index) / FOLDERS[phase] / f"{name}.jsonl"


def _saved_lines(folder: pathlib.Path, phase: str, name: str, made_with: str) -> dict[str, Line]:
    """Read all lines of a phase with this hash, from any host."""
    lines = read_matching_lines(_merged_path(folder, phase, name), made_with)
    for path in sorted(folder.glob(f"hosts/*/{FOLDERS[phase]}/{name}.jsonl")):
        lines |= read_matching_lines(path, made_with)
    return lines


def _run_phase(
    suite: Suite,
    bench: Bench,
    items: Items,
    phase: str,
    phases: Sequence[str],
    hashes: Mapping[str, str],
    hosts: Hosts,
) -> None:
    """Run a phase on this host's share of the items that have no line yet."""
    folder = bench.out
    if phase == "judge" and not hosts.writes:  # it needs no model
        return
    in_step = hosts.together and phase != "judge"
    if in_step:  # the lines of the phase before are all written,
        hosts.wait(f"{suite.name} before {phase}")
    saved = {
        name: _saved_lines(folder, name, suite.name, hashes[name])
        for name in phases[: phases.index(phase) + 1]
    }
    if in_step:  # and read by all before host 0 writes more
        hosts.wait(f"{suite.name} read {phase}")
    done = saved.pop(phase)
    remaining = [
        item
        for item in hosts.share(items)
        if item.id not in done and all("failed" not in lines[item.id] for lines in saved.values())
    ]
    if not remaining:
        return
    work: Callable = getattr(suite, phase)
    size = bench.settings.save_every
    bench.begin(len(remaining))
    with contextlib.ExitStack() as stack:
        journal = None
        if hosts.writes:
            path = _host_path(folder, hosts, phase, suite.name)
            journal = stack.enter_context(Journal(path, hashes[phase]))
        for first in range(0, len(remaining), size):
            batch = remaining[first : first + size]
            usable = [item for item in batch if not _trouble(item)]
            # The last phase before this one has the input.
            inputs = [[lines[item.id] for item in usable] for lines in [*saved.values()][-1:]]
            results = work(bench, usable, *inputs) if usable else []
            by_id = {item.id: result for item, result in zip(usable, results, strict=True)}
            if journal is not None:
                journal.add(
                    _make_line(item, by_id.get(item.id) or Failure(_trouble(item)))
                    for item in batch
                )
            bench.advance(len(batch))


def _trouble(item: EvalItem) -> str:
    """Return the reason why an item cannot be used at all, or ""."""
    if item.trouble or item.language in LANGUAGES:
        return item.trouble
    return f"language {item.language!r}, expected one of {LANGUAGES}"


def _make_line(item: EvalItem, result: Line | Failure) -> Line:
    if isinstance(result, Failure):
        return {"id": item.id, "failed": result.reason}
    return {"id": item.id, **result}


def _remove_host_files(folder: pathlib.Path, name: str) -> None:
    """Remove the hosts' files of a suite, which have been merged, and folders that become empty."""
    for path in folder.glob(f"hosts/*/*/{name}.jsonl"):
        path.unlink()
        with contextlib.suppress(OSError):  # not empty: lines of other suites
            for parent in list(path.parents)[:3]:
                parent.rmdir()


def _merge(
    folder: pathlib.Path,
    suite: Suite,
    items: Items,
    phases: Sequence[str],
    hashes: Mapping[str, str],
) -> dict[str, dict[str, Line]]:
    """Write the merged files; returns phase -> id -> line, in the order of the items.

    Raises:
      EvalError: an item without a line.
    """
    merged: dict[str, dict[str, Line]] = {}
    failed: set[str] = set()
    for phase in phases:
        saved = _saved_lines(folder, phase, suite.name, hashes[phase])
        wanted = [item.id for item in items if item.id not in failed]
        missing = [name for name in wanted if name not in saved]
        if missing:
            raise EvalError(
                f"{folder / FOLDERS[phase]}: no line for {len(missing)} of {len(wanted)} items of "
                f"{suite.name}, such as {missing[0]!r}"
            )
        merged[phase] = {name: saved[name] for name in wanted}
        failed |= {name for name in wanted if "failed" in saved[name]}
        path = _merged_path(folder, phase, suite.name)
        write_lines(path, hashes[phase], merged[phase].values())
    return merged


def _score(
    suite: Suite,
    bench: Bench,
    items: Items,
    lines: Mapping[str, Mapping[str, Line]],
) -> tuple[list[Line], list[dict[str, str]]]:
    """Return (each item's row, the failed items with phase and reason)."""
    rows, failed = [], []
    for item in items:
        outputs: list[Line] = []
        trouble: tuple[str, str] | None = None
        for phase in FOLDERS:
            line = lines.get(phase, {}).get(item.id, {})
            if "failed" in line:
                trouble, line = (phase, line["failed"]), {}
            outputs.append(line)
        row = {"id": item.id, "language": item.language}
        scores = {"reference": "", "hypothesis": "", "errors": 0, "units": 0, "correct": False}
        if not _trouble(item):
            try:
                scores = suite.score(bench, item, Outputs(*outputs))
            except ValueError as error:
                trouble = trouble or ("score", str(error))
        row |= scores
        if trouble:
            row["failed"] = ": ".join(trouble)
            failed.append({"id": item.id, "stage": trouble[0], "reason": trouble[1]})
        rows.append(row)
    return rows, failed
