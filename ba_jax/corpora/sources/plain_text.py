"""Text without speech, one paragraph per record; also the input of synthetic speech."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ba_jax.config import LocalPath, check_choices
from ba_jax.corpora.sources.base import Item, Rejection, Source, SourceError
from ba_jax.corpora.sources.listing import clean_text, find_files, read_lines
from ba_jax.data.record import Part, Record, check_language


@dataclasses.dataclass(frozen=True)
class PlainText(Source):
    """A UTF-8 text file, or a folder of .txt files at any depth, without invisible characters.

    Attributes:
      language, split: values of all paragraphs.
      paragraphs: end at a "blank_line", or at each "line".
      max_characters: largest number of characters of a paragraph; longer ones are rejected.
    """

    path: LocalPath = ""
    name: str = "text"
    description: str = "Plain text."
    licence: str = ""
    language: str = "en"
    split: str = "train"
    paragraphs: str = "blank_line"
    max_characters: int = 20_000

    def __post_init__(self):
        check_choices(self, paragraphs=("blank_line", "line"))
        check_language(self.language)

    def items(self) -> Iterator[Item | Rejection]:
        """List the paragraphs; an item's payload is its text."""
        root = Path(self.path)
        if not self.path or not root.exists():
            raise SourceError(f"source.path = {self.path!r}: no such file or folder")
        files = [root] if root.is_file() else find_files(root, ".txt")
        if not files:
            raise SourceError(f"{root}: no .txt files")
        for file in files:
            inner = file.name if root.is_file() else file.relative_to(root).as_posix()
            name = inner.removesuffix(".txt")
            number = 0
            for paragraph in self._read_paragraphs(file):
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

    def _read_paragraphs(self, file: Path) -> Iterator[tuple[str, str] | Rejection]:
        """Yield ("file:line", text); a paragraph with a bad line is rejected as a whole."""
        lines: list[str] = []
        first, bad, size = "", None, 0

        def end() -> tuple[str, str] | Rejection:
            return bad or (first, "\n".join(lines))

        for line in read_lines(file):
            is_bad = isinstance(line, Rejection)
            text = "" if is_bad else clean_text(line[1])
            if not is_bad and not text:
                if lines or bad:
                    yield end()
                lines, bad, size = [], None, 0
                continue
            if not lines and not bad:
                first = line.where if is_bad else line[0]
            if is_bad:
                bad = bad or line
            # Text over the limit will be rejected and need not be kept.
            elif size <= self.max_characters:
                lines.append(text)
                size += len(text) + 1
            if self.paragraphs == "line":
                yield end()
                lines, bad, size = [], None, 0
        if lines or bad:
            yield end()

    def records(self, item: Item) -> Iterator[Record]:
        """Make the record of a paragraph."""
        yield Record(item.id, "text", self.language, (Part(text=item.payload),), self.name)
