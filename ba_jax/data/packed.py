"""Batches for the language model: packed rows of tokens, with mels of audio without codes.

The global batch of a step is a pure function of the data, the settings, the seed and the step. Rows
are packed once, when the data is opened. A row is the unit of shuffling, mixing and sharding over
hosts, so any number of hosts can build any step at once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ba_jax.audio import AudioError, lengths
from ba_jax.audio.mel import COARSE_MEL, HIFIGAN_MEL, log_mel
from ba_jax.config import LocalPath, check_at_least, check_choices
from ba_jax.data import features, tasks
from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import NotForTask, audio_segments
from ba_jax.data.features import ON_ERROR, Bucket, ModelFormat
from ba_jax.data.index import count
from ba_jax.data.mixture import (
    Draws,
    Selection,
    check_mixture,
    check_rows,
    example_name,
    open_sources,
)
from ba_jax.data.packing import PackedRows, pack_many, to_rows
from ba_jax.data.record import Part, Record, RecordError, RecordSource, dataset_directory
from ba_jax.data.sequence import to_sequence
from ba_jax.data.text_tokenizer import TokenizerError, load_text_tokenizer
from ba_jax.vocab import CodeError

_TOO_LONG = "too long for a row"
UNITS = ("tokens", "hours")
AUDIO = ("features", "codes")
TARGETS = {"hifigan_mel": HIFIGAN_MEL, "coarse_mel": COARSE_MEL}


@dataclasses.dataclass(frozen=True)
class PackedSettings:
    """Settings of packed batches.

    Attributes:
      mixture: members and their weights.
      tokenizer: file or folder of the text tokenizer; "embedded": the one trained on that corpus.
      row_length: positions of a row, L.
      rows: number of rows of the global batch, B.
      unit: unit of the mixture's weights: shares of "tokens", or of "hours" of speech.
      audio: "features": the audio tokenizer runs in the training step, on mels; "codes": codes are
        stored.
      buckets: lengths of mels, each with `count` chunks per row. Recordings are cut into chunks of
        the longest one (the encoder takes up to 30 s). Ignored with codes.
      targets: "hifigan_mel": chunks come with the audio decoder's target, the mel of the chunk
        without augmentation but speed. Only with audio = "features".
      augmentation: augmentation of the audio; none by default.
      seed: seed of the order and of augmentation.
      on_error: "fail" on a damaged record, or "skip" it and count it.
      index_cache: folder of cached lengths of examples; "" measures them at each start.
      index_workers: processes that count records; 0 counts in this one.
    """

    mixture: tuple[Selection, ...]
    tokenizer: LocalPath
    row_length: int
    rows: int
    unit: str = "tokens"
    audio: str = "features"
    buckets: tuple[Bucket, ...] = ()
    targets: tuple[str, ...] = ()
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    on_error: str = "fail"
    index_cache: LocalPath = ""
    index_workers: int = 0

    def __post_init__(self):
        check_choices(self, unit=UNITS, audio=AUDIO, on_error=ON_ERROR)
        check_at_least(self, row_length=1, rows=1, seed=0)
        check_mixture(self.mixture)
        if self.audio == "features" and not self.buckets:
            raise ValueError("audio = 'features' needs buckets")
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets = {self.targets}, expected distinct ones of {TARGETS}")
        if self.targets and self.audio != "features":
            raise ValueError(
                f"targets = {self.targets} with audio = {self.audio!r}: expected 'features'"
            )


class AudioChunks(NamedTuple):
    """Chunks of one bucket: C places per row, in no particular order. Empty places have 0 frames.

    Attributes:
      mel_BCTM: float32, Whisper's mel; 0 past a chunk's frames.
      mel_lengths_BC: int32 frames of the mel.
      starts_BC: int32, position in the row of the chunk's first frame of codes.
      frames_BC: int32, frames of codes.
      hifigan_mel_BCTM, coarse_mel_BCTM: float32, targets of the audio decoder, HIFIGAN_MEL and
        COARSE_MEL; None if not wanted.
      hifigan_lengths_BC, coarse_lengths_BC: int32 frames of a target: a chunk's samples // its hop.
    """

    mel_BCTM: np.ndarray
    mel_lengths_BC: np.ndarray
    starts_BC: np.ndarray
    frames_BC: np.ndarray
    hifigan_mel_BCTM: np.ndarray | None = None
    hifigan_lengths_BC: np.ndarray | None = None
    coarse_mel_BCTM: np.ndarray | None = None
    coarse_lengths_BC: np.ndarray | None = None


def lengths_name(target: str) -> str:
    """The field of a target's lengths."""
    return target.removesuffix("_mel") + "_lengths_BC"


