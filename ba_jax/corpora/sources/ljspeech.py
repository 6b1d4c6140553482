"""LJ Speech: one English speaker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from ba_jax.config import check_choices
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.clips import Clip, ClipSource, reject_unlisted, speech_item
from ba_jax.corpora.sources.listing import (
    find_inside,
    list_items,
    read_rows,
    require_file,
    require_folder,
    sorted_files,
)


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
        recordings = {path.stem: path for path in sorted_files([root / "wavs"], "*.wav")}

        def make_item(where: str, fields: Mapping[str, str]) -> Item:
            path = find_inside(root / "wavs", f"{fields['id']}.wav")
            recordings.pop(fields["id"], None)
            clip = Clip(text=fields[self.text].strip(), path=path, speaker="LJ")
            return speech_item(fields["id"], "train", where, "en", clip)

        rows = read_rows(table, ("id", "original", "normalized"), separator="|")
        yield from list_items(rows, make_item)
        yield from reject_unlisted(recordings, f"is not in {table}")
