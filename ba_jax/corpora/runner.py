"""Runs a source into a dataset: plan, make the shards that are missing, finish.

A run that stops at any point, killed even, goes on where it was: shards that are complete are kept.
The folder of a dataset:

    NAME-SPLIT.array_record-00000-of-00004   records
    dataset_info.json, features.json         TFDS's; there once the run is complete
    report.md, report.json, rejected.jsonl   what was written, and what was not and why
    prepare.json                             the config, and a fingerprint of it and the listing
    .prepare/                                while the run is not complete: its state
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ba_jax.config import ConfigError, from_mapping, to_mapping
from ba_jax.corpora import report as reports
from ba_jax.corpora.shards import WORK, Job, divide, is_done, make_shard, write_json
from ba_jax.corpora.sources.base import Item, Rejection, Source
from ba_jax.corpora.sources.listing import SourceError
from ba_jax.corpora.sources.registry import source_class
from ba_jax.data.record import Shard, write_metadata

VERSION = 1  # of what is written for a listing; part of the fingerprint
STATE = "prepare.json"
_INFO = "dataset_info.json"
_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
_POLL = 0.2  # seconds between two looks at the progress


class PrepareError(RuntimeError):
    """A run that cannot start or go on: says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What to prepare.

    Attributes:
      kind: of source, a key of `sources.SOURCES`.
      source: fields of its class.
      items_per_shard: how many of the source's items make one file of records.
      max_rejected: the run fails if more than this share of all there was is rejected.
    """

    kind: str
    source: dict
    items_per_shard: int = 256
    max_rejected: float = 0.5

    def __post_init__(self):
        if self.items_per_shard < 1:
            raise ValueError(f"items_per_shard = {self.items_per_shard}, expected at least 1")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected = {self.max_rejected}, expected 0 to 1")

    def make_source(self) -> Source:
        """The source.

        Raises:
          SourceError: an unknown kind, or a value that makes no sense.
          ConfigError: an unknown or ill-typed field.
        """
        with _sensible("config.source"):
            source = from_mapping(source_class(self.kind), self.source, "config.source")
            if not _NAME.fullmatch(source.name):
                raise ValueError(f"name = {source.name!r}, expected letters, digits and _")
            return source


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do: a function of the config and of what the source lists.

    Attributes:
      config: of the run.
      source: of the items.
      jobs: the shards.
      rejected: what was rejected while listing.
      fingerprint: of all of the above.
      items, seconds: how many items, and their speech as far as it is known.
    """

    config: PrepareConfig
    source: Source
    jobs: tuple[Job, ...]
    rejected: tuple[Rejection, ...]
    fingerprint: str
    items: int
    seconds: float


def make_plan(config: PrepareConfig) -> Plan:
    """Lists a source and divides it into shards.

    Raises:
      SourceError: the corpus is not there, or is in another layout.
    """
    source = config.make_source()
    items, rejected = [], []
    first: dict[str, str] = {}
    for listed in source.items():
        if isinstance(listed, Rejection):
            rejected.append(listed)
        elif listed.id in first:
            detail = f"{listed.id!r} is also at {first[listed.id]}"
            rejected.append(Rejection(listed.where, "duplicate id", detail, listed.seconds))
        elif not _NAME.fullmatch(listed.split):
            detail = f"split {listed.split!r}, expected letters, digits and _"
            rejected.append(Rejection(listed.where, "bad value", detail, listed.seconds))
        else:
            first[listed.id] = listed.where
            items.append(listed)
    return Plan(
        config,
        source,
        tuple(divide(items, config.items_per_shard)),
        tuple(rejected),
        _fingerprint(config, items, rejected),
        len(items),
        sum(item.seconds for item in items),
    )


def _fingerprint(config: PrepareConfig, items: list[Item], rejected: list[Rejection]) -> str:
    digest = hashlib.sha256()
    head = [VERSION, config.kind, to_mapping(config)["source"], config.items_per_shard]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for listed in (*items, *rejected):
        digest.update(ascii(listed).encode() + b"\n")
    return digest.hexdigest()


