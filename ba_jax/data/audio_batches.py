"""Batches of audio alone, for the audio tokenizer, the flow-matching decoder and the vocoder.

A batch holds clips of one bucket, so there are as many shapes as buckets. Recordings are cut into
clips of at most the longest bucket; with `crop`, each recording gives one random window instead.
The batch of a step is a pure function of the data, settings, seed and step, as with packed rows.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ba_jax.audio import AudioError, lengths
from ba_jax.audio.mel import COARSE_MEL, FLOW_MEL, HIFIGAN_MEL, log_mel, whisper_log_mel
from ba_jax.config import LocalPath, check_at_least, check_choices
from ba_jax.data import features
from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import NotForTask
from ba_jax.data.features import ON_ERROR, Bucket, ModelFormat
from ba_jax.data.index import Count, count
from ba_jax.data.mixture import (
    Draws,
    Interleaved,
    Selection,
    check_mixture,
    check_rows,
    example_name,
    open_sources,
)
from ba_jax.data.record import Part, Record, RecordError
from ba_jax.vocab import CodeError, check_codes

WAVE_RATE = 24000
"""Hz of `AudioBatch.wave_BS`, the vocoder's."""
FEATURES = {
    "wave": WAVE_RATE,
    "whisper_mel": lengths.SAMPLE_RATE,
    "hifigan_mel": HIFIGAN_MEL.sample_rate,
    "coarse_mel": COARSE_MEL.sample_rate,
    "flow_mel": FLOW_MEL.sample_rate,
    "codes": 0,
}
"""Feature -> rate of the wave that it is computed from, Hz; 0: it is stored."""


@dataclasses.dataclass(frozen=True)
class AudioSettings:
    """Settings of audio batches.

    Attributes:
      mixture: members, weighted by hours. Every task must be "audio": all speech of any kind of
        record; with `turn` "user" or "assistant" only that role's in dialogues; with `speakers`
        only theirs.
      buckets: clip lengths; `count` clips of that length in the global batch.
      crop: take one random window of a bucket's length from each recording, instead of cutting it
        into clips. Needs a single bucket; shorter recordings are padded, and count with their own
        length.
      features: names in FEATURES. With "codes" records must hold the codes of their audio
        (`python -m ba_jax.corpora.tokenize`), and clips begin and end with a frame of codes.
      augmentation: augmentation of `whisper_mel` and the wave that it is computed from; speed
        changes all features.
      seed, on_error, index_cache, index_workers: as in `PackedSettings`.
    """

    mixture: tuple[Selection, ...]
    buckets: tuple[Bucket, ...]
    crop: bool = False
    features: tuple[str, ...] = tuple(name for name in FEATURES if name != "codes")
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    on_error: str = "fail"
    index_cache: LocalPath = ""
    index_workers: int = 0

    def __post_init__(self):
        check_choices(self, on_error=ON_ERROR)
        check_at_least(self, seed=0)
        unknown = sorted(set(self.features) - set(FEATURES))
        if unknown or not self.features:
            raise ValueError(f"features = {self.features}, expected names in {tuple(FEATURES)}")
        if not self.buckets or (self.crop and len(self.buckets) != 1):
            raise ValueError(f"{len(self.buckets)} buckets, expected 1 with crop, else 1 or more")
        for selection in self.mixture:
            if selection.maker.task != "audio":
                raise ValueError(
                    f"{selection.name}: task {selection.maker.task!r}, expected 'audio'"
                )
            if selection.maker.turn == "any":
                raise ValueError(
                    f"{selection.name}: turn 'any', expected '' for all speech of a record, "
                    "or 'user' or 'assistant' for that role's"
                )
        check_mixture(self.mixture)
        if "codes" in self.features:
            for bucket in self.buckets:
                if bucket.samples % lengths.FRAME_SAMPLES:
                    raise ValueError(
                        f"a bucket of {bucket.seconds} s with the feature 'codes', expected whole "
                        f"frames of {lengths.FRAME_SECONDS} s"
                    )
            if self.augmentation.speeds != (1.0,):
                raise ValueError(
                    f"augmentation.speeds = {self.augmentation.speeds} with the feature 'codes', "
                    "expected (1.0,): codes are stored at the recording's speed"
                )


