"""LibriSpeech, LibriTTS and LJ Speech: English read for LibriVox."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from ba_jax.config import check_choices
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.clips import Clip, ClipSource, reject_unlisted, speech_item
from ba_jax.corpora.sources.listing import (
    clean_text,
    find_files,
    find_inside,
    find_recordings,
    list_items,
    read_lines,
    read_rows,
    require_file,
    require_folder,
)
from ba_jax.data.record import RecordError, check_name


@dataclasses.dataclass(frozen=True)
class _LibriSource(ClipSource):
    """Both layouts: folders of `parts`, () for all that exist; splits are named after them."""

    parts: tuple[str, ...] = ()

    _suffix = ""

    def items(self) -> Iterator[Item | Rejection]:
        """List the utterances of each part."""
        root = require_folder(self.folder, "source.folder")
        if self.parts:
            parts = [require_folder(root / part, "a part of source.parts") for part in self.parts]
        else:
            parts = sorted(
                path
                for path in root.iterdir()
                if path.is_dir() and path.name.startswith(("train-", "dev-", "test-"))
            )
        if not parts:
            layout = f"{type(self).__name__}/train-clean-100/..."
            raise SourceError(f"{root}: no folders train-*, dev-* or test-*, expected {layout}")
        for part in parts:
            split = "train" if part.name.startswith("train") else part.name.replace("-", "_")
            try:
                check_name(split, "split")
            except RecordError as error:
                raise SourceError(f"{part}: {error}") from None
            recordings, doubles = find_recordings([part], self._suffix)
            yield from doubles
            yield from self._list_part(part, split, recordings)

    def _list_part(
        self, part: Path, split: str, recordings: dict[str, Path]
    ) -> Iterator[Item | Rejection]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LibriSpeech(_LibriSource):
    """LibriSpeech/PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac, and beside them
    SPEAKER-CHAPTER.trans.txt with a line "SPEAKER-CHAPTER-0000 TRANSCRIPT" for each.

    Attributes:
      case: case of the transcripts, "lower" or "as_is": they are in capitals, without punctuation.
    """

    case: str = "lower"

    name = "librispeech"
    description = "LibriSpeech ASR corpus (Panayotov et al., 2015), openslr.org/12."
    licence = "CC BY 4.0"
    _suffix = ".flac"

    def __post_init__(self):
        check_choices(self, case=("lower", "as_is"))

    def _list_part(self, part, split, recordings):
        unlisted = dict(recordings)

        def make_item(where: str, line: str) -> Item | None:
            if not line.strip():
                return None
            id, *rest = line.split(maxsplit=1)
            folder = Path(where).parent
            if id not in recordings or recordings[id].parent != folder:
                raise Rejected("missing file", f"{folder / id}.flac: no such file")
            unlisted.pop(id, None)
            text = clean_text("".join(rest))
            text = text.lower() if self.case == "lower" else text
            clip = Clip(text=text, path=str(recordings[id]), speaker=id.split("-")[0])
            return speech_item(id, split, where, "en", clip)

        for transcripts in find_files(part, ".trans.txt"):
            yield from list_items(read_lines(transcripts), make_item)
        yield from reject_unlisted(unlisted, "is in no .trans.txt beside it")


@dataclasses.dataclass(frozen=True)
class LibriTTS(_LibriSource):
    """LibriTTS/PART/SPEAKER/CHAPTER/SPEAKER_CHAPTER_000000_000000.wav (24 kHz), each with a
    .normalized.txt and an .original.txt; SPEAKER_CHAPTER.trans.tsv has the three as columns.
    LibriTTS-R has the same layout.

    Attributes:
      text: "normalized" (numbers and abbreviations written out) or "original".
    """

    text: str = "normalized"

    name = "libritts"
    description = "LibriTTS corpus (Zen et al., 2019), openslr.org/60."
    licence = "CC BY 4.0"
    _suffix = ".wav"

    def __post_init__(self):
        check_choices(self, text=("normalized", "original"))

    def _list_part(self, part, split, recordings):
        unlisted = dict(recordings)

        def make_item(where: str, path: Path, text: str) -> Item:
            clip = Clip(text=clean_text(text), path=str(path), speaker=path.stem.split("_")[0])
            return speech_item(path.stem, split, where, "en", clip)

        def make_row_item(where: str, fields: Mapping[str, str]) -> Item:
            path = recordings.get(fields["id"])
            if path is None:
                wav = Path(where).parent / f"{fields['id']}.wav"
                raise Rejected("missing file", f"{wav}: no such file")
            unlisted.pop(fields["id"], None)
            return make_item(where, path, fields[self.text])

        for table in find_files(part, ".trans.tsv"):
            rows = read_rows(table, ("id", self.text), columns=("id", "original", "normalized"))
            yield from list_items(rows, make_row_item)
        # A release without the tables has the text beside each file.
        for path in unlisted.values():
            try:
                text_file = find_inside(path.parent, f"{path.stem}.{self.text}.txt")
            except Rejected as rejected:
                yield Rejection(str(path), "no transcript", rejected.detail)
                continue
            lines = list(read_lines(Path(text_file)))
            bad = [line for line in lines if isinstance(line, Rejection)]
            if bad:
                yield bad[0]
                continue
            where = f"{text_file}:1"
            try:
                yield make_item(where, path, " ".join(text for _, text in lines))
            except Rejected as rejected:
                yield rejected.at(where)


@dataclasses.dataclass(frozen=True)
class LJSpeech(ClipSource):
    """LJSpeech-1.1/metadata.csv with lines "LJ001-0001|original|normalized", and wavs/ID.wav.

    `text` is "normalized" (numbers and abbreviations written out) or "original".
    """

    text: str = "normalized"

    name = "ljspeech"
    description = "The LJ Speech Dataset 1.1 (Ito and Johnson, 2017)."
    licence = "public domain"

    def __post_init__(self):
        check_choices(self, text=("normalized", "original"))

    def items(self) -> Iterator[Item | Rejection]:
        """List the utterances."""
        root = require_folder(self.folder, "source.folder")
        table = require_file(root / "metadata.csv", "LJSpeech-1.1/")
        recordings, doubles = find_recordings([require_folder(root / "wavs", "wavs")], ".wav")
        yield from doubles

        def make_item(where: str, fields: Mapping[str, str]) -> Item:
            path = find_inside(root / "wavs", f"{fields['id']}.wav")
            recordings.pop(fields["id"], None)
            clip = Clip(text=clean_text(fields[self.text]), path=path, speaker="LJ")
            return speech_item(fields["id"], "train", where, "en", clip)

        columns = ("id", "original", "normalized")
        rows = read_rows(table, ("id", self.text), columns=columns, separator="|")
        yield from list_items(rows, make_item)
        yield from reject_unlisted(recordings, f"is not in {table}")