def empty_targets(settings: PackedSettings, bucket: Bucket, rows: int) -> dict[str, np.ndarray]:
    """Allocate zeros for the targets of a bucket's chunks: fields of `AudioChunks`."""
    fields = {}
    for name in settings.targets:
        geometry, places = TARGETS[name], (rows, bucket.count)
        shape = (*places, bucket.samples // geometry.hop, geometry.n_mels)
        fields[f"{name}_BCTM"] = np.zeros(shape, np.float32)
        fields[lengths_name(name)] = np.zeros(places, np.int32)
    return fields


class _MelChunk(NamedTuple):
    """A chunk of an example: position and number of its frames of codes, mel, targets by name."""

    start: int
    frames: int
    mel_TM: np.ndarray
    targets: dict[str, np.ndarray]


class PackedBatch(NamedTuple):
    """One host's rows of a global batch.

    Attributes:
      rows: tokens; codes are 0 where `audio` has the audio.
      audio: by bucket, shortest first; () if codes are stored.
      skipped_B: int32, damaged examples of the row, replaced by padding.
    """

    rows: PackedRows
    audio: tuple[AudioChunks, ...]
    skipped_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class ExampleBuilder:
    """Builds the example and the token sequence of a record, without decoding audio."""

    selection: Selection
    tokenizer: object
    codebook_sizes: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    augmentation: Augmentation

    @functools.cached_property
    def _maker(self):
        return dataclasses.replace(
            self.selection.maker, frames=self.frames if self.buckets else None
        )

    def chunks(self, seconds: float, record: Record) -> tuple[int, ...]:
        """Samples of each chunk of a recording."""
        speed = features.speed_of(record, self.augmentation)
        samples = features.total_samples(seconds, speed)
        return features.chunk_samples(samples, self.buckets[-1].seconds)

    def frames(self, part: Part, record: Record) -> int:
        """Frames of codes of a part's recording."""
        return sum(lengths.code_length(n) for n in self.chunks(part.seconds, record))

    def __call__(self, record: Record):
        """Return (example, sequence), or raise NotForTask or RecordError."""
        if self.selection.languages and record.language not in self.selection.languages:
            raise NotForTask("another language")
        try:
            example = self._maker(record)
            return example, to_sequence(example, self.tokenizer, self.codebook_sizes)
        except (CodeError, TokenizerError) as error:
            raise RecordError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class _MeasureSequence:
    """Measures (positions, 10 ms of speech, chunks that need the i-th bucket or a longer one)."""

    builder: ExampleBuilder

    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        example, sequence = self.builder(record)
        audio, buckets = audio_segments(example), self.builder.buckets
        if not buckets:
            frames = sum(len(segment.codes_NQ) for segment in audio)
            return [(len(sequence), round(100 * frames * lengths.FRAME_SECONDS))]
        needed = [
            features.bucket_of(samples, buckets)
            for segment in audio
            for samples in self.builder.chunks(segment.seconds, record)
        ]
        loads = [sum(n >= i for n in needed) for i in range(len(buckets))]
        seconds = sum(segment.seconds for segment in audio)
        return [(len(sequence), round(100 * seconds), *loads)]


def open_builders(settings: PackedSettings, model: ModelFormat) -> list[ExampleBuilder]:
    """Make the builder of each member of a mixture; TokenizerError as `PackedBatches`."""
    tokenizer = load_text_tokenizer(dataset_directory(settings.tokenizer))
    tokenizer.check_against(model.tokens, model.vocab_size)
    with_mels = settings.audio == "features"
    buckets = features.check_buckets(settings.buckets) if with_mels else ()
    return [
        ExampleBuilder(selection, tokenizer, model.codebook_sizes, buckets, settings.augmentation)
        for selection in settings.mixture
    ]


@dataclasses.dataclass(frozen=True)
class PackedMember:
    """Rows of one member of the mixture.

    Attributes:
      records_N: record numbers, row by row.
      lengths_N: positions of each record.
      starts_R: first record of each row, and the end: one more than there are rows.
      tokens, hours: totals of all rows.
      left_out: reason -> records without an example.
    """

    records_N: np.ndarray
    lengths_N: np.ndarray
    starts_R: np.ndarray
    tokens: int
    hours: float
    left_out: dict[str, int]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts_R) - 1

    def row(self, number: int) -> list[tuple[int, int]]:
        """(record number, positions) of a row's examples, in order."""
        here = slice(self.starts_R[number], self.starts_R[number + 1])
        return list(zip(self.records_N[here].tolist(), self.lengths_N[here].tolist(), strict=True))


