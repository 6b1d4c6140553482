"""Reading audio files, whole, in blocks or in stretches: WAV, FLAC, Ogg, MP3, AAC, M4A, WebM, MKA.

PyAV (ffmpeg) decodes all of them but NMS ADPCM, which it does not know, and four codings that
libsndfile decodes better. Records are stored in the first two (150 clips of the embedded corpus,
2 s each):

  Ogg Opus with a single stream   libsndfile decodes at the rate that the header states (24 kHz),
                                  ffmpeg at 48 kHz. Brought to 16 kHz, samples differ by up to 0.16
                                  and log-mels by up to 0.2 (0.003 in the mean): models were trained
                                  on libsndfile's. Time is the same.
  FLAC that states its length     0.43 ms a clip against 0.66 ms; the samples are equal.
  Ogg Vorbis with a single stream ffmpeg takes off or adds up to 1000 samples at the end of files
                                  of a second or two, which have a single page.
  WAV with big-endian numbers     ffmpeg takes them for little-endian: noise.

Both libraries return the samples that a file holds and say nothing of missing ones. So the sizes
that a container states are checked (`audio.complete`): a file that is cut or damaged is an error,
never a part returned as the whole. Sizes that writers into a pipe leave open are read to the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ba_jax.audio.checks import AudioError, check_channels, check_rate, check_samples
from ba_jax.audio.complete import Container, check_complete, cut_short
from ba_jax.audio.decoders import FfmpegDecoder, SndfileDecoder
from ba_jax.audio.resample import resample

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".m4a", ".mp4", ".aac", ".webm", ".mka"),
)
"""Suffixes of the files that a folder of recordings is searched for, in lower case."""

MAX_SECONDS = 600.0  # default bound on the length of a file
MAX_BYTES = 1 << 28  # default bound on the size of a file (256 MiB)

_LOUDEST = 32.0  # +30 dB over full scale: no recording, but integers stored as floats
_SLACK = 0.25  # seconds by which a stretch, or a length not counted in samples, may be past the end


def read_audio(
    source: str | os.PathLike | bytes | BinaryIO,
    *,
    sample_rate: int | None = None,
    mono: bool = True,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> tuple[np.ndarray, int]:
    """Read a whole audio file.

    Nothing is allocated because a header states it: samples are decoded in blocks up to the bound.
    Stereo is averaged before resampling, at half the cost of the other order.

    Args:
      source: path, the file's bytes, or a binary file object (read from its position to its end;
        it need not be seekable, and is not closed).
      sample_rate: rate wanted, Hz; None keeps the file's.
      mono: average the channels; else keep them.
      max_seconds: longest audio accepted.
      max_bytes: largest file accepted, and most bytes of decoded samples (4 a sample).

    Returns:
      (float32 waveform (S,), or (S, C) if not `mono`; its sample rate in Hz). Full scale is +-1.

    Raises:
      AudioError: no such file, not a regular file, empty, none of these formats, over a bound,
        cut short, damaged, no samples, more than 2 channels, a rate outside 4 to 192 kHz, a sample
        that is NaN or infinite, or float samples at integer scale.
    """
    if sample_rate is not None:
        check_rate("sample_rate wanted", sample_rate)
    with AudioReader(source, max_bytes=max_bytes) as reader:
        rate, limit = reader.rate, int(max_seconds * reader.rate)
        frame_bytes = 4 * (1 if mono else reader.channels)
        reader.check_bounds(reader.frames or 0, limit, frame_bytes, max_bytes)
        blocks, count = [], 0
        for block_SC in reader.read():
            count += len(block_SC)
            reader.check_bounds(count, limit, frame_bytes, max_bytes)
            blocks.append(_average(block_SC)[:, None] if mono else block_SC)
    wave = np.concatenate(blocks)
    wave = wave[:, 0] if mono else wave
    if sample_rate is not None and sample_rate != rate:
        wave, rate = resample(wave, rate, sample_rate, axis=0), sample_rate
    return wave, rate


class AudioReader:
    """An open audio file of any length, read once, from its start or from a sample on.

    Attributes:
      name: name of the source, for messages.
      rate: Hz.
      channels: 1 or 2.
      frames: samples a channel as the file states them; None if it does not, or unreliably (MP3).
    """

    def __init__(
        self, source: str | os.PathLike | bytes | BinaryIO, *, max_bytes: int | None = None
    ):
        """Open a file; `max_bytes` bounds its size.

        Raises:
          AudioError: as `read_audio`, except for faults of the samples.
        """
        self.name = _source_name(source)
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            stream, size = opening.enter_context(_open_stream(source, self.name, max_bytes))
            head = stream.read(8)
            container = check_complete(stream, size, self.name)
            if (container.start, container.end) != (0, size):
                stream = _Window(stream, container.start, container.end)
            stream.seek(0)
            try:
                self._decoder = _open_decoder(stream, container)
            except _decoding_errors() as error:
                if isinstance(error, AudioError):
                    raise
                raise AudioError(
                    f"{self.name}: {_reason(error)}: starts with {head!r}, expected a WAV, FLAC, "
                    "Ogg, MP3, AAC, M4A or Matroska file",
                    "not audio",
                ) from error
            opening.callback(self._decoder.close)
            self.format = self._decoder.format
            self.rate, self.channels = self._decoder.rate, self._decoder.channels
            check_rate(f"{self.name}: sample rate of the header", self.rate)
            check_channels(self.name, self.channels)
            self.frames = self._decoder.frames
            self._closing = opening.pop_all()

    @property
    def seconds(self) -> float:
        """Length; exact where the file counts its samples, else within a few hundredths.

        A file that states none is counted: by packets (MP3, raw AAC), else by decoding.
        """
        if self.frames is None:
            try:
                self.frames = self._decoder.count_frames()
            except _decoding_errors() as error:
                raise self._damaged(error) from error
        return self.frames / self.rate

    def read(self, first: int = 0) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` to the end.

        Raises:
          AudioError: cut short or damaged there, no samples, or as `read_audio` of a sample.
        """
        count = first
        try:
            for block_SC in self._decoder.decode(first):
                check_samples(block_SC, self.name, count, _LOUDEST)
                count += len(block_SC)
                yield block_SC
        except _decoding_errors() as error:
            if isinstance(error, AudioError):
                raise
            raise self._damaged(error, count / self.rate) from error
        is_exact = self.format in ("wav", "w64", "flac")
        slack = 0 if is_exact else int(_SLACK * self.rate)
        if count < (self._decoder.frames or 0) - slack:
            raise cut_short(
                self.name, self.format, f"{count} samples decoded, expected {self._decoder.frames}"
            )
        if not count:
            raise AudioError(f"{self.name}: holds 0 samples, expected at least 1", "empty file")

    def _damaged(self, error: Exception, seconds: float = 0.0) -> AudioError:
        """The error of a file that a decoder refuses, `seconds` after its start."""
        return AudioError(
            f"{self.name}: {self.format} file that cannot be decoded at {seconds:.2f} s "
            f"({_reason(error)}): cut short or damaged, expected a whole file",
            "truncated audio",
        )

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield mono waves (S,) of some seconds that follow each other.

        Raises:
          AudioError: as `read`.
        """
        return map(_average, self.read())

    def stretch(self, first: int, count: int | None = None) -> np.ndarray:
        """Read the mono wave (S,) of `count` samples from `first` on, or of all to the end.

        The part before it is skipped, not decoded, but in chained Ogg and compressed WAV. The
        samples are those of the whole file (Opus: within 0.01; AAC: except for noise that its
        decoder makes up). An end up to 0.25 s past the file's is taken as the file's.

        Raises:
          AudioError: as `read`, or an end past the file's.
        """
        blocks, total = [], 0
        for block_SC in self.read(first):
            blocks.append(_average(block_SC))
            total += len(block_SC)
            if count is not None and total >= count:
                break
        if count is not None and total < count - int(_SLACK * self.rate):
            problem = f"{total} samples decoded from {first} on, expected {count}"
            raise cut_short(self.name, self.format, problem)
        return np.concatenate(blocks)[:count] if blocks else np.zeros(0, np.float32)

    def check_bounds(self, frames: int, max_frames: int, frame_bytes: int, max_bytes: int) -> None:
        """Raise AudioError for more frames than the bounds allow."""
        if frames > max_frames:
            raise AudioError(
                f"{self.name}: at least {frames / self.rate:.1f} s long, expected at most "
                f"{max_frames / self.rate:.1f} s",
                "too long",
            )
        if frames * frame_bytes > max_bytes:
            raise AudioError(
                f"{self.name}: at least {frames * frame_bytes} bytes of samples, expected at most "
                f"{max_bytes}",
                "too large",
            )

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _decoding_errors() -> tuple[type[Exception], ...]:
    """Errors of the decoders in use; records need libsndfile only, so av stays unloaded."""
    av = sys.modules.get("av")
    return (OSError, RuntimeError, ValueError, *([av.FFmpegError] if av else []))


def _open_decoder(stream: BinaryIO, container: Container) -> FfmpegDecoder | SndfileDecoder:
    if container.for_libsndfile:
        return SndfileDecoder(stream, container.format, container.ogg_end)
    decoder = FfmpegDecoder(stream, container.has_end)
    if decoder.format != container.format:
        raise ValueError(f"{decoder.format} behind other bytes")
    if decoder.format == "wav" and decoder.coding.startswith("amr"):
        # ffmpeg takes NMS ADPCM for it; libsndfile knows both.
        decoder.close()
        stream.seek(0)
        return SndfileDecoder(stream, "wav")
    return decoder


def _average(block_SC: np.ndarray) -> np.ndarray:
    """Average the channels to mono (S,)."""
    return block_SC[:, 0] if block_SC.shape[1] == 1 else block_SC.mean(axis=1)


# --- sources --------------------------------------------------------------------------------------


def _source_name(source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    return f"<file object {getattr(source, 'name', type(source).__name__)}>"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def _open_stream(source, name: str, max_bytes: int | None) -> Iterator[tuple[BinaryIO, int]]:
    """A seekable stream at the file's first byte, and its size."""
    if isinstance(source, str | os.PathLike):
        with _open_file(source, name) as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_size(size, name, max_bytes)
            yield stream, size
        return
    if isinstance(source, bytes | bytearray | memoryview):
        data = source
    elif hasattr(source, "read"):
        data = _read_all(source, name, max_bytes)
    else:
        raise AudioError(
            f"{type(source).__name__} object: expected a path, bytes or a binary file object"
        )
    _check_size(len(data), name, max_bytes)
    yield io.BytesIO(data), len(data)


