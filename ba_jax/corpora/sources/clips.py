"""Base of all sources whose speech lies in audio files, and the reading of those files.

A source lists `Recipe`s; workers read, check and encode the files that they name. A new corpus is a
subclass of `ClipSource` with an `items` method that lists its files and transcripts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ba_jax.audio import AudioError, AudioReader, read_audio
from ba_jax.config import LocalPath, check_choices
from ba_jax.corpora.encode import CODINGS, encode_speech
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, Source
from ba_jax.data.record import Part, Record, Word

LENGTH_SLACK = (0.05, 0.25)
"""Tolerated error of a stated length: a share of it, plus seconds."""
_CODE_RATE = 12.5  # frames of codes a second


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Which speech is accepted and how it is stored.

    Attributes:
      coding: "opus" or "flac".
      min_seconds, max_seconds: length of a clip, both inclusive. Examples of up to 30 s pass the
        encoder at once; longer ones are cut into chunks, so ten minutes are fine.
      max_bytes: largest size of a file, and of its decoded samples (4 bytes each).
    """

    coding: str = "opus"
    min_seconds: float = 0.1
    max_seconds: float = 600.0
    max_bytes: int = 1 << 28

    def __post_init__(self):
        check_choices(self, coding=CODINGS)
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValueError(
                f"min_seconds = {self.min_seconds}, max_seconds = {self.max_seconds}: "
                "expected 0 <= min < max"
            )


@dataclasses.dataclass(frozen=True)
class Clip:
    """A part of a future record. Fields as in `record.Part`, except:

    Attributes:
      path: path of the audio file, or "".
      start, end: seconds of the wanted stretch; None for the file's start and end.
      stated_seconds: the whole file's length according to the corpus, 0 if not stated.
      stated_rate: Hz according to the corpus, 0 if not stated.
      codes_path: path of codes (N, Q) in a NumPy file, or "".
    """

    text: str = ""
    path: str = ""
    start: float | None = None
    end: float | None = None
    stated_seconds: float = 0.0
    stated_rate: int = 0
    codes_path: str = ""
    codes_seconds: float = 0.0
    translation: str = ""
    role: str = ""
    speaker: str = ""
    words: tuple[Word, ...] = ()
    loss: bool = True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A future record: fields as in `record.Record`."""

    id: str
    kind: str
    language: str
    clips: tuple[Clip, ...]


@dataclasses.dataclass(frozen=True)
class ClipSource(Source):
    """Base of sources that list audio files in the folder of a corpus.

    Subclasses set `name`, `description` and `licence`, and list items whose payload is a tuple of
    recipes.
    """

    folder: LocalPath = ""
    audio: AudioConfig = AudioConfig()

    def records(self, item: Item) -> Iterator[Record | Rejection]:
        """Make the records of an item's recipes, see `Source.records`."""
        for recipe in item.payload:
            try:
                parts = tuple(make_part(clip, self.audio) for clip in recipe.clips)
            except Rejected as rejected:
                if len(item.payload) == 1:
                    raise
                yield rejected.at(f"{item.where} {recipe.id}")
                continue
            yield Record(recipe.id, recipe.kind, recipe.language, parts, self.name)


def speech_item(
    id: str, split: str, where: str, language: str, clip: Clip, seconds: float = 0.0
) -> Item:
    """The item of one utterance; `seconds` if its length is known but not to be checked."""
    if not clip.text:
        raise Rejected("empty transcript", f"of {id}", seconds or clip.stated_seconds)
    recipe = Recipe(id, "speech", language, (clip,))
    return Item(id, split, where, (recipe,), seconds or clip.stated_seconds)


def reject_unlisted(recordings: Mapping[str, Path], problem: str) -> Iterator[Rejection]:
    """Count recordings, name -> path, that no line of the corpus mentions."""
    for name, path in recordings.items():
        yield Rejection(str(path), "no transcript", f"{name} {problem}")


