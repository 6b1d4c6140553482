"""Decoders of audio files: PyAV (ffmpeg), and libsndfile for two codings; `audio.read` chooses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

BLOCK_FRAMES = 1 << 16
"""Samples decoded at a time."""
_PREROLL_SECONDS = 1.0  # decoded and dropped before a stretch, for codecs with a memory
# Demuxers that may open a file; others would follow playlists to other files, or read pictures.
_FORMATS = "wav,w64,flac,ogg,mp3,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_SCALES = {"u1": 2.0**-7, "i2": 2.0**-15, "i4": 2.0**-31, "f8": 1.0}  # of decoded samples


class FfmpegDecoder:
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
        if self._audio.codec_context is None:
            raise ValueError("a coding without a decoder")
        self._audio.codec_context.thread_count = 1  # loaders run several processes

    def _stated_seconds(self) -> float:
        if self._audio.duration:
            return float(self._audio.duration * self._audio.time_base)
        return (self._container.duration or 0) / 1e6

    def decode(self, first: int) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` on."""
        frames = self._frames()
        if not first:
            yield from _gather(map(_to_array, frames))
        elif (start := next(frames, None)) is not None:
            at = 0
            if self._seek(first, start):
                frames = self._frames()
                # Positions count from the first frame, whatever its timestamp is.
                origin, start = start.pts, next(frames, start)
                at = round((start.pts - origin) * start.time_base * self.rate)
                if at > first:
                    raise ValueError(f"no frame between samples {first} and {at}")
            yield from _gather(_drop(first - at, itertools.chain([start], frames)))

    def _frames(self):
        """Yield decoded frames, of one rate and one number of channels."""
        packets = self._container.demux(self._audio)
        for packet in _pass_mp3_frames(packets) if self.format == "mp3" else packets:
            # A WAV file of unknown size ends inside a packet.
            if packet.is_corrupt and self.format != "wav":
                raise ValueError("a damaged packet")
            for frame in packet.decode():
                channels = len(frame.layout.channels)
                if (frame.sample_rate, channels) != (self.rate, self.channels):
                    raise ValueError(
                        f"{frame.sample_rate} Hz and {channels} channels after {self.rate} Hz and "
                        f"{self.channels} channels"
                    )
                yield frame

    def _seek(self, first: int, start) -> bool:
        """Move to about a second before a sample; False if timestamps are too coarse for it."""
        if start.pts is None or self._audio.time_base * self.rate > 1:
            return False
        target = max(0.0, first / self.rate - _PREROLL_SECONDS)
        timestamp = start.pts + int(target / self._audio.time_base)
        self._container.seek(timestamp, stream=self._audio)
        return True

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


class SndfileDecoder:
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
        for start in range(first, self.frames, BLOCK_FRAMES):
            count = min(BLOCK_FRAMES, self.frames - start)
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


def _drop(count: int, frames) -> Iterator[np.ndarray]:
    """Yield the samples of frames without the first `count`."""
    for frame in frames:
        array = _to_array(frame)
        if count < len(array):
            yield array[max(0, count) :]
        count -= len(array)


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
    """Join arrays of decoded samples to float32 blocks of at least BLOCK_FRAMES samples."""
    waiting, count = [], 0
    for array in arrays:
        waiting.append(array)
        count += len(array)
        if count >= BLOCK_FRAMES:
            yield _scale(waiting)
            waiting, count = [], 0
    if waiting:
        yield _scale(waiting)
