"""Run a source into a dataset: plan, make the missing shards, finish.

An interrupted or killed run resumes: complete shards are kept. The folder of a dataset:

    NAME-SPLIT.array_record-00000-of-00004   records
    dataset_info.json, features.json         TFDS's; they exist once the run is complete
    report.md, report.json, rejected.jsonl   counts of records, and rejections with reasons
    prepare.json                             the config, and a fingerprint of it and the listing
    .prepare/                                state of an incomplete run

Two ways to make the shards share this module and `shards`: `pool`, processes on this machine, needs
nothing but the standard library and is what most users run; `beam`, an Apache Beam pipeline, is for
corpora that outgrow one machine and needs a cluster to be faster than the pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.config import ConfigError, check_at_least, expected, from_mapping, to_mapping
from ba_jax.corpora import pool
from ba_jax.corpora import report as reports
from ba_jax.corpora.embedded import EmbeddedCorpus
from ba_jax.corpora.shards import STATE, WORK, Job, PrepareError, ShardPlan, divide
from ba_jax.corpora.sources.aishell import Aishell
from ba_jax.corpora.sources.base import Item, Notice, Rejected, Rejection, Source
from ba_jax.corpora.sources.common_voice import CommonVoice, Covost2
from ba_jax.corpora.sources.crawl import Crawl
from ba_jax.corpora.sources.fleurs import Fleurs
from ba_jax.corpora.sources.instructions import Instructions
from ba_jax.corpora.sources.libri import LibriSpeech, LibriTTS, LJSpeech
from ba_jax.corpora.sources.listing import check_unicode
from ba_jax.corpora.sources.manifest import Manifest
from ba_jax.corpora.sources.plain_text import PlainText
from ba_jax.corpora.sources.spliced import Spliced
from ba_jax.corpora.sources.synthetic import Synthetic
from ba_jax.corpora.sources.wenetspeech import WenetSpeech
from ba_jax.data.record import RecordError, Shard, check_name, write_metadata
from ba_jax.files import is_litter, write_json

FAILED = 1
"""Exit code of the commands that make datasets, of a run that failed."""
VERSION = 1  # of the records written for a listing; part of the fingerprint

SOURCES: dict[str, type] = {
    "manifest": Manifest,
    "librispeech": LibriSpeech,
    "libritts": LibriTTS,
    "ljspeech": LJSpeech,
    "aishell": Aishell,
    "wenetspeech": WenetSpeech,
    "fleurs": Fleurs,
    "common_voice": CommonVoice,
    "covost2": Covost2,
    "text": PlainText,
    "embedded": EmbeddedCorpus,
    "crawl": Crawl,
    "synthetic": Synthetic,
    "instructions": Instructions,
    "spliced": Spliced,
}
"""Kind of source in a config -> its class, a frozen dataclass."""


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """The config of a run.

    Attributes:
      kind: kind of source, a key of SOURCES.
      source: fields of its class.
      items_per_shard: number of the source's items in a file of records.
      max_rejected: the run fails if a larger share of everything is rejected.
    """

    kind: str
    source: dict
    items_per_shard: int = 256
    max_rejected: float = 0.5

    def __post_init__(self):
        check_at_least(self, items_per_shard=1)
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected = {self.max_rejected}, expected 0 to 1")

    def make_source(self) -> Source:
        """Make the source, or raise ConfigError."""
        if self.kind not in SOURCES:
            raise ConfigError(f"kind = {expected(self.kind, sorted(SOURCES))}")
        source = from_mapping(SOURCES[self.kind], self.source, "config.source")
        try:
            check_name(source.name, "name =")
            for split in (getattr(source, "split", "train"), *getattr(source, "splits", ())):
                check_name(split, "split =")
        except RecordError as error:
            raise ConfigError(f"config.source: {error}") from None
        return source


def config_from(values: Mapping[str, Any]) -> PrepareConfig:
    """Read a config from nested mappings, or raise ConfigError."""
    return from_mapping(PrepareConfig, values, "config")


def make_plan(config: PrepareConfig) -> ShardPlan:
    """List a source and divide it into shards."""
    source = config.make_source()
    items, rejected, notices = [], [], []
    places: dict[str, str] = {}
    for listed in source.items():
        if isinstance(listed, Rejection):
            rejected.append(listed)
        elif isinstance(listed, Notice):
            notices.append(listed)
        elif listed.id in places:
            detail = f"{listed.id!r} is also at {places[listed.id]}"
            rejected.append(Rejection(listed.where, "duplicate id", detail, listed.seconds))
        else:
            try:
                check_unicode(listed.id, "id")
                check_name(listed.split, "split")
            except Rejected as error:
                rejected.append(error.at(listed.where))
            except RecordError as error:
                rejected.append(Rejection(listed.where, "bad value", str(error), listed.seconds))
            else:
                places[listed.id] = listed.where
                items.append(listed)
    return ShardPlan(
        source,
        tuple(divide(items, config.items_per_shard)),
        tuple(rejected),
        _fingerprint(config, items, rejected),
        tuple(notices),
    )


def _fingerprint(config: PrepareConfig, items: list[Item], rejected: list[Rejection]) -> str:
    digest = hashlib.sha256()
    head = [VERSION, config.kind, to_mapping(config)["source"], config.items_per_shard]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for listed in (*items, *rejected):
        digest.update(ascii(listed).encode() + b"\n")
    return digest.hexdigest()


# --- a run --------------------------------------------------------------------------------------


def prepare(
    config: PrepareConfig,
    directory: str | os.PathLike,
    *,
    workers: int = 1,
    overwrite: bool = False,
    run_jobs: Callable[[ShardPlan, list[Job], Path], None] | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Make a dataset, or resume making it; returns its report.

    Args:
      workers: processes; 0 works in this process.
      overwrite: discard the output of another config.
      run_jobs: makes the missing shards in place of local processes.

    Raises:
      SourceError, ConfigError: the source cannot be listed.
      PrepareError: the folder holds something else, the source failed, a worker died, no record was
        written, or too much was rejected.
    """
    directory = Path(directory)
    plan = make_plan(config)
    if directory.exists() and not directory.is_dir():
        raise PrepareError(f"{directory}: is a file, expected a folder or nothing")
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        if not _open_run(config, plan, directory, overwrite):
            return read_report(directory)
        missing = plan.missing_jobs(directory)
        for job in missing:
            job.claim_path(directory).unlink(missing_ok=True)
        if run_jobs is None:
            pool.make_shards(plan, missing, directory, workers, show_progress)
        elif missing:
            run_jobs(plan, missing, directory)
        return _finish(config, plan, directory)