class AudioBatch(NamedTuple):
    """One host's clips of a global batch; features that are not in the settings are None.

    Attributes:
      samples_B: int32, at WAVE_RATE; 0 for a damaged recording that was skipped.
      wave_BS: float32, at WAVE_RATE.
      whisper_mel_BTM, whisper_lengths_B: the audio encoder's input.
      hifigan_mel_BTM, hifigan_lengths_B: target of the audio decoder's refined mel.
      flow_mel_BTM, flow_lengths_B: the flow-matching decoder's target.
      skipped_B: int32, 1 for a damaged recording.
      codes_BNQ, code_lengths_B: stored codes, int32.
      coarse_mel_BTM, coarse_lengths_B: target of the audio decoder's coarse mel.
    """

    samples_B: np.ndarray
    wave_BS: np.ndarray | None
    whisper_mel_BTM: np.ndarray | None
    whisper_lengths_B: np.ndarray | None
    hifigan_mel_BTM: np.ndarray | None
    hifigan_lengths_B: np.ndarray | None
    flow_mel_BTM: np.ndarray | None
    flow_lengths_B: np.ndarray | None
    skipped_B: np.ndarray
    codes_BNQ: np.ndarray | None = None
    code_lengths_B: np.ndarray | None = None
    coarse_mel_BTM: np.ndarray | None = None
    coarse_lengths_B: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _MeasureClips:
    """Measures (part, first 16 kHz sample, samples, bucket) of every clip of a record."""

    languages: tuple[str, ...]
    turn: str
    speakers: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    crop: bool
    augmentation: Augmentation

    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        if self.languages and record.language not in self.languages:
            raise NotForTask("another language")
        speed = features.speed_of(record, self.augmentation)
        rows = []
        for number, part in enumerate(record.parts):
            if not part.audio or not part.loss or self.turn not in ("", part.role):
                continue
            if self.speakers and part.speaker not in self.speakers:
                continue
            samples = features.total_samples(part.seconds, speed)
            if self.crop:
                if lengths.code_length(samples):
                    rows.append((number, 0, samples, 0))
                continue
            start = 0
            for length in features.chunk_samples(samples, self.buckets[-1].seconds):
                rows.append((number, start, length, features.bucket_of(length, self.buckets)))
                start += length
        if not rows:
            named = [name for name in (self.turn, *self.speakers) if name]
            raise NotForTask("no audio" + (f" by {', '.join(named)}" if named else ""))
        return rows


