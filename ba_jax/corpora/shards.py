"""Shards: the unit of work and of resuming, each made of a fixed run of a source's items.

A shard is done once its side file exists, which holds counts, rejections and warnings. Its content
depends on the listing alone, not on the process that makes it: a run with any number of workers, a
resumed run and a run on a cluster give the same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ba_jax.audio import AudioError
from ba_jax.corpora.sources.base import Aside, Item, Notice, Rejected, Rejection, Source
from ba_jax.data.features import one_blas_thread
from ba_jax.data.record import Record, RecordError, Shard, check_record, shard_name, write_shard
from ba_jax.files import write_json

STATE = "prepare.json"
"""File of a dataset's folder with its config and fingerprint."""
WORK = ".prepare"
"""Folder inside a dataset's folder with the side files of an incomplete run."""
SPECIAL_TEXT = "special-token text"
# Spellings of the release's added tokens and of SentencePiece's control tokens.
_SPECIAL = re.compile(
    r"<\|\w+\|>|<\w*baichuan\w*>|<[BC]_[A-Z]+>|</?(?:s|unk|pad|tool_call)>"
    r"|<(?:calc_start|calc_end|function_calling|inner_think|reserved_\d+)>"
)


class PrepareError(RuntimeError):
    """A run that cannot start, resume or finish, or a failing source: names the cause."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to make: its place in the dataset, and its items in order."""

    split: str
    number: int
    count: int
    items: tuple[Item, ...]

    def path(self, directory: Path, name: str) -> Path:
        """Path of the records."""
        return directory / shard_name(name, self.split, self.number, self.count)

    def aside_path(self, directory: Path, name: str, aside: str) -> Path:
        """Path of the records for another dataset."""
        return self.path(directory / aside, f"{name}_{aside}")

    def side_path(self, directory: Path) -> Path:
        """Path of the side file."""
        return directory / WORK / f"{self.split}-{self.number:05d}.json"

    def claim_path(self, directory: Path) -> Path:
        """Path of the file that names the process at work and its current item."""
        return directory / WORK / f"{self.split}-{self.number:05d}.claim"

    def describe(self) -> str:
        """The shard and its items, for messages."""
        first, last = self.items[0], self.items[-1]
        return (
            f"shard {self.number + 1} of {self.count} of split {self.split!r}, "
            f"items {first.id} ({first.where}) to {last.id} ({last.where})"
        )


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The work of a run, a function of its config and of the source's listing."""

    source: Source
    jobs: tuple[Job, ...]
    rejected: tuple[Rejection, ...]
    fingerprint: str
    notices: tuple[Notice, ...] = ()

    @property
    def items(self) -> int:
        """Number of items."""
        return sum(len(job.items) for job in self.jobs)

    def missing_jobs(self, directory: Path) -> list[Job]:
        """The shards that are not complete yet."""
        name = self.source.name
        return [job for job in self.jobs if not is_done(job, directory, name, self.fingerprint)]


def divide(items: Sequence[Item], items_per_shard: int) -> list[Job]:
    """Divide items into shards, a function of the listing alone."""
    by_split: dict[str, list[Item]] = {}
    for item in items:
        by_split.setdefault(item.split, []).append(item)
    jobs = []
    for split in sorted(by_split):
        starts = range(0, len(by_split[split]), items_per_shard)
        for number, start in enumerate(starts):
            run = tuple(by_split[split][start : start + items_per_shard])
            jobs.append(Job(split, number, len(starts), run))
    return jobs


def find_special_tokens(text: str) -> list[str]:
    """The distinct spellings of special tokens in a text, in order."""
    return list(dict.fromkeys(_SPECIAL.findall(text)))


def is_done(job: Job, directory: Path, name: str, fingerprint: str) -> bool:
    """Whether a shard is complete: a side file, and records of the size stated there."""
    try:
        side = json.loads(job.side_path(directory).read_text(encoding="utf-8"))
        size = job.path(directory, name).stat().st_size
    except (OSError, ValueError):
        return False
    return side.get("fingerprint") == fingerprint and side.get("file_bytes") == size


