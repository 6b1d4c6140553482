"""The records of another dataset, with the audio tokenizer's codes added to them.

Nothing here runs a model: `ba_jax.corpora.tokenize` does. A shard's bytes depend on the dataset and
the tokenizer alone, wherever a run was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ba_jax.audio import lengths
from ba_jax.config import LocalPath
from ba_jax.corpora import report as reports
from ba_jax.corpora.sources.base import DerivedSource, Item, Rejected, Rejection, SourceError
from ba_jax.data import features
from ba_jax.data.augment import Augmentation
from ba_jax.data.features import Bucket
from ba_jax.data.record import Part, Record, RecordError, RecordSource, Word, dataset_directory
from ba_jax.files import is_litter, write_json


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record to encode: its number in its split, and its parts' seconds of audio (0: none)."""

    index: int
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TokenizedSource(DerivedSource):
    """The records of a dataset, in order.

    Attributes:
      dataset: a folder, or "embedded".
      weights: fingerprint of the tokenizer.
      splits: to encode; () for all of the dataset.
      chunk_seconds: recordings are encoded in chunks of at most this length.
      drop_audio: drop the audio of all parts with codes (a part too short for a frame has none).
      speed: play recordings this many times as fast, with their pitch (Ko et al. 2015): codes of
        other voices at another pace. Their audio is dropped, times are those of the codes.
    """

    dataset: LocalPath
    weights: str
    splits: tuple[str, ...] = ()
    chunk_seconds: float = float(lengths.MAX_SECONDS)
    drop_audio: bool = False
    speed: float = 1.0

    def __post_init__(self):
        Bucket(self.chunk_seconds, 1)  # checks the length
        Augmentation(speeds=(self.speed,))  # checks the speed

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.info["name"]

    @property
    def description(self) -> str:
        """The dataset's description, and the tokenizer of the codes."""
        return self.describe(f"Audio codes: tokenizer {self.weights}.")

    def items(self) -> Iterator[Item | Rejection]:
        """List all records; a damaged record is a rejection."""
        for split in self.splits or [split["name"] for split in self.info["splits"]]:
            try:
                records = open_split(self.dataset, split)
            except RecordError as error:
                raise SourceError(str(error)) from None
            for index in range(len(records)):
                where = f"{records.directory}: split {split!r}, record {index}"
                try:
                    record = records[index]
                except RecordError as error:
                    yield Rejection(where, "damaged record", str(error))
                    continue
                if any(part.is_spoken and not part.audio for part in record.parts):
                    yield Rejection(where, "codes without audio", record.id, record.seconds)
                    continue
                seconds = tuple(part.seconds if part.audio else 0.0 for part in record.parts)
                yield Item(record.id, split, where, Entry(index, seconds), record.seconds)

    def records(self, item: Item) -> Iterable[Record]:
        """Raise SourceError: codes come from a model, see `CodedRecords`."""
        raise SourceError("a dataset is tokenized by `python -m ba_jax.corpora.tokenize`")

    def chunks(self, seconds: float) -> tuple[int, ...]:
        """16 kHz samples of the chunks of a recording."""
        samples = features.total_samples(seconds, self.speed)
        return features.chunk_samples(samples, self.chunk_seconds)

    def finish(self, directory: Path) -> None:
        """Copy the files beside the dataset's records, and add the tokenizer to the report."""
        for path in sorted(dataset_directory(self.dataset).iterdir()):
            is_own = path.name in reports.WRITTEN or ".array_record-" in path.name
            if path.is_file() and not is_own and not is_litter(path.name):
                shutil.copyfile(path, directory / path.name)
        report = json.loads((directory / reports.REPORT_JSON).read_text(encoding="utf-8"))
        write_json(directory / reports.REPORT_JSON, report | {"tokenizer": self.weights})
        with open(directory / reports.REPORT_MD, "a", encoding="utf-8") as file:
            pace = f" at {self.speed} of its speed" if self.speed != 1 else ""
            file.write(f"\nCodes of {self.dataset}{pace}, by the tokenizer {self.weights}.\n")


@functools.lru_cache(maxsize=8)
def open_split(dataset: str, split: str) -> RecordSource:
    """A split of a dataset, opened once per process."""
    return RecordSource(dataset, split)


class CodedRecords:
    """The records of a shard with their codes, as the source that `make_shard` takes.

    `codes` is (record number, part) -> codes_NQ, `damaged` record number -> its audio's problem.
    """

    def __init__(
        self,
        source: TokenizedSource,
        codes: Mapping[tuple[int, int], np.ndarray],
        damaged: Mapping[int, str],
    ):
        self.name, self.asides = source.name, source.asides
        self._source, self._codes, self._damaged = source, codes, damaged

    def records(self, item: Item) -> Iterator[Record]:
        """Make the record of an item, or raise Rejected if its audio is damaged."""
        entry: Entry = item.payload
        if entry.index in self._damaged:
            detail = f"record {item.id}: {self._damaged[entry.index]}"
            raise Rejected("unusable audio", detail, item.seconds)
        record = open_split(self._source.dataset, item.split)[entry.index]
        parts = tuple(
            self._add_codes(part, self._codes.get((entry.index, number)))
            for number, part in enumerate(record.parts)
        )
        yield dataclasses.replace(record, parts=parts)

    def _add_codes(self, part: Part, codes_NQ: np.ndarray | None) -> Part:
        if codes_NQ is None:
            return part  # no audio, or too short for a frame
        speed = self._source.speed
        is_dropped = self._source.drop_audio or speed != 1
        part = dataclasses.replace(part, codes_NQ=codes_NQ, audio=b"" if is_dropped else part.audio)
        if speed == 1:
            return part
        words = tuple(Word(w.text, w.start / speed, w.end / speed) for w in part.words)
        return dataclasses.replace(part, seconds=part.seconds / speed, words=words)