class PackedBatches:
    """Builds packed batches; can be pickled to a worker.

    `progress` is called with the number of records counted since the last call. A dataset that does
    not exist, is damaged, or has no example for its task raises RecordError, a tokenizer that the
    model was not trained with TokenizerError.
    """

    def __init__(
        self,
        settings: PackedSettings,
        model: ModelFormat,
        progress: Callable[[int], None] | None = None,
    ):
        self.settings, self.model = settings, model
        self._builders = open_builders(settings, model)
        self.buckets = self._builders[0].buckets
        # Chunks that fit a bucket fit all longer ones too.
        counts = [bucket.count for bucket in self.buckets]
        self._capacity_K = [sum(counts[i:]) for i in range(len(counts))]
        self._sources = open_sources(settings.mixture)
        self.members = [
            self._pack_member(builder, source, progress)
            for builder, source in zip(self._builders, self._sources, strict=True)
        ]
        self._draws = Draws(
            [member.rows for member in self.members], self._row_weights(), settings.seed
        )

    def _pack_member(self, builder: ExampleBuilder, source: RecordSource, progress) -> PackedMember:
        settings = self.settings
        prompts = tasks.PROMPTS.get(builder.selection.maker.task, {})
        key = {
            "selection": builder.selection.key(),
            "prompts": {language: list(texts) for language, texts in prompts.items()},
            "tokenizer": hashlib.sha256(repr(builder.tokenizer.__reduce__()).encode()).hexdigest(),
            "codebook_sizes": builder.codebook_sizes,
            "buckets": [bucket.seconds for bucket in self.buckets],
            "augmentation": dataclasses.asdict(settings.augmentation),
        }
        counted = count(
            source,
            _MeasureSequence(builder),
            2 + len(self.buckets),
            key=key,
            on_error=settings.on_error,
            workers=settings.index_workers,
            cache=settings.index_cache,
            progress=progress,
        )
        rows, too_long = pack_many(
            counted.rows_NK[:, 0],
            settings.row_length,
            loads_NK=counted.rows_NK[:, 2:],
            capacity_K=self._capacity_K,
        )
        left_out = dict(counted.left_out)
        if len(too_long):
            left_out[_TOO_LONG] = len(too_long)
        name = builder.selection.name
        if not rows:
            raise RecordError(f"{name}: no example for its task; left out: {left_out}")
        if left_out:
            logging.info("%s: left out %s", name, left_out)
        packed = np.concatenate(rows)
        return PackedMember(
            # int32 halves the size: every worker gets a copy.
            counted.records_N[packed].astype(np.int32),
            counted.rows_NK[packed, 0].astype(np.int32),
            np.cumsum([0, *map(len, rows)]),
            int(counted.rows_NK[packed, 0].sum()),
            float(counted.rows_NK[packed, 1].sum() / 360_000),
            left_out,
        )

    def _row_weights(self) -> list[float]:
        """Rates of drawing each member's rows that give tokens or hours their weights."""
        weights = []
        for selection, member in zip(self.settings.mixture, self.members, strict=True):
            amount = member.tokens if self.settings.unit == "tokens" else member.hours
            if not amount:
                raise RecordError(
                    f"{selection.name}: no speech, expected some for its share of hours"
                )
            weights.append(selection.weight * member.rows / amount)
        return [weight / sum(weights) for weight in weights]

    def global_rows(self, step: int) -> int:
        """Number of rows of the global batch, the same at every step."""
        return self.settings.rows

    def build(self, step: int, rows: Sequence[int] | None = None) -> PackedBatch:
        """Build rows (default: all) of the global batch at a step.

        Raises:
          RecordError: a damaged record with on_error = "fail", or a dataset that has changed since
            its records were counted.
        """
        rows = check_rows(step, rows, self.settings.rows)
        sequences, packed = [], []
        skipped_B = np.zeros(len(rows), np.int32)
        audio = self._empty_audio(len(rows))
        with features.one_blas_thread():
            for place, row in enumerate(rows):
                examples, chunks, skipped_B[place] = self._row(step * self.settings.rows + row)
                packed.append(range(len(sequences), len(sequences) + len(examples)))
                sequences += examples
                self._fill_buckets(audio, place, chunks)
        codebooks = len(self.model.codebook_sizes)
        token_rows = to_rows(sequences, packed, self.settings.row_length, codebooks)
        return PackedBatch(token_rows, audio, skipped_B)

    def _row(self, draw: int):
        """Build a drawn row: (sequences, chunks, number of skipped examples)."""
        member, number = self._draws[draw]
        builder, source = self._builders[member], self._sources[member]
        rng = np.random.default_rng([self.settings.seed, draw])
        sequences, chunks = [], []
        start = skipped = 0
        for index, length in self.members[member].row(number):
            name = f"{builder.selection.name}, record {index}"
            try:
                record = source[index]
                example, sequence = builder(record)
                example_chunks = self._chunks(example, sequence, builder, record, rng)
            except (RecordError, AudioError) as error:
                if self.settings.on_error == "fail":
                    raise RecordError(f"{name}: {error}") from None
                logging.warning("skipped: %s: %s", name, error)
                skipped += 1
                continue
            except NotForTask as reason:
                raise RecordError(f"{name}: changed since it was counted: {reason}") from None
            if len(sequence) != length:
                raise RecordError(
                    f"{name}: changed since it was counted: {len(sequence)} positions, "
                    f"expected {length}"
                )
            sequences.append(sequence)
            chunks += [chunk._replace(start=start + chunk.start) for chunk in example_chunks]
            start += length
        return sequences, chunks, skipped

    def _chunks(
        self, example, sequence, builder: ExampleBuilder, record: Record, rng
    ) -> list[_MelChunk]:
        """Compute the mels of an example's chunks; starts are positions in the example."""
        augmentation = self.settings.augmentation
        speed = features.speed_of(record, augmentation)
        geometry = features.mel_geometry(self.model.mel_bins)
        mel_chunks = []
        for span in sequence.spans:
            segment = example.segments[span.segment]
            chunks = builder.chunks(segment.seconds, record)
            (wave_S,) = features.decode(
                segment.audio, segment.seconds, [lengths.SAMPLE_RATE], speed
            )
            mels = features.chunk_mels(wave_S, chunks, geometry, augmentation, rng)
            at, first = span.start, 0
            for samples, mel_TM in zip(chunks, mels, strict=True):
                frames = lengths.code_length(samples)
                targets = {
                    name: log_mel(wave_S[first : first + samples], TARGETS[name])
                    for name in self.settings.targets
                }
                mel_chunks.append(_MelChunk(at, frames, mel_TM, targets))
                at, first = at + frames, first + samples
        return mel_chunks

    def _empty_audio(self, rows: int) -> tuple[AudioChunks, ...]:
        audio = []
        for bucket in self.buckets:
            shape = (rows, bucket.count, bucket.mel_frames, self.model.mel_bins)
            zeros = (np.zeros((rows, bucket.count), np.int32) for _ in range(3))
            chunks = AudioChunks(np.zeros(shape, np.float32), *zeros)
            audio.append(chunks._replace(**empty_targets(self.settings, bucket, rows)))
        return tuple(audio)

    def _fill_buckets(
        self, audio: tuple[AudioChunks, ...], row: int, chunks: Sequence[_MelChunk]
    ) -> None:
        used = [0] * len(audio)
        # The longest choose first: shorter ones can use the places that remain.
        for chunk in sorted(chunks, key=lambda chunk: -len(chunk.mel_TM)):
            mel_TM = chunk.mel_TM
            bucket = next(
                i
                for i, size in enumerate(self.buckets)
                if len(mel_TM) <= size.mel_frames and used[i] < size.count
            )
            chunks_of_bucket, place = audio[bucket], (row, used[bucket])
            used[bucket] += 1
            chunks_of_bucket.mel_BCTM[place][: len(mel_TM)] = mel_TM
            chunks_of_bucket.mel_lengths_BC[place] = len(mel_TM)
            chunks_of_bucket.starts_BC[place] = chunk.start
            chunks_of_bucket.frames_BC[place] = chunk.frames
            for name, target_TM in chunk.targets.items():
                getattr(chunks_of_bucket, f"{name}_BCTM")[place][: len(target_TM)] = target_TM
                getattr(chunks_of_bucket, lengths_name(name))[place] = len(target_TM)

    def ids(self, step: int, rows: Sequence[int] | None = None) -> list[list[str]]:
        """List each row's examples as "dataset/split/task:record id"; decodes no audio.

        A record that cannot be read has its number in place of its id.
        """
        names = []
        for row in check_rows(step, rows, self.settings.rows):
            member, number = self._draws[step * self.settings.rows + row]
            name, source = self._builders[member].selection.name, self._sources[member]
            indices = [index for index, _ in self.members[member].row(number)]
            names.append([example_name(name, source, index) for index in indices])
        return names

    def report(self) -> dict[str, dict]:
        """Figures of each member: examples, rows, tokens, hours, how full its rows are."""
        figures = {}
        for selection, member, weight in zip(
            self.settings.mixture, self.members, self._draws.weights, strict=True
        ):
            positions = member.rows * self.settings.row_length
            figures[selection.name] = {
                "examples": len(member.records_N),
                "rows": member.rows,
                "tokens": member.tokens,
                "hours": member.hours,
                "real_share": member.tokens / positions,
                "share_of_rows": weight,
                "left_out": member.left_out,
            }
        return figures