def read_report(directory: Path) -> dict[str, Any]:
    """The report of a run."""
    return json.loads((directory / reports.REPORT_JSON).read_text(encoding="utf-8"))


def _open_run(config: PrepareConfig, plan: ShardPlan, directory: Path, overwrite: bool) -> bool:
    """Prepare the folder; False if it holds the complete dataset already."""
    state = directory / STATE
    stored: Mapping[str, Any] = {}
    if state.is_file():
        try:
            stored = json.loads(state.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PrepareError(f"{state}: no JSON ({error}), expected a run's state") from None
    elif not all(is_litter(path.name) for path in directory.iterdir()):
        raise PrepareError(
            f"{directory}: holds something, but no {STATE}: not made by prepare, choose another "
            "--out"
        )
    if overwrite:
        stored = {}
        _clear(directory, plan.source.asides)
    if stored and stored.get("fingerprint") != plan.fingerprint:
        raise PrepareError(
            f"{directory}: was made with another config, or the corpus has changed since"
            f"{_describe_change(stored, config)}; --overwrite replaces it, or choose another --out"
        )
    if stored.get("complete"):
        # A run killed at its very end leaves this folder.
        shutil.rmtree(directory / WORK, ignore_errors=True)
        _check_complete(plan, directory)
        return False
    (directory / WORK).mkdir(parents=True, exist_ok=True)
    _write_state(config, plan, directory, complete=False)
    return True


def _check_complete(plan: ShardPlan, directory: Path) -> None:
    splits = read_report(directory)["splits"]
    for job in plan.jobs:
        path = job.path(directory, plan.source.name)
        if splits[job.split]["records"] and not path.is_file():
            raise PrepareError(
                f"{path}: is missing from a dataset that was complete; --overwrite makes it anew"
            )


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock ends with the process that holds it."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PrepareError(f"{directory}: another run is at work there") from None
    finally:
        os.close(lock)


def _write_state(config: PrepareConfig, plan: ShardPlan, directory: Path, complete: bool) -> None:
    state = {
        "fingerprint": plan.fingerprint,
        "complete": complete,
        "name": plan.source.name,
        "config": to_mapping(config),
    }
    write_json(directory / STATE, state)


def _describe_change(stored: Mapping[str, Any], config: PrepareConfig) -> str:
    old, new = (dict(_flatten(c)) for c in (stored.get("config", {}), to_mapping(config)))
    keys = sorted(k for k in old | new if old.get(k) != new.get(k) and k != "max_rejected")
    changes = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in keys]
    return f" ({'; '.join(changes)})" if changes else " (the config is the same)"


