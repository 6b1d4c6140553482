"""A dataset's records with the audio tokenizer's codes: what is to be encoded, in which batches.

Nothing here runs a model: `ba_jax.corpora.tokenize` does. Batches are made shard by shard, so that a
shard's bytes depend on the dataset and the tokenizer alone, wherever a run was interrupted.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ba_jax.audio import AudioError, lengths
from ba_jax.audio.mel import whisper_log_mel
from ba_jax.config import from_mapping
from ba_jax.corpora import report as reports
from ba_jax.corpora.derived import INFO, Derived
from ba_jax.corpora.runner import STATE, PrepareConfig
from ba_jax.corpora.shards import Job, write_json
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import SourceError
from ba_jax.data import features
from ba_jax.data.augment import Augmentation
from ba_jax.data.features import Bucket
from ba_jax.data.record import Part, Record, RecordError, RecordSource, Word, dataset_directory

# Of a dataset's folder, what its copy with codes has of its own.
_OWN_FILES = {
    STATE,
    INFO,
    "features.json",
    reports.REPORT_JSON,
    reports.REPORT_MD,
    reports.REJECTED,
    reports.WARNINGS,
}
_DAMAGED, _NO_AUDIO = "damaged record", "codes without audio"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record to encode: its number in its split, and its parts' seconds of audio (0: none)."""

    index: int
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Tokenized(Derived):
    """A source for `prepare`: the records of a dataset, in order.

    Attributes:
      dataset: a folder, or "embedded".
      splits: which; () for all that it has.
      weights: fingerprint of the tokenizer.
      chunk_seconds: recordings are encoded in chunks of at most this length.
      drop_audio: keep the audio of those parts alone that are too short for a frame of codes.
      speed: recordings are played so many times as fast, pitch and all (Ko et al. 2015): codes of
        other voices at another pace. Their audio is then dropped, times are those of the codes.
    """

    dataset: str
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
        """The dataset's."""
        return self.info["name"]

    @property
    def description(self) -> str:
        """The dataset's, and whose codes these are."""
        return self.described(f"Audio codes: tokenizer {self.weights}.")

    def items(self) -> Iterator[Item | Rejection]:
        """All records; a damaged one is a rejection."""
        for split in self.splits or [split["name"] for split in self.info["splits"]]:
            try:
                source = open_split(self.dataset, split)
            except RecordError as error:
                raise SourceError(str(error)) from None
            for index in range(len(source)):
                where = f"{source.directory}: split {split!r}, record {index}"
                try:
                    record = source[index]
                except RecordError as error:
                    yield Rejection(where, _DAMAGED, str(error))
                    continue
                bare = [part for part in record.parts if part.is_spoken and not part.audio]
                if bare:
                    yield Rejection(where, _NO_AUDIO, record.id, record.seconds)
                    continue
                seconds = tuple(part.seconds if part.audio else 0.0 for part in record.parts)
                yield Item(record.id, split, where, Entry(index, seconds), record.seconds)

    def records(self, item: Item) -> Iterable[Record]:
        """Codes come from a model: see `Coded`."""
        raise SourceError("a dataset is tokenized by `python -m ba_jax.corpora.tokenize`")

    def chunks(self, seconds: float) -> tuple[int, ...]:
        """16 kHz samples of the chunks that a recording is encoded in."""
        samples = features.total_samples(seconds, self.speed)
        return features.chunk_samples(samples, self.chunk_seconds)

    def finish(self, directory: Path) -> None:
        """Copies what lies beside the dataset's records (tokenizer, licences), and adds to the
        report what the codes are of."""
        for path in sorted(dataset_directory(self.dataset).iterdir()):
            if path.is_file() and path.name not in _OWN_FILES and ".array_record-" not in path.name:
                shutil.copyfile(path, directory / path.name)
        report = json.loads((directory / reports.REPORT_JSON).read_text(encoding="utf-8"))
        write_json(directory / reports.REPORT_JSON, report | {"tokenizer": self.weights})
        with open(directory / reports.REPORT_MD, "a", encoding="utf-8") as file:
            pace = f" at {self.speed} of its speed" if self.speed != 1 else ""
            file.write(f"\nCodes of {self.dataset}{pace}, by the tokenizer {self.weights}.\n")


@dataclasses.dataclass(frozen=True)
class TokenizedConfig(PrepareConfig):
    """A `PrepareConfig` whose source is `Tokenized`."""

    def make_source(self) -> Tokenized:
        """The source."""
        return from_mapping(Tokenized, self.source, "config.source")


@functools.lru_cache(maxsize=8)
def open_split(dataset: str, split: str) -> RecordSource:
    """One split, opened once."""
    return RecordSource(dataset, split)


# --- batches --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of a recording.

    Attributes:
      item, part, number: of the job's items, of its parts, of the recording's chunks.
      first, samples: where in the recording, at 16 kHz.
    """

    item: int
    part: int
    number: int
    first: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Chunks that are encoded together; `bucket.count` is how many there could be."""

    bucket: Bucket
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass
class Built:
    """A batch's arrays.

    Attributes:
      job, batch: what it is of.
      mel_BTM: float32, Whisper's mel; 0 past a chunk's frames.
      lengths_B: int32 frames; 0 of empty places and of damaged recordings.
      damaged: item of the job -> what is wrong with its audio.
    """

    job: Job
    batch: Batch
    mel_BTM: np.ndarray
    lengths_B: np.ndarray
    damaged: dict[int, str]


