"""FLEURS: the same sentences read in many languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from ba_jax.config import check_choices
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.clips import Clip, ClipSource, speech_item
from ba_jax.corpora.sources.listing import (
    clean_text,
    find_inside,
    list_items,
    parse_seconds,
    read_rows,
    require_folder,
)
from ba_jax.data.record import check_language

LANGUAGE_OF = {"cmn_hans_cn": "zh", "yue_hant_hk": "yue"}
"""Folder -> its language; others begin with it ("en_us")."""
SPLITS = ("train", "dev", "test")
_TEXTS = {"raw": "raw_transcription", "normalized": "transcription"}
_COLUMNS = ("id", "file_name", *_TEXTS.values(), "characters", "num_samples", "gender")
_RATE = 16000


@dataclasses.dataclass(frozen=True)
class Fleurs(ClipSource):
    """LANGUAGE/{train,dev,test}.tsv without a header, and LANGUAGE/audio/{train,dev,test}/*.wav
    (the archives of audio/ unpacked), or the same folders without audio/. The tables may also lie
    in metadata/LANGUAGE/.

    Columns: sentence, file, text as written, text in lower case without punctuation, its
    characters, samples at 16 kHz, FEMALE or MALE. A sentence has the same number in all languages:
    with both languages present each is the other's translation.

    Attributes:
      languages: a selection of en_us and cmn_hans_cn.
      splits: a selection of train, dev, test.
      text: "raw", as written, or "normalized".
    """

    languages: tuple[str, ...] = ("en_us", "cmn_hans_cn")
    splits: tuple[str, ...] = SPLITS
    text: str = "raw"

    name = "fleurs"
    description = "FLEURS (Conneau et al., 2022), read sentences of FLoRes-101."
    licence = "CC BY 4.0"

    def __post_init__(self):
        check_choices(self, text=_TEXTS)
        for language in self.languages:
            check_language(_language_of(language))

    def items(self) -> Iterator[Item | Rejection]:
        """List the utterances of all languages."""
        root = require_folder(self.folder, "source.folder")
        tables = {language: _find_tables(root, language) for language in self.languages}
        sentences = {
            language: {
                row[1]["id"]: clean_text(row[1][_TEXTS[self.text]])
                for table in paths.values()
                for row in self._read_rows(table)
                if not isinstance(row, Rejection)
            }
            for language, paths in tables.items()
        }
        for language, paths in tables.items():
            others = [sentences[other] for other in self.languages if other != language]
            for split in self.splits:
                if split not in paths:
                    raise SourceError(f"{root / language}: no {split}.tsv, expected in FLEURS")
                yield from self._list_split(paths[split], root / language, split, others)

    def _list_split(
        self, table: Path, folder: Path, split: str, others: list[Mapping[str, str]]
    ) -> Iterator[Item | Rejection]:
        language, wavs = folder.name, _find_wavs(folder, split)

        def make_item(where: str, fields: Mapping[str, str]) -> Item:
            text = clean_text(fields[_TEXTS[self.text]])
            seconds = parse_seconds(fields["num_samples"], 1 / _RATE)
            if not text:
                raise Rejected("empty transcript", f"of {fields['file_name']}", seconds)
            try:
                path = find_inside(wavs, fields["file_name"])
            except Rejected as rejected:
                raise Rejected(rejected.reason, rejected.detail, seconds) from None
            translations = (texts[fields["id"]] for texts in others if fields["id"] in texts)
            clip = Clip(text, path, stated_seconds=seconds, translation=next(translations, ""))
            id = f"{language}-{Path(fields['file_name']).stem}"
            return speech_item(id, split, where, _language_of(language), clip)

        yield from list_items(self._read_rows(table), make_item)

    def _read_rows(self, table: Path) -> Iterator[tuple[str, Mapping[str, str]] | Rejection]:
        needed = ("id", "file_name", _TEXTS[self.text], "num_samples")
        return read_rows(table, needed, columns=_COLUMNS)


def _find_tables(root: Path, language: str) -> dict[str, Path]:
    folders = (root / language, root / "metadata" / language)
    tables = {}
    for split in SPLITS:
        for folder in folders:
            if split not in tables and (folder / f"{split}.tsv").is_file():
                tables[split] = folder / f"{split}.tsv"
    if not tables:
        raise SourceError(f"{folders[0]}: no train.tsv, dev.tsv or test.tsv, expected FLEURS")
    return tables


def _find_wavs(root: Path, split: str) -> Path:
    for folder in (root / "audio" / split, root / split):
        if folder.is_dir():
            return folder
    raise SourceError(f"{root}: no folder audio/{split}; unpack audio/{split}.tar.gz there")


def _language_of(folder: str) -> str:
    return LANGUAGE_OF.get(folder, folder.partition("_")[0])
