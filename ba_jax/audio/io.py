"""Reading and writing audio files: WAV, FLAC, Ogg (Vorbis, Opus) and MP3, through libsndfile."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from ba_jax.audio import containers
from ba_jax.audio.resample import resample

MIN_SAMPLE_RATE = 4000  # Hz; below lies no intelligible speech
MAX_SAMPLE_RATE = 192_000  # Hz; above, no converter: a broken header
MAX_SECONDS = 600.0  # default bound on the length of what is read
MAX_BYTES = 1 << 28  # default bound on the size of what is read (256 MiB)
MAX_CHANNELS = 2  # the reference takes mono and stereo only
MAX_AMPLITUDE = 2.0**31  # no integer format is louder; its square still has finite features

_BLOCK_FRAMES = 1 << 16
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# What `write_audio` writes for a format: container, coding, rates it can hold (None: any).
_WRITERS = {
    "wav": ("WAV", "PCM_16", None),
    "flac": ("FLAC", "PCM_16", None),
    "ogg": ("OGG", "VORBIS", None),
    "opus": ("OGG", "OPUS", _OPUS_RATES),
    "mp3": ("MP3", "MPEG_LAYER_III", _MP3_RATES),
}


class AudioError(ValueError):
    """Audio that cannot be used: names the source, the value found and what was expected."""


def check_wave(wave, *, min_samples: int = 1, name: str = "wave") -> np.ndarray:
    """A mono waveform that features can be computed from, as a floating NumPy array (S,).

    Args:
      wave: array (S,).
      min_samples: fewest samples accepted.
      name: what to call it in an error.

    Raises:
      AudioError: another shape, not floating point, too short, or a sample that is NaN, infinite
        or beyond +-2**31.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise AudioError(f"{name} is {wave.dtype}{wave.shape}: expected a floating mono array (S,)")
    if len(wave) < min_samples:
        raise AudioError(f"{name} has {len(wave)} samples: expected at least {min_samples}")
    _check_samples(wave[:, None], 0, name)
    return wave


def _check_samples(frames_SC: np.ndarray, offset: int, name: str) -> None:
    """Raises AudioError on the first sample that is not a sane number; `offset` counts before."""
    # One pass: NaN fails the comparison too.
    is_sane = np.abs(frames_SC) <= MAX_AMPLITUDE
    if not is_sane.all():
        sample, channel = np.argwhere(~is_sane)[0]
        raise AudioError(
            f"{name}: sample {offset + sample} is {frames_SC[sample, channel]}, expected a "
            "finite number, about -1 to 1"
        )


# --- reading --------------------------------------------------------------------------------------