def divide_chunks(job: Job, source: Tokenized, buckets: Sequence[Bucket]) -> list[Batch]:
    """The batches of a shard: longest chunks first, each batch filled with the next shorter ones.

    `buckets`: as `check_buckets` gives them; the last one holds the longest chunk.
    """
    chunks = []
    for number, item in enumerate(job.items):
        for part, seconds in enumerate(item.payload.seconds):
            first = 0
            for count, samples in enumerate(source.chunks(seconds)):
                chunks.append(Chunk(number, part, count, first, samples))
                first += samples
    chunks.sort(key=lambda chunk: -chunk.samples)
    batches = []
    while chunks:
        bucket = buckets[features.bucket_of(chunks[0].samples, buckets)]
        batches.append(Batch(bucket, tuple(chunks[: bucket.count])))
        del chunks[: bucket.count]
    return batches


class Builder:
    """Decodes audio and computes mels of batches, in threads that run ahead.

    Args:
      source: whose batches.
      buckets: as in `divide_chunks`.
      mel_bins: of the audio encoder.
      workers: threads.
    """

    def __init__(self, source: Tokenized, buckets: Sequence[Bucket], mel_bins: int, workers: int):
        self._source, self._buckets, self._workers = source, buckets, workers
        self._geometry = features.mel_geometry(mel_bins)
        # Waves of recordings of several chunks, which are next to each other.
        self._waves: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Built | None]]:
        """The batches of the jobs, in order; (job, None) after the last one of each."""
        pool = concurrent.futures.ThreadPoolExecutor(self._workers)
        waiting: collections.deque = collections.deque()
        try:
            for job in jobs:
                for batch in (*divide_chunks(job, self._source, self._buckets), None):
                    built = None if batch is None else pool.submit(self._build, job, batch)
                    waiting.append((job, built))
                    if len(waiting) > 2 * self._workers:
                        yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _build(self, job: Job, batch: Batch) -> Built:
        bucket = batch.bucket
        shape = (bucket.count, bucket.mel_frames, self._geometry.n_mels)
        built = Built(job, batch, np.zeros(shape, np.float32), np.zeros(bucket.count, np.int32), {})
        for place, chunk in enumerate(batch.chunks):
            try:
                wave_S = self._wave(job, chunk)[chunk.first : chunk.first + chunk.samples]
                mel_TM = whisper_log_mel(wave_S, self._geometry)
            except (AudioError, RecordError) as error:
                built.damaged[chunk.item] = f"part {chunk.part}: {error}"
                continue
            built.mel_BTM[place, : len(mel_TM)] = mel_TM
            built.lengths_B[place] = len(mel_TM)
        return built

    def _wave(self, job: Job, chunk: Chunk) -> np.ndarray:
        """A recording at 16 kHz."""
        entry: Entry = job.items[chunk.item].payload
        key = (job.split, entry.index, chunk.part)
        with self._lock:
            if key in self._waves:
                return self._waves[key]
        part = open_split(self._source.dataset, job.split)[entry.index].parts[chunk.part]
        rates, speed = [lengths.SAMPLE_RATE], self._source.speed
        (wave_S,) = features.decode(part.audio, part.seconds, rates, speed)
        if len(self._source.chunks(part.seconds)) > 1:
            with self._lock:
                self._waves[key] = wave_S
                while len(self._waves) > self._workers:
                    self._waves.popitem(last=False)
        return wave_S


def _result(job: Job, built) -> tuple[Job, Built | None]:
    return job, None if built is None else built.result()


# --- records --------------------------------------------------------------------------------------


class Coded:
    """What `make_shard` takes: a job's records with their codes.

    Args:
      source: of the records.
      codes: (record number, part) -> codes_NQ.
      damaged: record number -> what is wrong with its audio.
    """

    def __init__(
        self,
        source: Tokenized,
        codes: Mapping[tuple[int, int], np.ndarray],
        damaged: Mapping[int, str],
    ):
        self.name = source.name
        self._source, self._codes, self._damaged = source, codes, damaged

    def records(self, item: Item) -> Iterator[Record]:
        """The record.

        Raises:
          Rejected: its audio is damaged.
        """
        entry: Entry = item.payload
        if entry.index in self._damaged:
            detail = f"record {item.id}: {self._damaged[entry.index]}"
            raise Rejected("unusable audio", detail, item.seconds)
        record = open_split(self._source.dataset, item.split)[entry.index]
        parts = tuple(self._part(entry.index, *numbered) for numbered in enumerate(record.parts))
        yield dataclasses.replace(record, parts=parts)

    def _part(self, index: int, number: int, part: Part) -> Part:
        codes_NQ = self._codes.get((index, number))
        if codes_NQ is None:
            return part  # no audio, or too short for a frame
        speed = self._source.speed
        dropped = self._source.drop_audio or speed != 1
        part = dataclasses.replace(part, codes_NQ=codes_NQ, audio=b"" if dropped else part.audio)
        if speed == 1:
            return part
        words = tuple(Word(w.text, w.start / speed, w.end / speed) for w in part.words)
        return dataclasses.replace(part, seconds=part.seconds / speed, words=words)
