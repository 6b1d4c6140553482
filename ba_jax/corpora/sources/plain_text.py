"""Text without speech: one paragraph a record. Also what synthetic speech is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ba_jax.corpora.clips import sorted_files
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.listing import SourceError, read_lines
from ba_jax.data.record import LANGUAGES, Part, Record

PARAGRAPHS = ("blank_line", "line")


@dataclasses.dataclass(frozen=True)
class PlainText:
    """A UTF-8 text file, or a folder of .txt files at any depth.

    Attributes:
      path: the file or the folder.
      name, description, licence: of the dataset.
      language, split: of all of it.
      paragraphs: what ends one: a "blank_line", or each "line".
      max_characters: of a paragraph; longer ones are rejected.
    """

    path: str = ""
    name: str = "text"
    description: str = "Plain text."
    licence: str = ""
    language: str = "en"
    split: str = "train"
    paragraphs: str = "blank_line"
    max_characters: int = 20_000

    def __post_init__(self):
        if self.paragraphs not in PARAGRAPHS:
            raise ValueError(f"paragraphs = {self.paragraphs!r}, expected one of {PARAGRAPHS}")
        if self.language not in LANGUAGES:
            raise ValueError(f"language = {self.language!r}, expected one of {LANGUAGES}")

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`; an item's payload is its paragraph."""
        root = Path(self.path)
        if not self.path or not root.exists():
            raise SourceError(f"source.path = {self.path!r}: no such file or folder")
        files = [root] if root.is_file() else sorted_files([root], "*.txt")
        if not files:
            raise SourceError(f"{root}: no .txt files")
        for file in files:
            inner = file.name if root.is_file() else file.relative_to(root).as_posix()
            name = inner.removesuffix(".txt")
            number = 0
            for paragraph in self._paragraphs(file):
                if isinstance(paragraph, Rejection):
                    yield paragraph
                    continue
                where, text = paragraph
                number += 1
                if len(text) > self.max_characters:
                    detail = f"{len(text)} characters, expected at most {self.max_characters}"
                    yield Rejection(where, "paragraph too long", detail)
                    continue
                yield Item(f"{name}-{number:06d}", self.split, where, text)

    def _paragraphs(self, file: Path) -> Iterator[tuple[str, str] | Rejection]:
        """("file:line" of its first line, text); one with a bad line is rejected as a whole."""
        lines: list[str] = []
        first, bad, size = "", None, 0

        def end() -> tuple[str, str] | Rejection:
            return bad or (first, "\n".join(lines))

        for line in read_lines(file):
            is_bad = isinstance(line, Rejection)
            text = "" if is_bad else line[1].strip()
            if not is_bad and not text:
                if lines or bad:
                    yield end()
                lines, bad, size = [], None, 0
                continue
            if not lines and not bad:
                first = line.where if is_bad else line[0]
            if is_bad:
                bad = bad or line
            # What is over the limit is rejected; it need not be kept to the end.
            elif size <= self.max_characters:
                lines.append(text)
                size += len(text) + 1
            if self.paragraphs == "line":
                yield end()
                lines, bad, size = [], None, 0
        if lines or bad:
            yield end()

    def records(self, item: Item) -> Iterator[Record]:
        """As `Source.records`."""
        yield Record(item.id, "text", self.language, (Part(text=item.payload),), self.name)

    def finish(self, directory: Path) -> None:
        """As `Source.finish`: nothing to add."""
