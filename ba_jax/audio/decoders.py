"""Decoders of audio files: PyAV (ffmpeg), and libsndfile for some codings; `audio.read` chooses."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ba_jax.audio.complete import skip_tags

BLOCK_FRAMES = 1 << 16
"""Samples decoded at a time."""
_PREROLL_SECONDS = 1.0  # decoded and dropped before a stretch, for codecs with a memory
# Demuxers that may open a file; others would follow playlists to other files, or read pictures.
_FORMATS = "wav,w64,flac,ogg,mp3,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
# A frame; the one of a header that a joined file begins with.
_FRAME = re.compile(rb"\xff[^\xff](?!(?:.{11}|.{19}|.{34})(?:Xing|Info))", re.DOTALL)
_JOINED = re.compile(rb"\xff[^\xff](?:.{11}|.{19}|.{34})(?:Xing|Info)", re.DOTALL)
_SKIP_MANUAL = 1 << 29  # flag of ffmpeg: padding is marked, not cut
_FLAC_HEADER = b"fLaC\0\0\0\x22"
_READ_AHEAD = 1 << 14  # bytes; libFLAC reads 8192 at a time
# Samples of an Ogg Vorbis page at most: 255 packets, each of half a block. Behind a seek into the
# last page, whose end is cut, libvorbis is off by what it cut.
_VORBIS_PAGE = 255 * 4096
_OPUS_LEAD = 0.1  # seconds in front that an encoder adds, at most
_SCALES = {"u1": 2.0**-7, "i2": 2.0**-15, "i4": 2.0**-31, "f8": 1.0}  # of decoded samples


class FfmpegDecoder:
    """The single audio stream of a file, by PyAV."""

    def __init__(self, stream: BinaryIO, has_end: bool):
        self._stream, self._has_end = stream, has_end
        self._open()
        self.format = self._container.format.name.split(",")[0]
        self.rate = self._audio.sample_rate
        self.channels = self._audio.codec_context.channels
        self.coding = self._audio.codec_context.name
        self._samples_per_tick = float(self._audio.time_base * self.rate)
        is_pcm = self.coding.startswith("pcm_")
        is_mp3 = self.coding.startswith("mp3") and self.format in ("mp3", "wav")
        self._is_bare = is_mp3 or self.format in ("aac", "flac")
        # Timestamps of the others are estimates, or start again (chained Ogg).
        self._can_seek = is_pcm or self.format in ("mov", "matroska", "ogg" if has_end else "")
        self.frames = None
        if has_end and (is_pcm or self.format not in ("wav", "mp3", "aac")):
            self.frames = round(self._stated_seconds() * self.rate) or None

    def _open(self) -> None:
        import av

        self._stream.seek(0)
        options = {"format_whitelist": _FORMATS}
        if self._stream.read(4) in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
            # ffmpeg would otherwise look for other codings inside of PCM, 40 times as long.
            options["probesize"] = "4096"
            options["ignore_length"] = "0" if self._has_end else "1"
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
        if self._container.streams.video:
            return 0.0  # what is stated is the longer of the two
        start = (self._audio.start_time or 0) * (self._audio.time_base or 0)
        return (self._container.duration or 0) / 1e6 - max(0.0, float(start))

    def decode(self, first: int) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` on."""
        if self._is_bare:
            return _gather(self._decode_bare(first))
        frames, at = self._decode_packets(self._packets()), 0
        if first and self._can_seek and (start := next(frames, None)) is not None:
            frames = itertools.chain([start], frames)
            if self._seek(first, start):
                frames = self._decode_packets(self._packets())
                # Positions count from the first frame, whatever its timestamp is.
                origin, start = start.pts, next(frames, start)
                at = round((start.pts - origin) * start.time_base * self.rate)
                if at > first:
                    raise ValueError(f"no frame between samples {first} and {at}")
                frames = itertools.chain([start], frames)
        return _gather(_drop(first - at, map(_to_array, frames)))

    def _packets(self):
        """Yield the packets."""
        packets, expected = self._container.demux(self._audio), 0
        if self._is_bare and self.format != "aac":
            packets = _pass_frames(packets)
        for packet in packets:
            # A WAV file of unknown size ends inside a packet.
            if packet.is_corrupt and self.format != "wav":
                raise ValueError("a damaged packet")
            if self.format == "flac" and packet.size:
                if packet.pts != expected:
                    raise ValueError(f"sample {packet.pts} follows, expected {expected}")
                expected += packet.duration
            yield packet

    def _decode_packets(self, packets):
        """Yield decoded frames, of one rate and one number of channels."""
        if self._is_bare or (self.format, self.coding) == ("ogg", "vorbis"):
            # Else ffmpeg cuts at the end that a Xing frame states, in the midst of joined files,
            # and too much of short Vorbis.
            self._audio.codec_context.flags2 |= _SKIP_MANUAL
        for packet in packets:
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

    def _decode_bare(self, first: int) -> Iterator[np.ndarray]:
        """Yield arrays from sample `first` on of a format of frames and nothing else.

        Nothing but the frames before one tells its position: they are counted, not decoded.
        """
        packets = self._packets()
        at = -self._delay
        for packet in packets:
            count = self._count_samples(packet)
            if at + count > first - _PREROLL_SECONDS * self.rate or not packet.size:
                packets = itertools.chain([packet], packets)
                break
            at += count
        return _drop(first - at, _trim_end(self._decode_packets(packets)))

    @property
    def _delay(self) -> int:
        """Samples in front that the encoder of an MP3 added."""
        return round((self._audio.start_time or 0) * self._samples_per_tick)

    def _count_samples(self, packet) -> int:
        return round((packet.duration or 0) * self._samples_per_tick)

    def count_frames(self) -> int:
        """Count samples: by packets where each holds a frame, else by decoding."""
        if self._is_bare:
            count = sum(map(self._count_samples, self._packets())) - self._delay
        else:
            count = sum(map(len, self.decode(0)))
        self.close()
        self._open()
        return count

    def close(self) -> None:
        self._container.close()