# --- one run ------------------------------------------------------------------------------------


def prepare(
    config: PrepareConfig,
    directory: str | os.PathLike,
    *,
    workers: int = 1,
    overwrite: bool = False,
    make_all: Callable[[Plan, list[Job], Path], None] | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Makes a dataset, or goes on making it; returns its report.

    Args:
      config: what to prepare.
      directory: the dataset's folder.
      workers: processes; 0 works in this one.
      overwrite: discard what another config left there.
      make_all: makes the jobs given, in place of local processes.
      show_progress: a bar on the standard error.

    Raises:
      SourceError, ConfigError: the source cannot be listed.
      PrepareError: the folder holds something else, a worker died, nothing was left to write, or
        too much was rejected.
      PrepareError, ShardError: the source failed, in a worker or in this process.
    """
    directory = Path(directory)
    plan = make_plan(config)
    if directory.exists() and not directory.is_dir():
        raise PrepareError(f"{directory}: is a file, expected a folder or nothing")
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        if not _open(plan, directory, overwrite):
            return read_report(directory)
        name = plan.source.name
        missing = [job for job in plan.jobs if not is_done(job, directory, name, plan.fingerprint)]
        for job in missing:
            job.claim_path(directory).unlink(missing_ok=True)
        if make_all is None:
            _make_locally(plan, missing, directory, workers, show_progress)
        elif missing:
            make_all(plan, missing, directory)
        return _finish(plan, directory)


def read_report(directory: Path) -> dict[str, Any]:
    """The report of a run."""
    return json.loads((directory / reports.REPORT_JSON).read_text(encoding="utf-8"))


def _open(plan: Plan, directory: Path, overwrite: bool) -> bool:
    """Makes the folder ready; False if it holds the complete dataset already."""
    state = directory / STATE
    stored: Mapping[str, Any] = {}
    if state.is_file():
        try:
            stored = json.loads(state.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PrepareError(f"{state}: no JSON ({error}), expected a run's state") from None
    elif any(directory.iterdir()):
        raise PrepareError(
            f"{directory}: holds something, but no {STATE}: not made by prepare, choose another "
            "--out"
        )
    if overwrite:
        stored = {}
        _clear(directory)
    if stored and stored.get("fingerprint") != plan.fingerprint:
        raise PrepareError(
            f"{directory}: was made with another config, or the corpus has changed since"
            f"{_difference(stored, plan)}; --overwrite replaces it, or choose another --out"
        )
    if stored.get("complete"):
        _check_complete(plan, directory)
        return False
    (directory / WORK).mkdir(parents=True, exist_ok=True)
    write_json(state, _state(plan, complete=False))
    return True


def _check_complete(plan: Plan, directory: Path) -> None:
    # A run that was killed at its very end left this.
    shutil.rmtree(directory / WORK, ignore_errors=True)
    splits = read_report(directory)["splits"]
    for job in plan.jobs:
        path = job.path(directory, plan.source.name)
        if splits[job.split]["records"] and not path.is_file():
            raise PrepareError(
                f"{path}: is gone from a dataset that was complete; --overwrite makes it anew"
            )


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps a second run out of the folder; the lock goes with the process that holds it."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PrepareError(f"{directory}: another run is at work there") from None
    finally:
        os.close(lock)


def _state(plan: Plan, complete: bool) -> dict[str, Any]:
    return {
        "fingerprint": plan.fingerprint,
        "complete": complete,
        "name": plan.source.name,
        "config": to_mapping(plan.config),
    }


def _difference(stored: Mapping[str, Any], plan: Plan) -> str:
    old, new = stored.get("config", {}), to_mapping(plan.config)
    flat_old, flat_new = dict(_flat(old)), dict(_flat(new))
    keys = sorted(k for k in flat_old | flat_new if flat_old.get(k) != flat_new.get(k))
    keys = [k for k in keys if k != "max_rejected"]
    words = [f"{k} was {flat_old.get(k)!r}, is {flat_new.get(k)!r}" for k in keys]
    return f" ({'; '.join(words)})" if words else " (the config is the same)"


def _flat(value: Any, name: str = ""):
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _clear(directory: Path) -> None:
    """Removes what prepare made, and nothing else."""
    names = [STATE, _INFO, "features.json", "LICENSE", reports.REPORT_JSON, reports.REPORT_MD]
    names += [reports.REJECTED, reports.WARNINGS]
    # The state goes last: a run that is killed here is still known to be one.
    for path in (*directory.glob("*.array_record-*"), *(directory / n for n in reversed(names))):
        path.unlink(missing_ok=True)
    shutil.rmtree(directory / WORK, ignore_errors=True)


def _finish(plan: Plan, directory: Path) -> dict[str, Any]:
    """Metadata and report, from the shards' side files."""
    sides: dict[str, list] = {}
    for job in plan.jobs:
        side = json.loads(job.side_path(directory).read_text(encoding="utf-8"))
        sides.setdefault(job.split, []).append(side)
    report = reports.summarise(plan.source.name, sides, plan.rejected)
    reports.write_report(directory, report, sides, plan.rejected)
    written, rejected = report["records"], report["rejected"]["records"]
    if not written:
        raise PrepareError(
            f"{directory}: no record was written: {rejected} rejected, see {reports.REPORT_MD}"
        )
    share = rejected / (written + rejected)
    if share > plan.config.max_rejected:
        raise PrepareError(
            f"{directory}: {rejected} rejected and {written} written: {share:.1%}, expected at "
            f"most max_rejected = {plan.config.max_rejected:.1%}; see {reports.REPORT_MD}. Run "
            "again with a higher max_rejected to take the rest as it is"
        )
    plan.source.finish(directory)
    shards = {
        split: [Shard(side["records"], side["size"]) for side in own]
        for split, own in sides.items()
        if report["splits"][split]["records"]
    }
    for job in plan.jobs:
        if job.split not in shards:
            job.path(directory, plan.source.name).unlink(missing_ok=True)
    write_metadata(
        directory,
        plan.source.name,
        shards,
        description=plan.source.description,
        licence=plan.source.licence,
    )
    write_json(directory / STATE, _state(plan, complete=True))
    shutil.rmtree(directory / WORK)
    return report


# --- local processes ----------------------------------------------------------------------------


def _make_locally(
    plan: Plan, jobs: list[Job], directory: Path, workers: int, show_progress: bool
) -> None:
    import tqdm

    done = plan.items - sum(len(job.items) for job in jobs)
    with tqdm.tqdm(
        total=plan.items,
        initial=done,
        unit="item",
        desc=plan.source.name,
        disable=not show_progress,
        dynamic_ncols=True,
    ) as bar:
        if workers < 1:
            for job in jobs:
                make_shard(job, plan.source, directory, plan.fingerprint, bar.update)
        elif jobs:
            _make_in_pool(plan, jobs, directory, workers, bar)


def _make_in_pool(plan: Plan, jobs: list[Job], directory: Path, workers: int, bar) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    waiting = iter(jobs)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(plan.source, str(directory), plan.fingerprint, counter),
    )
    running: dict[concurrent.futures.Future, Job] = {}
    processes: dict[int, multiprocessing.Process] = {}
    first = bar.n
    try:
        while True:
            # Few at a time: a shard's items travel when its turn comes.
            while len(running) < 2 * workers and (job := next(waiting, None)) is not None:
                running[pool.submit(_work, job)] = job
            processes.update(pool._processes or {})
            if not running:
                return
            finished, _ = concurrent.futures.wait(
                running, _POLL, concurrent.futures.FIRST_COMPLETED
            )
            bar.update(first + counter.value - bar.n)
            for future in finished:
                failure = future.result()
                if failure is not None:
                    raise PrepareError(f"{failure}; shards that were complete are kept")
                del running[future]
    except BrokenProcessPool as error:
        _stop(pool, processes)
        # The pool ends the others with SIGTERM.
        codes = {pid: process.exitcode for pid, process in processes.items()}
        dead = [pid for pid, code in codes.items() if code not in (0, -signal.SIGTERM)]
        raise PrepareError(_describe_death(running.values(), directory, dead, codes)) from error
    finally:
        bar.update(first + counter.value - bar.n)
        _stop(pool, processes)


