"""LibriSpeech and LibriTTS: read English, a folder for each part, speaker and chapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ba_jax.corpora.clips import Clip, ClipSource, sorted_files, speech_item
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.listing import SourceError, read_lines, read_rows, require_folder

CASES = ("lower", "as_is")
TEXTS = ("normalized", "original")


def split_of(part: str) -> str:
    """A part's split: all of train-clean-100 and the like are "train", dev-clean is "dev_clean"."""
    return "train" if part.startswith("train") else part.replace("-", "_")


def _part_folders(folder: str, parts: tuple[str, ...], marks: tuple[str, ...]) -> list[Path]:
    root = require_folder(folder, "source.folder")
    if parts:
        return [require_folder(str(root / part), "a part of source.parts") for part in parts]
    prefixes = ("train-", "dev-", "test-")
    found = [p for p in root.iterdir() if p.is_dir() and p.name.startswith(prefixes)]
    if not found:
        raise SourceError(f"{root}: no folders train-*, dev-* or test-*, expected {marks[0]}")
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class LibriSpeech(ClipSource):
    """LibriSpeech/PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac, and beside them
    SPEAKER-CHAPTER.trans.txt with a line "SPEAKER-CHAPTER-0000 TRANSCRIPT" for each.

    Attributes:
      parts: names of folders, () for all that are there.
      case: of the transcripts, "lower" or "as_is": they are in capitals, without punctuation.
    """

    parts: tuple[str, ...] = ()
    case: str = "lower"

    name = "librispeech"
    description = "LibriSpeech ASR corpus (Panayotov et al., 2015), openslr.org/12."
    licence = "CC BY 4.0"

    def __post_init__(self):
        if self.case not in CASES:
            raise ValueError(f"case = {self.case!r}, expected one of {CASES}")

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        for part in _part_folders(self.folder, self.parts, ("LibriSpeech/train-clean-100/...",)):
            audio = {path.stem: path for path in sorted_files([part], "*.flac")}
            for transcripts in sorted_files([part], "*.trans.txt"):
                for line in read_lines(transcripts):
                    if isinstance(line, Rejection):
                        yield line
                        continue
                    where, text = line
                    id, _, text = text.partition(" ")
                    if not id:
                        continue
                    path = audio.get(id)
                    if path is None or path.parent != transcripts.parent:
                        detail = f"{transcripts.parent / id}.flac: no such file"
                        yield Rejection(where, "missing file", detail)
                        continue
                    del audio[id]
                    text = text.strip()
                    if not text:
                        yield Rejection(where, "empty transcript", f"of {id}")
                        continue
                    if self.case == "lower":
                        text = text.lower()
                    clip = Clip(text=text, path=str(path), speaker=id.split("-")[0])
                    yield speech_item(id, split_of(part.name), where, "en", clip)
            for id, path in audio.items():
                yield Rejection(str(path), "no transcript", f"{id} is in no .trans.txt beside it")


@dataclasses.dataclass(frozen=True)
class LibriTTS(ClipSource):
    """LibriTTS/PART/SPEAKER/CHAPTER/SPEAKER_CHAPTER_000000_000000.wav (24 kHz), each with a
    .normalized.txt and an .original.txt; SPEAKER_CHAPTER.trans.tsv has the three as columns.
    LibriTTS-R has the same layout.

    Attributes:
      parts: names of folders, () for all that are there.
      text: "normalized" (numbers and abbreviations written out) or "original".
    """

    parts: tuple[str, ...] = ()
    text: str = "normalized"

    name = "libritts"
    description = "LibriTTS corpus (Zen et al., 2019), openslr.org/60."
    licence = "CC BY 4.0"

    def __post_init__(self):
        if self.text not in TEXTS:
            raise ValueError(f"text = {self.text!r}, expected one of {TEXTS}")

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        for part in _part_folders(self.folder, self.parts, ("LibriTTS/train-clean-100/...",)):
            audio = {path.stem: path for path in sorted_files([part], "*.wav")}
            tables = sorted_files([part], "*.trans.tsv")
            for table in tables:
                for row in read_rows(table, ("id", "original", "normalized")):
                    if isinstance(row, Rejection):
                        yield row
                        continue
                    where, fields = row
                    path = audio.pop(fields["id"], None)
                    if path is None:
                        detail = f"{table.parent / fields['id']}.wav: no such file"
                        yield Rejection(where, "missing file", detail)
                        continue
                    yield self._item(part, where, path, fields[self.text])
            # A release without the tables has the text beside each file.
            for path in audio.values():
                text_file = path.with_suffix(f".{self.text}.txt")
                if not text_file.is_file():
                    yield Rejection(str(path), "no transcript", f"{text_file}: no such file")
                    continue
                lines = list(read_lines(text_file))
                bad = [line for line in lines if isinstance(line, Rejection)]
                if bad:
                    yield bad[0]
                    continue
                where = f"{text_file}:1"
                yield self._item(part, where, path, " ".join(text for _, text in lines))

    def _item(self, part: Path, where: str, path: Path, text: str) -> Item | Rejection:
        text = text.strip()
        if not text:
            return Rejection(where, "empty transcript", f"of {path.stem}")
        clip = Clip(text=text, path=str(path), speaker=path.stem.split("_")[0])
        return speech_item(path.stem, split_of(part.name), where, "en", clip)