class SndfileDecoder:
    """A file of a coding that libsndfile decodes better, or alone, by libsndfile."""

    def __init__(self, stream: BinaryIO, format: str, ogg_end: int = 0):
        import soundfile

        self._stream, self._file = stream, soundfile.SoundFile(stream)
        self._can_seek = self._file.seekable()
        self._file.seekable = lambda: False  # it would seek behind each block
        self.format = format
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.frames = self._file.frames
        if self._file.subtype == "OPUS" and ogg_end / 48000 > self.frames / self.rate + _OPUS_LEAD:
            self._can_seek = False  # libsndfile would count from the first page's position

    def decode(self, first: int) -> Iterator[np.ndarray]:
        """Yield blocks (S, C) of float32 samples from sample `first` on."""
        start = min(first, self.frames) if self._can_seek else 0
        if self._file.subtype == "VORBIS":
            start = min(start, max(0, self.frames - _VORBIS_PAGE))
        return _drop(first - start, self._decode(start))

    def _decode(self, first: int) -> Iterator[np.ndarray]:
        if first:
            self._file.seek(first)
        # Never more than the stated samples: FLAC with a tag behind them would lose sync.
        for start in range(first, self.frames, BLOCK_FRAMES):
            count = min(BLOCK_FRAMES, self.frames - start)
            block_SC = self._file.read(count, dtype="float32", always_2d=True)
            if len(block_SC):
                yield block_SC
            if len(block_SC) < count:
                return
        self._stream.seek(max(4, self._stream.tell() - _READ_AHEAD))
        if self.format == "flac" and _FLAC_HEADER in self._stream.read(1 << 24):
            raise ValueError("a second FLAC file behind the first")

    def close(self) -> None:
        self._file.close()


def _to_array(frame) -> np.ndarray:
    """Samples (S, C) of a decoded frame, in the type that the decoder gives."""
    array = frame.to_ndarray()
    return array.T if frame.format.is_planar else array.reshape(-1, len(frame.layout.channels))


def _drop(count: int, arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield arrays without the first `count` samples."""
    for array in arrays:
        if count < len(array):
            yield array[max(0, count) :]
        count -= len(array)


def _trim_end(frames) -> Iterator[np.ndarray]:
    """Yield the samples of frames without the padding that the last frames are marked to hold."""
    held = []
    for frame in frames:
        marks = frame.side_data.get("SKIP_SAMPLES")
        padding = int.from_bytes(bytes(marks)[4:8], "little") if marks else 0
        if not padding:
            yield from (array for array, _ in held)
            held = []
            yield _to_array(frame)
        else:
            held.append((_to_array(frame), padding))
    yield from (array[: max(0, len(array) - padding)] for array, padding in held)


def _scale(arrays: list[np.ndarray]) -> np.ndarray:
    """Join arrays of decoded samples to one of float32, full scale +-1."""
    joined = np.concatenate(arrays)
    kind = joined.dtype.str[1:]
    if kind == "f4":
        return joined
    with np.errstate(over="ignore"):  # to infinity, which is refused
        scaled = joined.astype(np.float32) * np.float32(_SCALES[kind])
    return scaled - np.float32(1.0) if kind == "u1" else scaled


def _pass_frames(packets):
    """Pass on the frames of an MP3 or FLAC without the tags between and the padding behind them.

    Raises:
      ValueError: padding in the place of frames, or a last frame of an MP3 that is cut.
    """
    import av

    last, inside, has_padding = None, 0, False
    for packet in packets:
        if packet.size and (inside or has_padding or not _FRAME.match(packet)):
            data = bytes(packet)
            # The parser hands out a tag with the frame behind it, or in parts.
            start = inside or skip_tags(io.BytesIO(data), 0)
            has_padding |= not inside and start > 0 and data[:1] in (b"\0", b"\xff")
            inside = max(0, start - len(data))
            if start >= len(data):
                continue
            if has_padding:
                raise ValueError("padding between frames")
            if _JOINED.match(data, start):
                continue  # no sound
            if start:
                frame = av.Packet(data[start:])
                frame.stream, frame.time_base = packet.stream, packet.time_base
                frame.pts, frame.duration = packet.pts, packet.duration
                packet = frame
        if packet.size:
            last = packet
        elif last is not None and last.stream.codec_context.name.startswith("mp3"):
            # Given more bytes than a frame can have, the parser tells how many it wants.
            parsed = av.CodecContext.create("mp3", "r").parse(bytes(last) + bytes(1 << 13))
            if parsed and parsed[0].size > last.size:
                raise ValueError(f"the last frame lacks {parsed[0].size - last.size} bytes")
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