class AudioBatches:
    """Builds audio batches; can be pickled to a worker.

    `progress` is called with the number of records counted since the last call. A dataset that does
    not exist, is damaged, or has no speech raises RecordError.
    """

    def __init__(
        self,
        settings: AudioSettings,
        model: ModelFormat,
        progress: Callable[[int], None] | None = None,
    ):
        self.settings, self.model = settings, model
        self.buckets = features.check_buckets(settings.buckets)
        self._sources = open_sources(settings.mixture)
        self._counts = []
        for selection, source in zip(settings.mixture, self._sources, strict=True):
            measure = _MeasureClips(
                selection.languages,
                selection.maker.turn,
                selection.maker.speakers,
                self.buckets,
                settings.crop,
                settings.augmentation,
            )
            counted = count(
                source,
                measure,
                4,
                key=dataclasses.asdict(measure),
                on_error=settings.on_error,
                workers=settings.index_workers,
                cache=settings.index_cache,
                progress=progress,
            )
            if not len(counted.rows_NK):
                raise RecordError(f"{selection.name}: no speech; left out: {counted.left_out}")
            self._counts.append(counted)
        self._plan()

    def _plan(self) -> None:
        """Sort clips by bucket and member, and decide how often each is drawn."""
        settings = self.settings
        hours = [self._drawn(counted).sum() for counted in self._counts]
        # A clip's chance to be drawn: in proportion to its member's weight by hours.
        rates = [s.weight / h for s, h in zip(settings.mixture, hours, strict=True)]
        self._streams, steps = [], []
        for number, bucket in enumerate(self.buckets):
            clips = [np.flatnonzero(c.rows_NK[:, 3] == number) for c in self._counts]
            members = [member for member, of_member in enumerate(clips) if len(of_member)]
            if not members:
                continue
            clips = [clips[member] for member in members]
            sizes = list(map(len, clips))
            weights = [rates[member] * size for member, size in zip(members, sizes, strict=True)]
            draws = Draws(sizes, weights, settings.seed + number)
            self._streams.append((bucket, members, clips, draws))
            steps.append(sum(weights) / bucket.count)
        self._steps = Interleaved(steps)

    def _drawn(self, counted: Count) -> np.ndarray:
        """16 kHz samples that each drawn clip gives."""
        longest = self.buckets[-1].samples
        return np.minimum(counted.rows_NK[:, 2], longest)

    def bucket(self, step: int) -> Bucket:
        """Bucket of a step's batch."""
        return self._streams[self._steps[step][0]][0]

    def global_rows(self, step: int) -> int:
        """Number of clips of the global batch at a step."""
        return self.bucket(step).count

    def build(self, step: int, rows: Sequence[int] | None = None) -> AudioBatch:
        """Build clips (default: all) of the global batch at a step.

        Raises:
          RecordError: a damaged record with on_error = "fail".
        """
        clips = self._draw(step, rows)
        batch = empty_batch(self.settings.features, self.bucket(step), len(clips), self.model)
        with features.one_blas_thread():
            for place, (member, clip, seed) in enumerate(clips):
                self._add(batch, place, member, clip, np.random.default_rng(seed))
        return batch

    def _draw(self, step: int, rows: Sequence[int] | None) -> list[tuple[int, int, list[int]]]:
        """List (member, its clip, seed of the augmentation) of rows of a batch."""
        rows = check_rows(step, rows, self.global_rows(step))
        stream, number = self._steps[step]
        bucket, members, clips, draws = self._streams[stream]
        drawn = []
        for row in rows:
            draw = number * bucket.count + row
            index, item = draws[draw]
            seed = [self.settings.seed, stream, draw]
            drawn.append((members[index], int(clips[index][item]), seed))
        return drawn

    def ids(self, step: int, rows: Sequence[int] | None = None) -> list[list[str]]:
        """List "dataset/split/audio:record id" of each clip, each in a list; decodes no audio.

        A record that cannot be read has its number in place of its id.
        """
        names = []
        for member, clip, _ in self._draw(step, rows):
            record = int(self._counts[member].records_N[clip])
            name = self.settings.mixture[member].name
            names.append([example_name(name, self._sources[member], record)])
        return names

    def _add(self, batch: AudioBatch, place: int, member: int, clip: int, rng) -> None:
        """Fill a place of a batch, or clear it if its recording is damaged and to be skipped."""
        counted = self._counts[member]
        index = int(counted.records_N[clip])
        try:
            record = self._sources[member][index]
            part, first, samples = self._window(record, counted.rows_NK[clip].tolist(), rng)
            speed = features.speed_of(record, self.settings.augmentation)
            self._fill(batch, place, samples, self._waves(part, first, samples, speed), rng)
            if batch.codes_BNQ is not None:
                self._fill_codes(batch, place, part, first, samples)
        except (RecordError, AudioError, CodeError) as error:
            where = f"{self.settings.mixture[member].name}, record {index}: {error}"
            if self.settings.on_error == "fail":
                raise RecordError(where) from None
            logging.warning("skipped: %s", where)
            for array in batch:
                if array is not None:
                    array[place] = 0
            batch.skipped_B[place] = 1

    def _window(self, record: Record, clip: Sequence[int], rng) -> tuple[Part, int, int]:
        """Place of a clip: (part, its first 16 kHz sample, its samples)."""
        number, first, samples, _ = clip
        if number >= len(record.parts):
            raise RecordError(f"part {number} of {len(record.parts)}: changed since it was counted")
        if self.settings.crop:
            window = self.buckets[0].samples
            first = int(rng.integers(max(0, samples - window) + 1))
            if "codes" in self.settings.features:
                first -= first % lengths.FRAME_SAMPLES
            samples = min(samples, window)
        return record.parts[number], first, samples

    def _waves(self, part: Part, first: int, samples: int, speed: float) -> dict[int, np.ndarray]:
        """Decode a clip: rate -> its wave."""
        rates = sorted({FEATURES[name] for name in self.settings.features} - {0})
        pieces = {}
        for wave_S, rate in zip(
            features.decode(part.audio, part.seconds, rates, speed), rates, strict=True
        ):
            start, size = _samples_at(rate, first), _samples_at(rate, samples)
            piece_S = wave_S[start : start + size]
            # Lengths are rounded at each rate separately: a sample may be missing at the end.
            pieces[rate] = np.pad(piece_S, (0, size - len(piece_S)))
        return pieces

    def _fill_codes(
        self, batch: AudioBatch, place: int, part: Part, first: int, samples: int
    ) -> None:
        """Fill in the stored codes of a clip."""
        if part.codes_NQ is None:
            raise RecordError("no codes, expected those of its audio (ba_jax.corpora.tokenize)")
        codebooks = batch.codes_BNQ.shape[2]
        start, frames = first // lengths.FRAME_SAMPLES, lengths.code_length(samples)
        codes_NQ = part.codes_NQ[start : start + frames]
        if codes_NQ.shape != (frames, codebooks):
            raise RecordError(
                f"{len(part.codes_NQ)} frames of {part.codes_NQ.shape[1]} codes for "
                f"{part.seconds:.3f} s, expected frames {start} to {start + frames} of {codebooks}"
            )
        check_codes(codes_NQ, self.model.codebook_sizes)
        batch.codes_BNQ[place, :frames] = codes_NQ
        batch.code_lengths_B[place] = frames

    def _fill(
        self, batch: AudioBatch, place: int, samples: int, waves: dict[int, np.ndarray], rng
    ) -> None:
        augmentation = self.settings.augmentation
        if batch.wave_BS is not None:
            wave_S = waves[WAVE_RATE]
            batch.wave_BS[place, : len(wave_S)] = wave_S
        if batch.whisper_mel_BTM is not None:
            heard_S = augmentation.wave(waves[lengths.SAMPLE_RATE], rng)
            mel_TM = whisper_log_mel(heard_S, features.mel_geometry(self.model.mel_bins))
            mel_TM = augmentation.mel(mel_TM, rng)
            batch.whisper_mel_BTM[place, : len(mel_TM)] = mel_TM
            batch.whisper_lengths_B[place] = len(mel_TM)
        for mel_BTM, lengths_B, geometry in (
            (batch.hifigan_mel_BTM, batch.hifigan_lengths_B, HIFIGAN_MEL),
            (batch.coarse_mel_BTM, batch.coarse_lengths_B, COARSE_MEL),
            (batch.flow_mel_BTM, batch.flow_lengths_B, FLOW_MEL),
        ):
            if mel_BTM is not None:
                mel_TM = log_mel(waves[geometry.sample_rate], geometry)
                mel_BTM[place, : len(mel_TM)] = mel_TM
                lengths_B[place] = len(mel_TM)
        batch.samples_B[place] = _samples_at(WAVE_RATE, samples)

    def report(self) -> dict[str, dict]:
        """Figures of each member (clips, hours), and how full each bucket's clips are."""
        figures = {}
        for selection, counted in zip(self.settings.mixture, self._counts, strict=True):
            figures[selection.name] = {
                "clips": len(counted.rows_NK),
                "hours": float(counted.rows_NK[:, 2].sum() / lengths.SAMPLE_RATE / 3600),
                "left_out": counted.left_out,
            }
        for number, bucket in enumerate(self.buckets):
            sizes = [self._drawn(c)[c.rows_NK[:, 3] == number] for c in self._counts]
            clips = sum(map(len, sizes))
            samples = sum(s.sum() for s in sizes)
            share = samples / (clips * bucket.samples) if clips else 0.0
            figures[f"bucket {bucket.seconds:g} s"] = {"clips": clips, "real_share": float(share)}
        return figures


