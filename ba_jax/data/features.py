"""Audio of fixed shapes: recordings cut into chunks of at most 30 s, chunks put into buckets.

The number of frames of codes follows from a recording's length alone (`chunk_samples`), so that
examples can be laid out and packed without decoding anything. Decoding then gives exactly the
stated number of samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ba_jax.audio import AudioError, lengths, read_audio
from ba_jax.audio.mel import MelGeometry, whisper_log_mel
from ba_jax.audio.resample import resample
from ba_jax.config import ConfigError, from_mapping
from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import stable_hash
from ba_jax.data.record import Record
from ba_jax.vocab import AudioTokens

_TOLERANCE = 0.1  # seconds that a decoded file may differ from its stated length; codecs pad

ON_ERROR = ("fail", "skip")
"""Ways to treat a damaged record: stop, or leave it out and count it."""


@dataclasses.dataclass(frozen=True)
class ModelFormat:
    """Input format of a model; `vocab_size` is the rows of the text embedding."""

    codebook_sizes: tuple[int, ...]
    mel_bins: int
    vocab_size: int
    tokens: AudioTokens

    @classmethod
    def of(cls, model: Mapping) -> ModelFormat:
        """Read the format from a whole model's config, or raise ConfigError."""
        try:
            return from_mapping(
                cls,
                {
                    "codebook_sizes": model["vq_bridge"]["codebook_sizes"],
                    "mel_bins": model["audio_encoder"]["mel_bins"],
                    "vocab_size": model["llm"]["vocab_size"],
                    "tokens": model["tokens"],
                },
            )
        except (KeyError, TypeError) as error:
            key = str(error).strip("'\"")
            raise ConfigError(f"model: {key}, expected a whole model's config") from None


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Places for chunks of up to `seconds`: `count` per packed row, or per batch of audio alone."""

    seconds: float
    count: int

    def __post_init__(self):
        if not 0.1 <= self.seconds <= lengths.MAX_SECONDS or self.count < 1:
            raise ValueError(f"{self}: expected 0.1 to {lengths.MAX_SECONDS} seconds, count >= 1")

    @property
    def samples(self) -> int:
        """Samples at 16 kHz."""
        return int(self.seconds * lengths.SAMPLE_RATE)

    @property
    def mel_frames(self) -> int:
        """Frames of Whisper's mel."""
        return lengths.mel_length(self.samples)


def check_buckets(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """Return the buckets, shortest first; ValueError if two are of one length."""
    ordered = tuple(sorted(buckets, key=lambda bucket: bucket.seconds))
    if len({bucket.seconds for bucket in ordered}) != len(ordered):
        raise ValueError(f"buckets {ordered}: two of one length")
    return ordered


def speed_of(record: Record, augmentation: Augmentation) -> float:
    """Speed of a record, the same at each draw: its number of frames must not change."""
    if len(augmentation.speeds) == 1:  # a generator takes longer than the rest of a short record
        return augmentation.speeds[0]
    rng = np.random.default_rng(stable_hash(record.id))
    return augmentation.speeds[int(rng.integers(len(augmentation.speeds)))]


def total_samples(seconds: float, speed: float = 1.0, rate: int = lengths.SAMPLE_RATE) -> int:
    """Samples of a recording at `rate`, played `speed` times as fast."""
    return round(seconds * rate / speed)


def chunk_samples(samples: int, max_seconds: float) -> tuple[int, ...]:
    """Cut a recording into consecutive chunks of at most `max_seconds`.

    A last chunk too short for a frame of codes (under 60 ms) is left out.
    """
    longest = int(max_seconds * lengths.SAMPLE_RATE)
    whole, rest = divmod(samples, longest)
    return (longest,) * whole + ((rest,) if lengths.code_length(rest) else ())


def bucket_of(samples: int, buckets: Sequence[Bucket]) -> int:
    """Index of the shortest bucket that holds a chunk; `buckets` are sorted, the last holds any."""
    return next(i for i, bucket in enumerate(buckets) if samples <= bucket.samples)


def decode(
    audio: bytes, seconds: float, rates: Sequence[int], speed: float = 1.0
) -> list[np.ndarray]:
    """Decode a recording to mono waves (S,) at `rates`, S = round(seconds * rate / speed).

    Pitch rises with speed (speed perturbation). A file of another length raises AudioError.
    """
    # A file longer than stated is not decoded whole.
    wave_S, stored = read_audio(audio, max_seconds=seconds + _TOLERANCE)
    if len(wave_S) / stored < seconds - _TOLERANCE:
        raise AudioError(
            f"audio cut short: {len(wave_S) / stored:.3f} s, expected {seconds:.3f} s",
            "truncated audio",
        )
    # Reading a recording as if its rate were higher plays it faster.
    source = round(stored * speed)
    waves = []
    for rate in rates:
        at_rate_S = wave_S if source == rate else resample(wave_S, source, rate)
        samples = total_samples(seconds, speed, rate)
        waves.append(np.pad(at_rate_S[:samples], (0, max(0, samples - len(at_rate_S)))))
    return waves


def chunk_mels(
    wave_S: np.ndarray,
    chunks: Sequence[int],
    geometry: MelGeometry,
    augmentation: Augmentation | None = None,
    rng: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """Compute Whisper's log-mel (T, M) of consecutive chunks of a 16 kHz wave."""
    mels, start = [], 0
    for samples in chunks:
        piece = wave_S[start : start + samples]
        if augmentation is not None:
            piece = augmentation.wave(piece, rng)
        mel_TM = whisper_log_mel(piece, geometry)
        mels.append(mel_TM if augmentation is None else augmentation.mel(mel_TM, rng))
        start += samples
    return mels


class _OneThread:
    """Limits BLAS to one thread while any thread of the process is inside.

    BLAS has one setting for the process: separate limits would be lifted by the first to leave.
    """

    def __init__(self):
        self._lock, self._inside, self._limit = threading.Lock(), 0, None

    @functools.cached_property
    def _blas(self):
        import threadpoolctl

        return threadpoolctl.ThreadpoolController().select(user_api="blas")

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit = self._blas.limit(limits=1)
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_ONE_THREAD = _OneThread()


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Return a context in which NumPy's matrix products use one thread.

    A batch must not depend on the machine's cores: another number of threads rounds sums
    differently (9e-6 in a mel). And several workers build batches beside a training step: on two
    busy cores, waiting for other threads made resampling 70 times slower.
    """
    return _ONE_THREAD


@functools.lru_cache(maxsize=8)
def mel_geometry(bins: int) -> MelGeometry:
    """Geometry of Whisper's mel with `bins` bins."""
    return MelGeometry(lengths.SAMPLE_RATE, lengths.N_FFT, lengths.HOP, n_mels=bins)