def make_shard(
    job: Job,
    source: Source,
    directory: Path,
    fingerprint: str,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Make a shard and its side file, and return the side file's content.

    `fingerprint`, the run's, is stored with the shard; `progress` is called after each item.
    """
    rejected: list[Rejection] = []
    asides: dict[str, list[Record]] = {name: [] for name in source.asides}
    warnings: list[dict[str, str]] = []
    counts: collections.Counter = collections.Counter()
    seconds: collections.defaultdict = collections.defaultdict(float)
    speakers: dict[str, list] = {}
    path = job.path(directory, source.name)
    directory.joinpath(WORK).mkdir(parents=True, exist_ok=True)

    def records(claim: BinaryIO) -> Iterator[Record]:
        for item in job.items:
            line = f"{os.getpid()} {item.id} ({item.where})\n"
            # Only the first line counts: a longer earlier line may follow it.
            os.pwrite(claim.fileno(), line.encode("utf-8", "backslashreplace"), 0)
            for record in _records_of(item, source, rejected, asides):
                key = f"{record.language} {record.kind}"
                counts[key] += 1
                seconds[key] += record.seconds
                for part in record.parts:
                    if part.speaker and part.is_spoken:
                        count = speakers.setdefault(part.speaker, [0, 0.0])
                        count[0] += 1
                        count[1] += part.seconds
                    for text in (part.text, part.translation):
                        for token in find_special_tokens(text):
                            detail = f"{record.id}: {token}, kept as plain text"
                            warnings.append(
                                {"where": item.where, "reason": SPECIAL_TEXT, "detail": detail}
                            )
                yield record
            if progress is not None:
                progress()

    def write(path: Path, records: Iterable[Record]) -> Shard:
        # A unique name: a cluster may run a slow shard twice at the same time.
        part = directory / WORK / f"{path.name}.{secrets.token_hex(6)}"
        written = write_shard(part, records)
        path.parent.mkdir(exist_ok=True)
        part.replace(path)
        return written

    # The number of threads changes the last bit of resampled waves.
    with open(job.claim_path(directory), "wb") as claim, one_blas_thread():
        written = write(path, records(claim))
    aside = {
        name: write(job.aside_path(directory, source.name, name), kept)
        for name, kept in asides.items()
    }
    side = {
        "fingerprint": fingerprint,
        "file_bytes": path.stat().st_size,
        "records": written.records,
        "size": written.size,
        "counts": {key: [counts[key], seconds[key]] for key in sorted(counts)},
        "speakers": {name: speakers[name] for name in sorted(speakers)},
        "rejected": [dataclasses.asdict(rejection) for rejection in rejected],
        "warnings": warnings,
        "asides": {name: dataclasses.asdict(shard) for name, shard in aside.items()},
    }
    write_json(job.side_path(directory), side)
    job.claim_path(directory).unlink(missing_ok=True)
    return side


def _records_of(
    item: Item, source: Source, rejected: list[Rejection], asides: dict[str, list[Record]]
) -> list[Record]:
    """All records of an item, or none if it is rejected; adds to `rejected` and `asides`."""
    records, pieces = [], []
    seen: set[str] = set()
    try:
        for record in source.records(item):
            if isinstance(record, Rejection):
                pieces.append(record)
                continue
            if isinstance(record, Aside):
                asides[record.name].append(check_record(record.record))
                continue
            if not record.id.startswith(item.id):
                raise PrepareError(
                    f"{item.where}: record {record.id!r}, expected an id that begins with "
                    f"{item.id!r}"
                )
            if record.id in seen:
                detail = f"{record.id!r} twice in item {item.id!r}"
                pieces.append(Rejection(item.where, "duplicate id", detail))
                continue
            try:
                records.append(check_record(record))
            except RecordError as error:
                pieces.append(Rejection(item.where, "malformed record", str(error), record.seconds))
                continue
            seen.add(record.id)
    except Rejected as error:
        rejected.append(error.at(item.where))
        return []
    except AudioError as error:
        rejected.append(Rejection(item.where, error.reason, str(error)))
        return []
    except PrepareError:
        raise
    except Exception as error:
        # The error's own class may not be picklable.
        raise PrepareError(f"{item.where}: item {item.id!r}: {error!r}") from error
    rejected.extend(pieces)
    return records
