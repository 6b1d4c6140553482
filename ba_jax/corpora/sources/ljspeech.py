"""LJ Speech: one English speaker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ba_jax.corpora.clips import Clip, ClipSource, sorted_files, speech_item
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import inside, read_rows, require_file, require_folder

TEXTS = ("normalized", "original")


@dataclasses.dataclass(frozen=True)
class LJSpeech(ClipSource):
    """LJSpeech-1.1/metadata.csv with lines "LJ001-0001|original|normalized", and wavs/ID.wav.

    Attributes:
      text: "normalized" (numbers and abbreviations written out) or "original".
    """

    text: str = "normalized"

    name = "ljspeech"
    description = "The LJ Speech Dataset 1.1 (Ito and Johnson, 2017)."
    licence = "public domain"

    def __post_init__(self):
        if self.text not in TEXTS:
            raise ValueError(f"text = {self.text!r}, expected one of {TEXTS}")

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        root = require_folder(self.folder, "source.folder")
        table = require_file(root / "metadata.csv", "LJSpeech-1.1/")
        unused = {path.stem: path for path in sorted_files([root / "wavs"], "*.wav")}
        for row in read_rows(table, ("id", "original", "normalized"), separator="|"):
            if isinstance(row, Rejection):
                yield row
                continue
            where, fields = row
            id, text = fields["id"], fields[self.text].strip()
            try:
                path = inside(root / "wavs", f"{id}.wav")
            except Rejected as rejected:
                yield Rejection(where, rejected.reason, rejected.detail)
                continue
            unused.pop(id, None)
            if not text:
                yield Rejection(where, "empty transcript", f"of {id}")
                continue
            clip = Clip(text=text, path=path, speaker="LJ")
            yield speech_item(id, "train", where, "en", clip)
        for id, path in unused.items():
            yield Rejection(str(path), "no transcript", f"{id} is not in {table}")
