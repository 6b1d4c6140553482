"""Reading audio files, whole, in blocks or in stretches: WAV, FLAC, Ogg, MP3, AAC, M4A, WebM, MKA.

PyAV (ffmpeg) decodes all of them but the two codings in which records are stored; those are decoded
by libsndfile, for measured reasons (150 clips of the embedded corpus, 2 s each):

  Ogg Opus with a single stream   libsndfile decodes at the rate that the header states (24 kHz),
                                  ffmpeg at 48 kHz. Brought to 16 kHz, samples differ by up to 0.16
                                  and log-mels by up to 0.2 (0.003 in the mean): models were trained
                                  on libsndfile's. Time is the same.
  FLAC that states its length     0.43 ms a clip against 0.66 ms; the samples are equal.

Both libraries return the samples that a file holds and say nothing of missing ones. So the sizes
that a container states are checked (`audio.complete`): a file that is cut or damaged is an error,
never a part returned as the whole. Sizes that writers into a pipe leave open are read to the end.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ba_jax.audio.checks import AudioError, check_channels, check_rate, check_samples
from ba_jax.audio.complete import check_complete, cut_short
from ba_jax.audio.resample import resample

MAX_SECONDS = 600.0  # default bound on the length of a file
MAX_BYTES = 1 << 28  # default bound on the size of a file (256 MiB)

_BLOCK_FRAMES = 1 << 16
_LOUDEST = 32.0  # +30 dB over full scale: no recording, but integers stored as floats
_SLACK_SECONDS = 0.25  # stated lengths may be rounded so far, unless they count samples
_PREROLL_SECONDS = 1.0  # decoded and dropped before a stretch, for codecs with a memory
# Demuxers that may open a file; others would follow playlists to other files, or read pictures.
_FORMATS = "wav,w64,flac,ogg,mp3,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_EXACT = ("flac",)  # formats whose header counts samples
_SCALES = {"u1": 2.0**-7, "i2": 2.0**-15, "i4": 2.0**-31, "f8": 1.0}  # of decoded samples


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
      name: of the source, for messages.
      rate: Hz.
      channels: 1 or 2.
      frames: samples a channel as the file states them; None if it does not, or unreliably (MP3).
    """

    def __init__(
        self, source: str | os.PathLike | bytes | BinaryIO, *, max_bytes: int | None = None
    ):
        """Open a file; `max_bytes` bounds its size.

        Raises:
          AudioError: as `read_audio`, but for faults of the samples.
        """
        import av

        self.name = _source_name(source)
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            stream, size = opening.enter_context(_open_stream(source, self.name, max_bytes))
            head = stream.read(26)
            is_single_opus = check_complete(stream, size, self.name)
            stream.seek(0)
            try:
                if is_single_opus or _states_flac_length(head):
                    self._decoder = _SndfileDecoder(stream, "ogg" if is_single_opus else "flac")
                else:
                    self._decoder = _FfmpegDecoder(stream)
            except (av.FFmpegError, OSError, RuntimeError, ValueError) as error:
                if isinstance(error, AudioError):
                    raise
                raise AudioError(
                    f"{self.name}: {_reason(error)}: starts with {head[:8]!r}, expected a WAV, "
                    "FLAC, Ogg, MP3, AAC, M4A or Matroska file",
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

        An MP3's packets are counted for it.
        """
        if self.frames is None:
            self.frames = self._decoder.count_frames()
        return self.frames / self.rate

    def read(self, first: int = 0) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` to the end.

        Raises:
          AudioError: cut short or damaged there, no samples, or as `read_audio` of a sample.
        """
        import av

        count = first
        try:
            for block_SC in self._decoder.decode(first):
                check_samples(block_SC, self.name, count, _LOUDEST)
                count += len(block_SC)
                yield block_SC
        except (av.FFmpegError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError(
                f"{self.name}: {self.format} file that cannot be decoded at {count / self.rate:.2f}"
                f" s ({_reason(error)}): cut short or damaged, expected a whole file",
                "truncated audio",
            ) from error
        slack = 0 if self.format in _EXACT else int(_SLACK_SECONDS * self.rate)
        if count < (self._decoder.frames or 0) - slack:
            raise cut_short(
                self.name, self.format, f"{count} samples decoded, expected {self._decoder.frames}"
            )
        if not count:
            raise AudioError(f"{self.name}: holds 0 samples, expected at least 1", "empty file")

    def blocks(self, seconds: float) -> Iterator[np.ndarray]:
        """Yield mono waves (S,) that follow each other; all but the last are `seconds` long.

        Raises:
          AudioError: as `read`.
        """
        length = max(1, int(seconds * self.rate))
        for block_SC in _regroup(self.read(), length):
            yield _average(block_SC)

    def stretch(self, first: int, count: int | None = None) -> np.ndarray:
        """Read the mono wave (S,) of `count` samples from `first` on, or of all to the end.

        The part before it is skipped, not decoded, and the samples are those of the whole file
        (Opus: within 0.01). An end up to 0.25 s behind the file's is the file's.

        Raises:
          AudioError: as `read`, or an end behind the file's.
        """
        blocks, total = [], 0
        for block_SC in self.read(first):
            blocks.append(_average(block_SC))
            total += len(block_SC)
            if count is not None and total >= count:
                break
        if count is not None and total < count - int(_SLACK_SECONDS * self.rate):
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


def _states_flac_length(head: bytes) -> bool:
    """Whether a file's first 26 bytes are those of a FLAC that states its number of samples."""
    is_flac = head[:4] == b"fLaC" and len(head) == 26
    return is_flac and (head[21] & 0x0F or any(head[22:26])) != 0


def _average(block_SC: np.ndarray) -> np.ndarray:
    """Average the channels to mono (S,)."""
    return block_SC[:, 0] if block_SC.shape[1] == 1 else block_SC.mean(axis=1)


# --- decoders -------------------------------------------------------------------------------------


class _FfmpegDecoder:
    """The single audio stream of a file, by PyAV."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._open()
        self.format = self._container.format.name.split(",")[0]
        self.rate = self._audio.sample_rate
        self.channels = self._audio.codec_context.channels
        self.frames = None
        if self.format not in ("mp3", "aac", "ogg"):  # estimates, or the last chain's length
            self.frames = round(self._stated_seconds() * self.rate) or None

    def _open(self) -> None:
        import av

        self._stream.seek(0)
        options = {"format_whitelist": _FORMATS}
        if self._stream.read(4) in (b"RIFF", b"RIFX", b"RF64"):
            # ffmpeg would otherwise look for other codings inside of PCM, 40 times as long.
            options["probesize"] = "4096"
        self._stream.seek(0)
        self._container = av.open(self._stream, options=options)
        streams = self._container.streams.audio
        if len(streams) != 1:
            raise ValueError(f"{len(streams)} audio streams, expected 1")
        self._audio = streams[0]
        self._audio.codec_context.thread_count = 1  # loaders run several processes

    def _stated_seconds(self) -> float:
        if self._audio.duration:
            return float(self._audio.duration * self._audio.time_base)
        return (self._container.duration or 0) / 1e6

    def decode(self, first: int) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` on."""
        frames = self._frames()
        if first:
            # Positions count from the first frame, whatever timestamp it has.
            start = next(frames, None)
            if start is None:
                return
            if self._seek(first, start):
                frames = self._frames()
            else:
                frames = itertools.chain([start], frames)
            yield from _gather(self._skip(frames, first, self._position(start)))
        else:
            yield from _gather(map(_to_array, frames))

    def _frames(self):
        """Yield decoded frames, of one rate and one number of channels."""
        packets = self._container.demux(self._audio)
        for packet in _pass_mp3_frames(packets) if self.format == "mp3" else packets:
            # A WAV file of unknown size ends inside a packet.
            if packet.is_corrupt and self.format != "wav":
                raise ValueError("a damaged packet")
            for frame in packet.decode():
                here = frame.sample_rate, len(frame.layout.channels)
                if here != (self.rate, self.channels):
                    raise ValueError(
                        f"changes from {self.rate} Hz and {self.channels} channels to {here}"
                    )
                yield frame

    def _position(self, frame) -> int | None:
        """The number of a frame's first sample by its timestamp."""
        return None if frame.pts is None else round(frame.pts * frame.time_base * self.rate)

    def _seek(self, first: int, start) -> bool:
        """Move to about a second before a sample; False if timestamps are too coarse for it."""
        if start.pts is None or self._audio.time_base * self.rate > 1:
            return False
        target = max(0.0, first / self.rate - _PREROLL_SECONDS)
        timestamp = start.pts + int(target / self._audio.time_base)
        self._container.seek(timestamp, stream=self._audio)
        return True

    def _skip(self, frames, first: int, origin: int | None):
        """Drop samples before `first`; yields arrays."""
        at = None
        for frame in frames:
            samples = _to_array(frame)
            if at is None:
                position = self._position(frame)
                at = 0 if position is None or origin is None else position - origin
            kept = samples[max(0, first - at) :]
            at += len(samples)
            if len(kept):
                yield kept

    def count_frames(self) -> int:
        """Count samples by the packets' durations, without decoding."""
        packets = self._container.demux(self._audio)
        units = sum(packet.duration or 0 for packet in packets if packet.size)
        seconds = float(units * self._audio.time_base)
        if self.format == "ogg":  # the first packets of Vorbis have no duration
            seconds = max(seconds, self._stated_seconds())
        self.close()
        self._open()
        return round(seconds * self.rate)

    def close(self) -> None:
        self._container.close()


class _SndfileDecoder:
    """Ogg Opus with a single stream, or a FLAC that states its length, by libsndfile."""

    def __init__(self, stream: BinaryIO, format: str):
        import soundfile

        self._file = soundfile.SoundFile(stream)
        self._file.seekable = lambda: False  # it would seek behind each block
        self.format = format
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.frames = self._file.frames

    def decode(self, first: int) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` on."""
        if first:
            self._file.seek(min(first, self.frames))
        # Never more than the stated samples: FLAC with a tag behind them would lose sync.
        for start in range(first, self.frames, _BLOCK_FRAMES):
            count = min(_BLOCK_FRAMES, self.frames - start)
            block_SC = self._file.read(count, dtype="float32", always_2d=True)
            if len(block_SC):
                yield block_SC
            if len(block_SC) < count:
                return

    def close(self) -> None:
        self._file.close()


def _to_array(frame) -> np.ndarray:
    """Samples (S, C) of a decoded frame, in the type that the decoder gives."""
    array = frame.to_ndarray()
    return array.T if frame.format.is_planar else array.reshape(-1, len(frame.layout.channels))


def _scale(arrays: list[np.ndarray]) -> np.ndarray:
    """Join arrays of decoded samples to one of float32, full scale +-1."""
    joined = np.concatenate(arrays)
    kind = joined.dtype.str[1:]
    if kind == "f4":
        return joined
    scaled = joined.astype(np.float32) * np.float32(_SCALES[kind])
    return scaled - np.float32(1.0) if kind == "u1" else scaled


def _pass_mp3_frames(packets):
    """Pass on the frames of an MP3 without the tags between and the padding behind them.

    Raises:
      ValueError: padding in the place of frames, or a last frame that is cut.
    """
    import av

    last, has_padding = b"", False
    for packet in packets:
        if packet.size:
            data = bytes(packet)
            if not data.strip(b"\0\xff"):
                has_padding = True
                continue
            if data[:3] in (b"ID3", b"TAG", b"APE", b"LYR"):
                continue
            if has_padding:
                raise ValueError("padding between frames")
            last = data
        elif last:
            # Given more bytes than a frame can have, the parser tells how many it wants.
            parsed = av.CodecContext.create("mp3", "r").parse(last + bytes(1 << 13))
            if parsed and parsed[0].size > len(last):
                raise ValueError(f"the last frame lacks {parsed[0].size - len(last)} bytes")
        yield packet


def _gather(arrays) -> Iterator[np.ndarray]:
    """Join arrays of decoded samples to float32 blocks of at least _BLOCK_FRAMES samples."""
    waiting, count = [], 0
    for array in arrays:
        waiting.append(array)
        count += len(array)
        if count >= _BLOCK_FRAMES:
            yield _scale(waiting)
            waiting, count = [], 0
    if waiting:
        yield _scale(waiting)


def _regroup(blocks, length: int) -> Iterator[np.ndarray]:
    """Cut blocks of any lengths into blocks of `length` samples; the last may be shorter."""
    rest = None
    for block in blocks:
        rest = block if rest is None else np.concatenate([rest, block])
        whole = len(rest) // length * length
        yield from (rest[at : at + length] for at in range(0, whole, length))
        rest = rest[whole:]
    if rest is not None and len(rest):
        yield rest


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
        raise AudioError(f"{name}: has over {max_bytes} bytes, expected at most that", "too large")


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
