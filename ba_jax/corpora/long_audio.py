"""Recordings of any length, read in blocks.

Whatever `ba_jax.audio.read_audio` reads, under the same checks, but with the memory of one block.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator

import numpy as np
import soundfile

from ba_jax.audio import AudioError, containers
from ba_jax.audio.io import MAX_AMPLITUDE, MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE


class LongAudio:
    """An open recording; a context manager.

    Attributes:
      rate: Hz.
      frames: samples a channel, as the header states them: exact but where it states none (a FLAC
        stream: the largest integer) or an estimate (MP3 without an index).
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a WAV, FLAC, Ogg Vorbis, Ogg Opus or MP3 file.

        Raises:
          AudioError: no such file, not a regular file, empty, none of these formats, cut short,
            more than 2 channels, or a rate outside 4 to 192 kHz.
        """
        self._name = os.fspath(path)
        self._file = None
        try:
            # Asked before opening: opening a pipe would wait for its writer.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise AudioError(f"{self._name}: is not a regular file, expected an audio file")
            self._stream = open(path, "rb")
        except (OSError, ValueError) as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"{self._name}: cannot be opened ({error}), expected a file") from None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        name, stream = self._name, self._stream
        size = os.fstat(stream.fileno()).st_size
        if not size:
            raise AudioError(f"{name}: is empty (0 bytes), expected an audio file")
        self._kind = kind = containers.find_kind(stream)
        if kind is None:
            stream.seek(0)
            raise AudioError(
                f"{name}: starts with {stream.read(8)!r}, expected a WAV, FLAC, Ogg or MP3 file"
            )
        if problem := containers.find_truncation(stream, kind, size):
            raise AudioError(f"{name}: {kind} file cut short: {problem}, expected a whole file")
        if kind == "mp3" and (found := containers.make_mp3_index(stream, size)):
            stream = _Spliced(stream, *found)
        stream.seek(0)
        try:
            self._file = _ForwardReader(stream)
        except soundfile.SoundFileError as error:
            raise AudioError(f"{name}: {kind} file that cannot be decoded ({error})") from None
        self.rate, self.frames = self._file.samplerate, self._file.frames
        if not MIN_SAMPLE_RATE <= self.rate <= MAX_SAMPLE_RATE:
            raise AudioError(
                f"{name}: sample rate of the header is {self.rate} Hz, expected "
                f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
            )
        if not 1 <= self._file.channels <= MAX_CHANNELS:
            raise AudioError(f"{name}: has {self._file.channels} channels, expected 1 or 2")

    def blocks(self, seconds: float) -> Iterator[np.ndarray]:
        """Mono waves (S,) that follow each other, float32; all but the last of one length.

        Raises:
          AudioError: damaged or cut short there, no samples, or a sample that is NaN, infinite or
            beyond +-2**31.
        """
        length, count = max(1, int(seconds * self.rate)), 0
        while True:
            try:
                block_SC = self._file.read(length, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise AudioError(
                    f"{self._name}: {self._kind} file that cannot be decoded at "
                    f"{count / self.rate:.1f} s ({error}): cut short or damaged"
                ) from None
            if not len(block_SC):
                break
            self._check_samples(block_SC, count)
            count += len(block_SC)
            yield block_SC.mean(axis=1)
        # libsndfile gives the largest integer where a FLAC header states no length; the length in
        # an MP3 or Ogg header may be an estimate.
        if self._kind in ("wav", "flac") and count < self.frames < 1 << 62:
            raise AudioError(
                f"{self._name}: cut short: {count} samples decoded, expected {self.frames}"
            )
        if not count:
            raise AudioError(f"{self._name}: holds 0 samples, expected at least 1")

    def stretch(self, first: int, count: int) -> np.ndarray:
        """The mono wave (S,) of `count` samples from `first` on, float32; what comes before is
        skipped, not decoded, and the same samples come as without skipping (Opus: within 2e-3).

        Raises:
          AudioError: damaged or cut short there, or a sample as in `blocks`.
        """
        try:
            self._file.seek(first)
            wave_SC = self._file.read(count, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{self._name}: {self._kind} file that cannot be decoded at "
                f"{first / self.rate:.1f} s ({error}): cut short or damaged"
            ) from None
        if len(wave_SC) < count:
            raise AudioError(
                f"{self._name}: cut short: {len(wave_SC)} samples decoded from {first} on, "
                f"expected {count}"
            )
        self._check_samples(wave_SC, first)
        return wave_SC.mean(axis=1)

    def _check_samples(self, wave_SC: np.ndarray, offset: int) -> None:
        is_sane = np.abs(wave_SC) <= MAX_AMPLITUDE  # NaN fails too
        if not is_sane.all():
            sample = int(np.argwhere(~is_sane)[0, 0])
            raise AudioError(
                f"{self._name}: sample {offset + sample} is {wave_SC[sample]}, expected a "
                "finite number, about -1 to 1"
            )

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
        self._stream.close()

    def __enter__(self) -> LongAudio:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _ForwardReader(soundfile.SoundFile):
    """Reads without seeking after each block, which fails in a FLAC that states no length."""

    def seekable(self) -> bool:
        return False


class _Spliced(io.RawIOBase):
    """Some bytes, then a slice of a file: what `make_mp3_index` gives, without a copy of it."""

    def __init__(self, stream, head: bytes, start: int, end: int):
        self._stream, self._head = stream, head
        self._start, self._length = start, len(head) + end - start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._length - self._at))
        data = self._head[self._at : self._at + wanted]
        if len(data) < wanted:
            self._stream.seek(self._start + self._at + len(data) - len(self._head))
            data += self._stream.read(wanted - len(data))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
