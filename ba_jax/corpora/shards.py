"""The unit of work and of resumption: a shard, made of a fixed run of a source's items.

A shard is done once its side file is there: counts, rejections and warnings, beside the records. It
depends on the listing alone, not on which process makes it, so that a run with any number of
workers, a resumed run and a run on a cluster give the same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ba_jax.audio import AudioError
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, Source
from ba_jax.data.features import one_blas_thread
from ba_jax.data.record import Record, RecordError, check_record, shard_name, write_shard

WORK = ".prepare"
"""Folder inside the dataset's with the side files of a run that is not complete."""
SPECIAL_TEXT = "special-token text"
# Spellings of the release's added tokens and of SentencePiece's control tokens.
_SPECIAL = re.compile(
    r"<\|\w+\|>|<\w*baichuan\w*>|<[BC]_[A-Z]+>|</?(?:s|unk|pad|tool_call)>"
    r"|<(?:calc_start|calc_end|function_calling|inner_think|reserved_\d+)>"
)


class ShardError(RuntimeError):
    """A source that failed in a way that is no rejection: names the item."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to make.

    Attributes:
      split, number, count: the shard's place in the dataset.
      items: what it is made of.
    """

    split: str
    number: int
    count: int
    items: tuple[Item, ...]

    def path(self, directory: Path, name: str) -> Path:
        """Of the records."""
        return directory / shard_name(name, self.split, self.number, self.count)

    def side_path(self, directory: Path) -> Path:
        """Of the side file."""
        return directory / WORK / f"{self.split}-{self.number:05d}.json"

    def claim_path(self, directory: Path) -> Path:
        """Of the file that says who is making it, and what item it has come to."""
        return directory / WORK / f"{self.split}-{self.number:05d}.claim"

    def describe(self) -> str:
        """For messages: what it is made of."""
        first, last = self.items[0], self.items[-1]
        return (
            f"shard {self.number + 1} of {self.count} of split {self.split!r}, "
            f"items {first.id} ({first.where}) to {last.id} ({last.where})"
        )


def divide(items: Sequence[Item], items_per_shard: int) -> list[Job]:
    """Divides items into shards: a function of the listing alone."""
    by_split: dict[str, list[Item]] = {}
    for item in items:
        by_split.setdefault(item.split, []).append(item)
    jobs = []
    for split in sorted(by_split):
        own = by_split[split]
        starts = range(0, len(own), items_per_shard)
        for number, start in enumerate(starts):
            run = tuple(own[start : start + items_per_shard])
            jobs.append(Job(split, number, len(starts), run))
    return jobs


def special_tokens_in(text: str) -> list[str]:
    """Spellings of special tokens that a text holds, each once, in order."""
    return list(dict.fromkeys(_SPECIAL.findall(text)))


def is_done(job: Job, directory: Path, name: str, fingerprint: str) -> bool:
    """The shard is complete: its side file is there, and records of the size that it says."""
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
    """Makes a shard and its side file.

    Args:
      job: the shard.
      source: what its items are of.
      directory: the dataset's folder.
      fingerprint: of the run, stored with the shard.
      progress: called after each item.

    Returns:
      The side file's content.

    Raises:
      ShardError: the source failed.
    """
    rejected: list[Rejection] = []
    warnings: list[dict[str, str]] = []
    counts: collections.Counter = collections.Counter()
    seconds: collections.defaultdict = collections.defaultdict(float)
    speakers: dict[str, list] = {}
    path = job.path(directory, source.name)
    directory.joinpath(WORK).mkdir(parents=True, exist_ok=True)

    def records(claim: BinaryIO) -> Iterator[Record]:
        for item in job.items:
            line = f"{os.getpid()} {item.id} ({item.where})\n"
            # Only the first line counts: the rest may be of a longer one before.
            os.pwrite(claim.fileno(), line.encode("utf-8", "backslashreplace"), 0)
            for record in _records_of(item, source, rejected):
                key = f"{record.language} {record.kind}"
                counts[key] += 1
                seconds[key] += record.seconds
                for part in record.parts:
                    if part.speaker and part.is_spoken:
                        own = speakers.setdefault(part.speaker, [0, 0.0])
                        own[0] += 1
                        own[1] += part.seconds
                    for text in (part.text, part.translation):
                        for found in special_tokens_in(text):
                            warnings.append(
                                {
                                    "where": item.where,
                                    "reason": SPECIAL_TEXT,
                                    "detail": f"{record.id}: {found}, kept as plain text",
                                }
                            )
                yield record
            if progress is not None:
                progress()

    # A name of its own: a cluster may run a slow shard twice at a time.
    part = directory / WORK / f"{path.name}.{secrets.token_hex(6)}"
    # The number of threads shows in the last bit of resampled waves.
    with open(job.claim_path(directory), "wb") as claim, one_blas_thread():
        written = write_shard(part, records(claim))
    part.replace(path)
    side = {
        "fingerprint": fingerprint,
        "file_bytes": path.stat().st_size,
        "records": written.records,
        "size": written.size,
        "counts": {key: [counts[key], seconds[key]] for key in sorted(counts)},
        "speakers": {name: speakers[name] for name in sorted(speakers)},
        "rejected": [dataclasses.asdict(rejection) for rejection in rejected],
        "warnings": warnings,
    }
    write_json(job.side_path(directory), side)
    job.claim_path(directory).unlink(missing_ok=True)
    return side


def _records_of(item: Item, source: Source, rejected: list[Rejection]) -> list[Record]:
    """All records of an item, or none if it is rejected; pieces of it may be."""
    good, pieces = [], []
    seen: set[str] = set()
    try:
        for made in source.records(item):
            if isinstance(made, Rejection):
                pieces.append(made)
                continue
            if not made.id.startswith(item.id):
                raise ShardError(
                    f"{item.where}: record {made.id!r}, expected an id that begins with {item.id!r}"
                )
            if made.id in seen:
                pieces.append(
                    Rejection(item.where, "duplicate id", f"{made.id!r} twice in item {item.id!r}")
                )
                continue
            try:
                good.append(check_record(made))
            except RecordError as error:
                pieces.append(Rejection(item.where, "malformed record", str(error), made.seconds))
                continue
            seen.add(made.id)
    except Rejected as error:
        rejected.append(Rejection(item.where, error.reason, error.detail, error.seconds))
        return []
    except AudioError as error:
        rejected.append(Rejection(item.where, "unusable audio", str(error)))
        return []
    except ShardError:
        raise
    except Exception as error:
        # The error's own kind may not survive the way to the main process.
        raise ShardError(f"{item.where}: item {item.id!r}: {error!r}") from error
    rejected.extend(pieces)
    return good


def write_json(path: Path, value: Any) -> None:
    """Writes a file that appears under its name only when it is complete."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(6)}.incomplete")
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    # Half a surrogate pair, of a file's name, becomes JSON's escape for it.
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    part.replace(path)
