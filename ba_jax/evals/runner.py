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
from collections.abc import Callable, Mapping
from typing import Any

from ba_jax.data.record import RecordError, check_language
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalError, EvalItem, Line, Outputs
from ba_jax.evals.lines import Journal, read_lines, read_matching_lines, write_lines
from ba_jax.evals.suite import Suite
from ba_jax.types import Failure

FOLDERS = {"generate": "generations", "present": "judge_inputs", "judge": "judged"}
"""Phase -> folder of its lines."""
STARTS = ("resume", "generate", "judge", "score")
"""First phase of a run: the first unfinished one, or a named one, with the lines before it."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process among the `count` that share a run.

    Attributes:
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


def run(
    suite: Suite,
    bench: Bench,
    made_with: Mapping[str, str],
    hosts: Hosts = Hosts(),
    start: str = STARTS[0],
) -> dict[str, Any] | None:
    """Run a suite: returns its figures, items and failed items; None on hosts other than the first.

    Args:
      bench: model, data and tools; `bench.out` gets the files.
      made_with: phase -> hash of the settings it depends on; lines with another hash are not used.
      start: an entry of STARTS. "score" and "judge" use saved lines whatever their hash.

    Raises:
      EvalError: no items, two with one id, or saved lines that are damaged or missing.
    """
    run = _SuiteRun(suite, bench, made_with, hosts)
    phases = list(run.hashes)
    redone = {"resume": (), "generate": phases, "judge": phases[2:], "score": ()}[start]
    reused = {"judge": phases[:2], "score": phases}.get(start, ())
    for phase in redone:
        run.host_path(phase).unlink(missing_ok=True)
        if hosts.index == 0:
            run.path(phase).unlink(missing_ok=True)
    if redone:
        hosts.wait(f"{suite.name} cleared")
    for phase in reused:
        before, _ = read_lines(run.path(phase))
        if before is None:
            raise EvalError(
                f"{run.path(phase)}: no such file, or no header; expected the lines of a completed "
                "run"
            )
        run.hashes[phase] = before
    for phase in phases:
        if phase not in reused:
            run.run_phase(phase)
    hosts.wait(f"{suite.name} done")
    if hosts.index:
        return None
    rows, failed = run.score(run.merge())
    figures = suite.figures(bench, rows)
    figures[f"{suite.name}_failed"] = len(failed)
    hashes = {**made_with, **run.hashes}
    return {"made_with": hashes, "figures": figures, "items": rows, "failed": failed}


class _SuiteRun:
    """A suite, its items, and the files of its lines; `hashes` has the phases that it has."""

    def __init__(self, suite: Suite, bench: Bench, made_with: Mapping[str, str], hosts: Hosts):
        self.suite, self.bench, self.hosts = suite, bench, hosts
        self.hashes = {p: made_with[p] for p in FOLDERS if p == "generate" or suite.judged}
        self.items = suite.items(bench)
        if not self.items:
            raise EvalError(f"{suite.name}: no items in the data")
        # Records that could not be read: their questions are unknown.
        for place, reason in sorted(bench.records.damaged.items()):
            item = EvalItem(f"record-{place}", len(self.items), "", None, trouble=reason)
            self.items.append(item)
        (name, count), *_ = collections.Counter(item.id for item in self.items).most_common(1)
        if count > 1:
            raise EvalError(f"{suite.name}: {count} items with the id {name!r}, expected one")

    def path(self, phase: str) -> pathlib.Path:
        """Return the file of all lines of a phase."""
        return self.bench.out / FOLDERS[phase] / f"{self.suite.name}.jsonl"

    def host_path(self, phase: str) -> pathlib.Path:
        """Return this host's file of the lines of a phase."""
        folder = self.bench.out / "hosts" / str(self.hosts.index)
        return folder / FOLDERS[phase] / f"{self.suite.name}.jsonl"

    def read_saved(self, phase: str) -> dict[str, Line]:
        """Read all lines of a phase with its hash, from any host."""
        name = f"{FOLDERS[phase]}/{self.suite.name}.jsonl"
        lines: dict[str, Line] = {}
        for path in (self.path(phase), *sorted(self.bench.out.glob(f"hosts/*/{name}"))):
            lines |= read_matching_lines(path, self.hashes[phase])
        return lines

    def run_phase(self, phase: str) -> None:
        """Run a phase on this host's share of the items that have no line yet."""
        bench, hosts = self.bench, self.hosts
        if phase == "judge" and not hosts.writes:  # it needs no model
            return
        in_step = hosts.together and phase != "judge"
        if in_step:  # the lines of the phase before are all written,
            hosts.wait(f"{self.suite.name} before {phase}")
        phases = list(self.hashes)
        saved = {name: self.read_saved(name) for name in phases[: phases.index(phase) + 1]}
        if in_step:  # and read by all before host 0 writes more
            hosts.wait(f"{self.suite.name} read {phase}")
        done = saved.pop(phase)
        remaining = [
            item
            for item in (self.items if hosts.together else self.items[hosts.index :: hosts.count])
            if item.id not in done
            and all("failed" not in lines[item.id] for lines in saved.values())
        ]
        if not remaining:
            return
        work: Callable = getattr(self.suite, phase)
        size = bench.settings.save_every
        bench.begin(len(remaining))
        journal = Journal(self.host_path(phase), self.hashes[phase]) if hosts.writes else None
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

    def merge(self) -> dict[str, dict[str, Line]]:
        """Write the merged files, and remove the hosts' files, and folders that become empty.

        Returns:
          Phase -> id -> line, in the order of the items.
        """
        name, merged = self.suite.name, {}
        failed: set[str] = set()
        for phase, made_with in self.hashes.items():
            saved = self.read_saved(phase)
            wanted = [item.id for item in self.items if item.id not in failed]
            if missing := [key for key in wanted if key not in saved]:
                raise EvalError(
                    f"{self.path(phase).parent}: no line for {len(missing)} of {len(wanted)} items "
                    f"of {name}, such as {missing[0]!r}"
                )
            merged[phase] = {key: saved[key] for key in wanted}
            failed |= {key for key in wanted if "failed" in saved[key]}
            write_lines(self.path(phase), made_with, merged[phase].values())
        for path in self.bench.out.glob(f"hosts/*/*/{name}.jsonl"):
            path.unlink()
            with contextlib.suppress(OSError):  # not empty: lines of other suites
                for parent in list(path.parents)[:3]:
                    parent.rmdir()
        return merged

    def score(
        self, lines: Mapping[str, Mapping[str, Line]]
    ) -> tuple[list[Line], list[dict[str, str]]]:
        """Return (each item's row, the failed items with phase and reason)."""
        rows, failed = [], []
        for item in self.items:
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
                    scores = self.suite.score(self.bench, item, Outputs(*outputs))
                except ValueError as error:
                    trouble = trouble or ("score", str(error))
            row |= scores
            if trouble:
                row["failed"] = ": ".join(trouble)
                failed.append({"id": item.id, "stage": trouble[0], "reason": trouble[1]})
            rows.append(row)
        return rows, failed


def _trouble(item: EvalItem) -> str:
    """Return the reason why an item cannot be used at all, or ""."""
    try:
        check_language(item.language)
    except RecordError as error:
        return item.trouble or str(error)
    return item.trouble


def _make_line(item: EvalItem, result: Line | Failure) -> Line:
    content = {"failed": result.reason} if isinstance(result, Failure) else result
    return {"id": item.id, **content}
