"""Batches of chunks of recordings for the audio tokenizer, decoded in threads that run ahead.

Batches are made shard by shard: chunks of one shard only, longest first.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from ba_jax.audio import AudioError, lengths
from ba_jax.audio.mel import whisper_log_mel
from ba_jax.corpora.shards import Job
from ba_jax.corpora.sources.tokenized import Entry, TokenizedSource, open_split
from ba_jax.data import features
from ba_jax.data.features import Bucket
from ba_jax.data.record import RecordError


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of a recording: indices of item, part and chunk; its samples at 16 kHz."""

    item: int
    part: int
    number: int
    first: int
    samples: int


@dataclasses.dataclass(frozen=True)
class ChunkBatch:
    """Chunks that are encoded together, at most `bucket.count`."""

    bucket: Bucket
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass
class EncoderInput:
    """The arrays of a batch.

    Attributes:
      mel_BTM: float32, Whisper's mel; 0 past a chunk's frames.
      lengths_B: int32 frames; 0 for empty rows and damaged recordings.
      damaged: item of the job -> problem with its audio.
    """

    job: Job
    batch: ChunkBatch
    mel_BTM: np.ndarray
    lengths_B: np.ndarray
    damaged: dict[int, str]


def divide_chunks(job: Job, source: TokenizedSource, buckets: Sequence[Bucket]) -> list[ChunkBatch]:
    """Divide a shard into batches: longest chunks first, filled with the next shorter ones."""
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
        batches.append(ChunkBatch(bucket, tuple(chunks[: bucket.count])))
        del chunks[: bucket.count]
    return batches


class EncoderInputs:
    """Decodes audio and computes the mels of batches in `workers` threads."""

    def __init__(
        self, source: TokenizedSource, buckets: Sequence[Bucket], mel_bins: int, workers: int
    ):
        self._source, self._buckets, self._workers = source, buckets, workers
        self._geometry = features.mel_geometry(mel_bins)
        # Waves of recordings with several chunks, which lie in neighbouring batches.
        self._waves: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, EncoderInput | None]]:
        """Yield the batches of the jobs, in order; (job, None) after the last of each job."""

        def result(job: Job, future) -> tuple[Job, EncoderInput | None]:
            return job, None if future is None else future.result()

        pool = concurrent.futures.ThreadPoolExecutor(self._workers)
        waiting: collections.deque = collections.deque()
        try:
            for job in jobs:
                for batch in (*divide_chunks(job, self._source, self._buckets), None):
                    future = None if batch is None else pool.submit(self._build, job, batch)
                    waiting.append((job, future))
                    if len(waiting) > 2 * self._workers:
                        yield result(*waiting.popleft())
            while waiting:
                yield result(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _build(self, job: Job, batch: ChunkBatch) -> EncoderInput:
        bucket = batch.bucket
        mel_BTM = np.zeros((bucket.count, bucket.mel_frames, self._geometry.n_mels), np.float32)
        result = EncoderInput(job, batch, mel_BTM, np.zeros(bucket.count, np.int32), {})
        for row, chunk in enumerate(batch.chunks):
            try:
                wave_S = self._read_wave(job, chunk)[chunk.first : chunk.first + chunk.samples]
                mel_TM = whisper_log_mel(wave_S, self._geometry)
            except (AudioError, RecordError) as error:
                result.damaged[chunk.item] = f"part {chunk.part}: {error}"
                continue
            mel_BTM[row, : len(mel_TM)] = mel_TM
            result.lengths_B[row] = len(mel_TM)
        return result

    def _read_wave(self, job: Job, chunk: Chunk) -> np.ndarray:
        """The whole recording of a chunk at 16 kHz."""
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