class _Window(io.RawIOBase):
    """A part of a stream as a stream of its own: a file without the tags around it."""

    def __init__(self, stream: BinaryIO, start: int, end: int):
        self._stream, self._start, self._size, self._at = stream, start, max(0, end - start), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer) -> int:
        self._stream.seek(self._start + self._at)
        data = self._stream.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _open_file(path, name: str) -> BinaryIO:
    try:
        # Checked before opening: opening a pipe would wait for its writer.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise AudioError(f"{name}: is {kind}, expected an audio file", "missing file")
        return open(path, "rb")
    except AudioError:
        raise
    except (OSError, ValueError) as error:
        raise AudioError(
            f"{name}: cannot be opened ({error}), expected a file", "missing file"
        ) from error


def _check_size(size: int, name: str, max_bytes: int | None) -> None:
    if size == 0:
        raise AudioError(f"{name}: is empty (0 bytes), expected an audio file", "empty file")
    if max_bytes is not None and size > max_bytes:
        raise AudioError(f"{name}: is over {max_bytes} bytes, the limit", "too large")


def _read_all(source, name: str, max_bytes: int | None) -> bytes:
    """At most `max_bytes` + 1 of a file object; a pipe or socket may give a part at a time."""
    parts, total = [], 0
    try:
        while max_bytes is None or total <= max_bytes:
            part = source.read(
                1 << 20 if max_bytes is None else min(max_bytes + 1 - total, 1 << 20)
            )
            if not isinstance(part, bytes | bytearray | memoryview):
                raise AudioError(f"{name}: reads as {type(part).__name__}, expected bytes")
            if not part:
                break
            parts.append(part)
            total += len(part)
    except AudioError:
        raise
    except (OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be read ({error}), expected an open file") from error
    return b"".join(parts)