def empty_batch(
    features: Sequence[str], bucket: Bucket, rows: int, model: ModelFormat
) -> AudioBatch:
    """Allocate zeros for clips of a bucket; features that are not named are None."""
    samples = _samples_at(WAVE_RATE, bucket.samples)
    shapes = {
        "wave": (samples,),
        "whisper_mel": (bucket.mel_frames, model.mel_bins),
        "hifigan_mel": (bucket.samples // HIFIGAN_MEL.hop, HIFIGAN_MEL.n_mels),
        "coarse_mel": (bucket.samples // COARSE_MEL.hop, COARSE_MEL.n_mels),
        "flow_mel": (samples // FLOW_MEL.hop, FLOW_MEL.n_mels),
    }

    arrays: dict[str, np.ndarray | None] = {}
    for name, shape in shapes.items():
        is_wanted = name in features
        suffix = "_BS" if name == "wave" else "_BTM"
        arrays[name + suffix] = np.zeros((rows, *shape), np.float32) if is_wanted else None
        if name != "wave":
            length = name.removesuffix("_mel") + "_lengths_B"
            arrays[length] = np.zeros(rows, np.int32) if is_wanted else None
    if "codes" in features:
        shape = (rows, lengths.code_length(bucket.samples), len(model.codebook_sizes))
        arrays["codes_BNQ"] = np.zeros(shape, np.int32)
        arrays["code_lengths_B"] = np.zeros(rows, np.int32)
    zeros = {name: np.zeros(rows, np.int32) for name in ("samples_B", "skipped_B")}
    return AudioBatch(**arrays, **zeros)


def _samples_at(rate: int, samples: int) -> int:
    return samples * rate // lengths.SAMPLE_RATE