def make_part(clip: Clip, config: AudioConfig) -> Part:
    """Read, check and encode the files of a clip."""
    audio, seconds, codes_NQ = b"", 0.0, None
    if clip.path:
        wave_S, rate = read_clip(clip, config)
        seconds = len(wave_S) / rate
        if seconds < config.min_seconds:
            raise Rejected(
                "too short",
                f"{clip.path}: {seconds:.3f} s, expected at least {config.min_seconds} s",
                seconds,
            )
        audio, seconds = encode_speech(wave_S, rate, config.coding)
    if clip.codes_path:
        codes_NQ = read_codes(clip.codes_path)
        seconds = seconds or clip.codes_seconds or len(codes_NQ) / _CODE_RATE
    for word in clip.words:
        if not 0 <= word.start <= word.end <= seconds + LENGTH_SLACK[1]:
            raise Rejected("bad word timings", f"{word}, expected within {seconds:.2f} s")
    return Part(
        text=clip.text,
        audio=audio,
        codes_NQ=codes_NQ,
        seconds=seconds,
        translation=clip.translation,
        role=clip.role,
        speaker=clip.speaker,
        words=clip.words,
        loss=clip.loss,
    )


def read_codes(path: str) -> np.ndarray:
    """Audio codes (N, Q) from a .npy file; nothing in it is executed."""
    try:
        # Mapped, so that a header that claims a large array allocates nothing.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Rejected("bad codes", f"{path}: no NumPy array ({error})") from None
    is_array = isinstance(mapped, np.ndarray)
    if not is_array or mapped.ndim != 2 or not mapped.size or mapped.dtype.kind not in "iu":
        content = f"{mapped.dtype}{mapped.shape}" if is_array else type(mapped).__name__
        raise Rejected("bad codes", f"{path}: {content}, expected integers (N >= 1, codebooks)")
    if mapped.min() < 0 or mapped.max() > np.iinfo(np.uint16).max:
        content = f"from {mapped.min()} to {mapped.max()}"
        raise Rejected("bad codes", f"{path}: {content}, expected 0 to 65535")
    return np.array(mapped)


def read_clip(clip: Clip, config: AudioConfig) -> tuple[np.ndarray, int]:
    """The mono wave (S,) of a clip and its rate in Hz."""
    try:
        if clip.start is None and clip.end is None:
            wave_S, rate = read_audio(
                clip.path, mono=True, max_seconds=config.max_seconds, max_bytes=config.max_bytes
            )
            _check_stated(clip, len(wave_S) / rate, rate)
            return wave_S, rate
        return _read_stretch(clip, config)
    except AudioError as error:
        raise Rejected(error.reason, str(error)) from None


def _check_stated(clip: Clip, seconds: float, rate: int) -> None:
    share, least = LENGTH_SLACK
    stated = clip.stated_seconds
    if clip.stated_rate and clip.stated_rate != rate:
        detail = f"{clip.path}: {rate} Hz, expected {clip.stated_rate} Hz"
    elif stated and abs(seconds - stated) > share * stated + least:
        detail = f"{clip.path}: {seconds:.2f} s at {rate} Hz, expected {stated:.2f} s"
    else:
        return
    raise Rejected("header disagrees with the corpus", detail, seconds)


def _read_stretch(clip: Clip, config: AudioConfig) -> tuple[np.ndarray, int]:
    """Read a stretch of a file that may be hours long, without decoding the audio before it."""
    path, start = clip.path, clip.start or 0.0
    if start < 0 or (clip.end is not None and clip.end <= start):
        raise Rejected("bad times", f"{path}: from {start} s to {clip.end} s")
    with AudioReader(path) as audio:
        rate, length = audio.rate, audio.seconds
        _check_stated(clip, length, rate)
        end = length if clip.end is None else clip.end
        # Corpora round times: an end slightly past the file's end is clipped to it.
        if start >= length or end > length + LENGTH_SLACK[1]:
            detail = f"{path}: from {start} s to {end} s, expected within {length:.2f} s"
            raise Rejected("bad times", detail)
        seconds = end - start
        if seconds > config.max_seconds:
            detail = f"{path}: {seconds:.2f} s, expected at most {config.max_seconds} s"
            raise Rejected("too long", detail, seconds)
        first = round(start * rate)
        count = max(1, round(end * rate) - first)
        if count * 4 > config.max_bytes:
            detail = f"{path}: {count * 4} bytes of samples, expected at most {config.max_bytes}"
            raise Rejected("too large", detail, seconds)
        return audio.stretch(first, None if clip.end is None else count), rate
