"""FLEURS: the same sentences read in many languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ba_jax.corpora.clips import Clip, ClipSource, speech_item, stated_float
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import SourceError, inside, read_rows, require_folder

LANGUAGE_OF = {"en_us": "en", "cmn_hans_cn": "zh"}
SPLITS = ("train", "dev", "test")
TEXTS = ("raw", "normalized")
_COLUMNS = ("id", "file", "raw", "normalized", "characters", "samples", "gender")
_RATE = 16000


@dataclasses.dataclass(frozen=True)
class Fleurs(ClipSource):
    """LANGUAGE/{train,dev,test}.tsv without a header, and LANGUAGE/audio/{train,dev,test}/*.wav
    (the archives of audio/ unpacked), or the same folders without audio/. The tables may also lie
    in metadata/LANGUAGE/.

    Columns: sentence, file, text as written, text in lower case without punctuation, its
    characters, samples at 16 kHz, FEMALE or MALE. A sentence has the same number in all languages:
    with both languages here each is the other's translation.

    Attributes:
      languages: some of en_us and cmn_hans_cn.
      splits: some of train, dev, test.
      text: "raw", as written, or "normalized".
    """

    languages: tuple[str, ...] = ("en_us", "cmn_hans_cn")
    splits: tuple[str, ...] = SPLITS
    text: str = "raw"

    name = "fleurs"
    description = "FLEURS (Conneau et al., 2022), read sentences of FLoRes-101."
    licence = "CC BY 4.0"

    def __post_init__(self):
        if self.text not in TEXTS:
            raise ValueError(f"text = {self.text!r}, expected one of {TEXTS}")
        for language in self.languages:
            if language not in LANGUAGE_OF:
                raise ValueError(f"language {language!r}, expected some of {sorted(LANGUAGE_OF)}")

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        root = require_folder(self.folder, "source.folder")
        tables = {language: self._tables(root, language) for language in self.languages}
        sentences = {
            language: {
                row[1]["id"]: row[1][self.text].strip()
                for split in SPLITS
                if split in own
                for row in read_rows(own[split], _COLUMNS)
                if not isinstance(row, Rejection)
            }
            for language, own in tables.items()
        }
        for language, own in tables.items():
            others = [sentences[other] for other in self.languages if other != language]
            for split in self.splits:
                if split not in own:
                    raise SourceError(f"{root / language}: no {split}.tsv, expected in FLEURS")
                folder = _audio_folder(root / language, split)
                for row in read_rows(own[split], _COLUMNS):
                    yield self._item(row, folder, language, split, others)

    def _item(self, row, folder: Path, language: str, split: str, others: list[dict]):
        if isinstance(row, Rejection):
            return row
        where, fields = row
        text = fields[self.text].strip()
        seconds = stated_float(fields["samples"], 1 / _RATE)
        if not text:
            return Rejection(where, "empty transcript", f"of {fields['file']}", seconds)
        try:
            path = inside(folder, fields["file"])
        except Rejected as rejected:
            return Rejection(where, rejected.reason, rejected.detail, seconds)
        translation = next((own[fields["id"]] for own in others if fields["id"] in own), "")
        clip = Clip(text=text, path=path, stated_seconds=seconds, translation=translation)
        id = f"{language}-{Path(fields['file']).stem}"
        return speech_item(id, split, where, LANGUAGE_OF[language], clip)

    def _tables(self, root: Path, language: str) -> dict[str, Path]:
        folders = (root / language, root / "metadata" / language)
        found = {}
        for split in SPLITS:
            for folder in folders:
                if split not in found and (folder / f"{split}.tsv").is_file():
                    found[split] = folder / f"{split}.tsv"
        if not found:
            raise SourceError(f"{folders[0]}: no train.tsv, dev.tsv or test.tsv, expected FLEURS")
        return found


def _audio_folder(root: Path, split: str) -> Path:
    for folder in (root / "audio" / split, root / split):
        if folder.is_dir():
            return folder
    raise SourceError(f"{root}: no folder audio/{split}; unpack audio/{split}.tar.gz there")