def _flatten(value: Any, name: str = ""):
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _clear(directory: Path, asides: Sequence[str]) -> None:
    names = ("LICENSE", *reports.WRITTEN)
    for path in (*directory.glob("*.array_record-*"), *(directory / name for name in names)):
        path.unlink(missing_ok=True)
    for name in (*asides, WORK):
        shutil.rmtree(directory / name, ignore_errors=True)


def _finish(config: PrepareConfig, plan: ShardPlan, directory: Path) -> dict[str, Any]:
    sides: dict[str, list] = {}
    for job in plan.jobs:
        side = json.loads(job.side_path(directory).read_text(encoding="utf-8"))
        sides.setdefault(job.split, []).append(side)
    report = reports.summarise(plan.source.name, sides, plan.rejected, plan.notices)
    reports.write_report(directory, report, sides, plan.rejected, plan.notices)
    written, rejected = report["records"], report["rejected"]["records"]
    if not written:
        raise PrepareError(
            f"{directory}: no record was written: {rejected} rejected, see {reports.REPORT_MD}"
        )
    share = rejected / (written + rejected)
    if share > config.max_rejected:
        raise PrepareError(
            f"{directory}: {rejected} rejected and {written} written: {share:.1%}, expected at "
            f"most max_rejected = {config.max_rejected:.1%}; see {reports.REPORT_MD}. Run again "
            "with a higher max_rejected to accept the written records"
        )
    plan.source.finish(directory)
    for aside in plan.source.asides:
        _finish_aside(plan, directory, aside, sides)
    shards = {
        split: [Shard(side["records"], side["size"]) for side in split_sides]
        for split, split_sides in sides.items()
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
    _write_state(config, plan, directory, complete=True)
    shutil.rmtree(directory / WORK)
    return report


def _finish_aside(plan: ShardPlan, directory: Path, aside: str, sides) -> None:
    """Make a dataset of the records for another one, or nothing without any."""
    folder, name = directory / aside, f"{plan.source.name}_{aside}"
    shards = {
        split: [Shard(**side["asides"][aside]) for side in split_sides]
        for split, split_sides in sides.items()
        if any(side["asides"][aside]["records"] for side in split_sides)
    }
    for job in plan.jobs:
        if job.split not in shards:
            job.aside_path(directory, plan.source.name, aside).unlink(missing_ok=True)
    if not shards:
        shutil.rmtree(folder, ignore_errors=True)
        return
    description = f"{plan.source.description}\nSet aside for {aside}.".strip()
    write_metadata(folder, name, shards, description=description, licence=plan.source.licence)


def dry_run(config: PrepareConfig) -> str:
    """List a source and describe the run; writes nothing."""
    plan = make_plan(config)
    by_split: dict[str, list[Job]] = {}
    for job in plan.jobs:
        by_split.setdefault(job.split, []).append(job)
    lines = [f"# {plan.source.name}: {plan.items} items listed, nothing written", ""]
    for split, jobs in by_split.items():
        items = [item for job in jobs for item in job.items]
        seconds = sum(item.seconds for item in items)
        hours = f"{seconds / 3600:.2f} h" if seconds else "hours not known before reading"
        lines.append(f"- {split}: {len(items)} items in {len(jobs)} shards, {hours}")
    report = reports.summarise(plan.source.name, {}, plan.rejected)
    rows = reports.all_rejections({}, plan.rejected)
    lines += ["", *reports.rejection_lines(report["rejected"], report["reasons"], rows, full="")]
    # File names may hold bytes that are no Unicode, which cannot be printed.
    text = "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")
    if not plan.items:
        raise PrepareError(f"{text}\nnothing to make records of")
    return text


# --- command lines --------------------------------------------------------------------------------


def print_report(report: Mapping[str, Any], directory: str, codes: str = "") -> None:
    """Print a run's report and a summary line."""
    print((Path(directory) / reports.REPORT_MD).read_text(encoding="utf-8"))
    print(f"{report['records']} records, {report['hours']:.2f} h{codes} in {directory}")