def read_audio(
    source: str | os.PathLike | bytes | BinaryIO,
    *,
    sample_rate: int | None = None,
    mono: bool = True,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> tuple[np.ndarray, int]:
    """Reads a WAV, FLAC, Ogg Vorbis, Ogg Opus or MP3 file.

    Nothing is allocated on a header's word: the size on disk, the duration claimed and the bytes
    behind the claim are checked first, then samples are decoded in blocks of 65536 up to the bound.

    Stereo is averaged before resampling, at half the cost of the other order. Both are linear and
    act on different axes, so that the result is the same up to rounding.

    Args:
      source: path, the file's bytes, or a binary file object (read from where it stands to its
        end; it need not be seekable, and is not closed).
      sample_rate: rate wanted, Hz; None keeps the file's.
      mono: average the channels; else keep them.
      max_seconds: longest audio accepted.
      max_bytes: largest file accepted, and most bytes of decoded samples (4 a sample).

    Returns:
      (float32 waveform (S,), or (S, C) if not `mono`; its sample rate in Hz). Full scale is +-1.

    Raises:
      AudioError: no such file, not a regular file, empty, none of these formats, over a bound,
        cut short, not decodable, no samples, more than 2 channels, a rate outside 4 to 192 kHz, or
        a sample that is NaN, infinite or beyond +-2**31.
    """
    if sample_rate is not None:
        _check_rate("sample_rate wanted", sample_rate)
    name = _name(source)
    with _opened(source, name, max_bytes) as (stream, size):
        kind = containers.find_kind(stream)
        if kind is None:
            raise AudioError(
                f"{name}: starts with {_head(stream)!r}, expected a WAV, FLAC, Ogg or MP3 file"
            )
        if problem := containers.find_truncation(stream, kind, size, max_seconds):
            raise AudioError(f"{name}: {kind} file cut short: {problem}, expected a whole file")
        if kind == "mp3" and (found := containers.make_mp3_index(stream, size, max_seconds)):
            index, start, end = found
            stream.seek(start)
            stream = io.BytesIO(index + stream.read(end - start))
        stream.seek(0)
        wave_SC, rate = _decode(stream, name, kind, mono, max_seconds, max_bytes)
    wave = wave_SC[:, 0] if mono else wave_SC
    if sample_rate is not None and sample_rate != rate:
        wave, rate = resample(wave, rate, sample_rate, axis=0), sample_rate
    return wave, rate


class _ForwardReader(soundfile.SoundFile):
    """Reads without seeking after each block, which fails in a FLAC that states no length."""

    def seekable(self) -> bool:
        return False


def _decode(stream, name: str, kind: str, mono: bool, max_seconds: float, max_bytes: int):
    try:
        with _ForwardReader(stream) as file:
            rate, channels, claimed = file.samplerate, file.channels, file.frames
            _check_rate(f"{name}: sample rate of the header", rate)
            if not 1 <= channels <= MAX_CHANNELS:
                raise AudioError(f"{name}: has {channels} channels, expected 1 or 2")
            limit = int(max_seconds * rate)
            bytes_each = 4 * (1 if mono else channels)
            # libsndfile gives the largest integer where a FLAC header states no length.
            is_stated = 0 < claimed < 1 << 62
            if is_stated:
                _check_duration(name, claimed, rate, limit, bytes_each, max_bytes)
            blocks, count = [], 0
            while True:
                block_SC = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
                if not len(block_SC):
                    break
                _check_samples(block_SC, count, name)
                count += len(block_SC)
                _check_duration(name, count, rate, limit, bytes_each, max_bytes)
                if mono and channels > 1:
                    block_SC = block_SC.mean(axis=1, keepdims=True)
                blocks.append(block_SC)
    except soundfile.SoundFileError as error:
        # libsndfile's own words, without the name that it knows the stream by.
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(
            f"{name}: {kind} file that cannot be decoded ({reason}): cut short or damaged, "
            "expected a whole file"
        ) from error
    if not count:
        raise AudioError(f"{name}: holds 0 samples, expected at least 1")
    # The length in an MP3 or Ogg header may be an estimate; these two are exact.
    if kind in ("wav", "flac") and is_stated and count < claimed:
        raise AudioError(f"{name}: cut short: {count} samples decoded, expected {claimed}")
    return np.concatenate(blocks), rate


def _check_rate(what: str, rate: int) -> None:
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{what} is {rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz")


def _check_duration(name, frames: int, rate: int, limit: int, bytes_each: int, max_bytes: int):
    if frames > limit:
        raise AudioError(
            f"{name}: at least {frames / rate:.1f} s long, expected at most {limit / rate:.1f} s"
        )
    if frames * bytes_each > max_bytes:
        raise AudioError(
            f"{name}: at least {frames * bytes_each} bytes of samples, expected at most {max_bytes}"
        )


def _name(source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    return f"<file object {getattr(source, 'name', type(source).__name__)}>"


def _head(stream) -> bytes:
    stream.seek(0)
    return stream.read(8)


def _read_all(source, name: str, max_bytes: int) -> bytes:
    """At most `max_bytes` of a file object; one read of a pipe or socket may give only a part."""
    parts, left = [], max_bytes
    try:
        while left > 0 and (part := source.read(min(left, 1 << 20))):
            if not isinstance(part, bytes | bytearray | memoryview):
                raise AudioError(f"{name}: reads as {type(part).__name__}, expected bytes")
            parts.append(part)
            left -= len(part)
    except (OSError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{name}: cannot be read ({error}), expected an open file") from error
    return b"".join(parts)


@contextlib.contextmanager
def _opened(source, name: str, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """A seekable stream that starts at the file's first byte, and its size."""

    def check_size(size: int) -> int:
        if size == 0:
            raise AudioError(f"{name}: is empty (0 bytes), expected an audio file")
        if size > max_bytes:
            raise AudioError(f"{name}: has over {max_bytes} bytes, expected at most that")
        return size

    if isinstance(source, str | os.PathLike):
        try:
            # Asked before opening: opening a pipe would wait for its writer.
            mode = os.stat(source).st_mode
            if not stat.S_ISREG(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                raise AudioError(f"{name}: is {what}, expected an audio file")
            stream = open(source, "rb")
        except (OSError, ValueError) as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"{name}: cannot be opened ({error}), expected a file") from error
        with stream:
            yield stream, check_size(os.fstat(stream.fileno()).st_size)
        return
    if isinstance(source, bytes | bytearray | memoryview):
        data = source
    elif hasattr(source, "read"):
        data = _read_all(source, name, max_bytes + 1)
    else:
        raise AudioError(
            f"{type(source).__name__} object: expected a path, bytes or a binary file object"
        )
    yield io.BytesIO(data), check_size(len(data))


# --- writing --------------------------------------------------------------------------------------


def write_audio(
    target: str | os.PathLike | BinaryIO,
    wave,
    sample_rate: int,
    format: str | None = None,
    *,
    subtype: str | None = None,
) -> None:
    """Writes an audio file; a path is replaced atomically, or left as it was on an error.

    Args:
      target: path, or a file object open for binary writing.
      wave: floating array (S,) or (S, C), C <= 2, full scale +-1. What exceeds it is clipped,
        except in floating-point WAV.
      sample_rate: Hz. Opus takes 8, 12, 16, 24 and 48 kHz, MP3 takes 8 to 48 kHz in steps.
      format: "wav" and "flac" (16 bits), "ogg" (Vorbis), "opus" (in Ogg) or "mp3"; by default
        the path's suffix.
      subtype: another coding of libsndfile's, such as "FLOAT" or "PCM_24".

    Raises:
      AudioError: unknown format or coding, a rate the format cannot hold, another shape or type, no
        samples, more than 2 channels, NaN or Inf, or a path that cannot be written.
    """
    is_path = isinstance(target, str | os.PathLike)
    name = _name(target)
    if format is None and is_path:
        format = os.path.splitext(name)[1].lstrip(".").lower()
    if format not in _WRITERS:
        raise AudioError(f"{name}: format {format!r}, expected one of {', '.join(_WRITERS)}")
    container, coding, rates = _WRITERS[format]
    coding = subtype or coding
    if not soundfile.check_format(container, coding):
        known = ", ".join(soundfile.available_subtypes(container))
        raise AudioError(f"{name}: coding {coding!r} in {format}, expected one of {known}")
    _check_rate(f"{name}: sample rate", sample_rate)
    if rates and sample_rate not in rates:
        raise AudioError(f"{name}: {format} at {sample_rate} Hz, expected one of {rates}")
    wave = np.asarray(wave)
    if wave.ndim not in (1, 2) or wave.dtype.kind != "f" or not wave.size:
        raise AudioError(
            f"{name}: wave is {wave.dtype}{wave.shape}, expected a floating array (S,) or (S, C)"
        )
    wave_SC = wave if wave.ndim == 2 else wave[:, None]
    if wave_SC.shape[1] > MAX_CHANNELS:
        raise AudioError(f"{name}: wave has {wave_SC.shape[1]} channels, expected 1 or 2")
    _check_samples(wave_SC, 0, name)
    if coding not in ("FLOAT", "DOUBLE"):
        wave_SC = np.clip(wave_SC, -1.0, 1.0)

    if not is_path:
        encoded = io.BytesIO()  # file objects that cannot seek are welcome
        _encode(encoded, name, wave_SC, sample_rate, container, coding)
        target.write(encoded.getvalue())
        return
    folder, base = os.path.split(os.path.abspath(name))
    temporary = os.path.join(folder, f".{base}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            _encode(stream, name, wave_SC, sample_rate, container, coding)
        os.replace(temporary, name)
    except OSError as error:
        raise AudioError(f"{name}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _encode(stream, name: str, wave_SC, rate: int, container: str, coding: str) -> None:
    try:
        with soundfile.SoundFile(
            stream, "w", rate, wave_SC.shape[1], coding, format=container
        ) as file:
            # In blocks: Vorbis encoders put a whole call's samples on the stack.
            for start in range(0, len(wave_SC), _BLOCK_FRAMES):
                block = np.ascontiguousarray(wave_SC[start : start + _BLOCK_FRAMES])
                file.write(block if block.dtype == np.float64 else block.astype(np.float32))
    except soundfile.SoundFileError as error:
        raise AudioError(f"{name}: cannot be encoded ({error})") from error