def _stop(
    pool: concurrent.futures.ProcessPoolExecutor, processes: Mapping[int, multiprocessing.Process]
) -> None:
    """Ends a pool at once: a shard that it has begun is made again by the next run."""
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes.values():
        if process.exitcode is None:
            process.terminate()
    for process in processes.values():
        process.join(5)
        if process.exitcode is None:
            process.kill()
            process.join()


def _describe_death(jobs, directory: Path, dead: list[int], codes: Mapping[int, int]) -> str:
    """Who died at what: every future of a broken pool fails alike, the claims tell them apart."""
    lines = []
    for job in jobs:
        claim = job.claim_path(directory)
        if claim.is_file():
            line, _, _ = claim.read_text(encoding="utf-8", errors="replace").partition("\n")
            pid, _, item = line.partition(" ")
            if pid and (int(pid) in dead or not dead):
                code = codes.get(int(pid))
                lines.append(f"process {pid} (exit code {code}) at item {item} of {job.describe()}")
    at = "; ".join(lines) or "before it began a shard"
    return (
        f"a worker process died (killed, out of memory, or a crash in native code): {at}. Shards "
        "that were complete are kept: run again to go on"
    )


_WORKER: dict[str, Any] = {}


def _start_worker(source: Source, directory: str, fingerprint: str, counter) -> None:
    # The main process stops its workers; one that was killed cannot.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _WORKER.update(
        source=source, directory=Path(directory), fingerprint=fingerprint, counter=counter
    )


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(job: Job) -> str | None:
    """Makes a shard in a worker; returns what went wrong, as text: errors may not be picklable."""

    def progress() -> None:
        with _WORKER["counter"].get_lock():
            _WORKER["counter"].value += 1

    try:
        make_shard(job, _WORKER["source"], _WORKER["directory"], _WORKER["fingerprint"], progress)
    except Exception as error:
        return f"{job.describe()}: {error}"
    return None


# --- looking first ------------------------------------------------------------------------------


def dry_run(config: PrepareConfig) -> str:
    """Lists a source and says what a run would do; writes nothing.

    Raises:
      SourceError, ConfigError: the source cannot be listed.
      PrepareError: it lists nothing to make records of.
    """
    plan = make_plan(config)
    by_split: dict[str, list[int]] = {}
    for job in plan.jobs:
        row = by_split.setdefault(job.split, [0, 0])
        row[0] += len(job.items)
        row[1] += 1
    lines = [f"# {plan.source.name}: {plan.items} items listed, nothing written", ""]
    for split, (items, shards) in by_split.items():
        seconds = sum(i.seconds for job in plan.jobs if job.split == split for i in job.items)
        hours = f"{seconds / 3600:.2f} h" if seconds else "hours not known before reading"
        lines.append(f"- {split}: {items} items in {shards} shards, {hours}")
    rows = [vars(rejection) for rejection in plan.rejected]
    total = {"records": len(rows), "hours": sum(row["seconds"] for row in rows) / 3600}
    reasons = reports.count_reasons(plan.rejected)
    lines += ["", *reports.rejection_lines(total, reasons, rows, full="")]
    text = "\n".join(lines)
    if not plan.items:
        raise PrepareError(f"{text}\nnothing to make records of")
    return text


def config_from(values: Mapping[str, Any]) -> PrepareConfig:
    """A config from nested mappings.

    Raises:
      ConfigError: an unknown, missing or ill-typed key.
      SourceError: a value that makes no sense.
    """
    with _sensible("config"):
        return from_mapping(PrepareConfig, values, "config")


@contextlib.contextmanager
def _sensible(what: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, SourceError):
        raise
    except ValueError as error:  # of a dataclass's own checks
        raise SourceError(f"{what}: {error}") from None
