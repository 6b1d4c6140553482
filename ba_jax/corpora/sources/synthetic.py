r"""Interleaved speech and text made from text (paper Figure 4, "synthetic").

    text -> tidying -> natural segmentation -> a voice -> TTS -> ASR check -> records

  1. Paragraphs are tidied (`interleave.text.tidy`). A paragraph that no voice can read out, or in
     another language, is dropped; the text before and after it is not joined.
  2. Text is cut into parts of even length at the ends of sentences and clauses, never inside
     numbers, abbreviations, quotations and brackets.
  3. Consecutive parts make an item, some minutes of speech, in a single voice and speed that depend
     on seed and id alone. The held-out voices speak in every split but "train" and nowhere else.
  4. Each part is spoken and recognised, and dropped if its error rate is too high. The parts before
     and after it go to different records, so that a record is always continuous; a record has at
     least two parts and less than `max_seconds`.

Word timings are the synthesiser's own, exact to its units of 25 ms.

    python -m ba_jax.corpora --config=configs/prepare.py:synthetic \
        --config.source.path=/data/novels --config.source.language=zh --out=/data/records/novels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ba_jax.corpora.interleave import voices
from ba_jax.corpora.interleave.cuts import fill_records
from ba_jax.corpora.interleave.text import estimate_seconds, tidy
from ba_jax.corpora.sources.base import INFO, Item, Notice, Rejection, SourceError
from ba_jax.corpora.sources.interleaved import SpokenSource, Take, find_unfit
from ba_jax.corpora.sources.manifest import Manifest
from ba_jax.corpora.sources.plain_text import PlainText
from ba_jax.data.record import Record, RecordError, RecordSource
from ba_jax.speech.languages import language_pack

_MAX_CHARACTERS = 50_000  # of a paragraph: an hour of English
_ITEM = 0.7  # aimed share of a record's length: estimates are off by a third at most


@dataclasses.dataclass(frozen=True)
class Synthetic(SpokenSource):
    """Spoken text.

    Attributes:
      path: a text file or a folder of .txt files, see `plain_text`; a JSONL file of texts, see
        `manifest`; or the folder of a dataset with records of kind "text".
      read_split: the split to read, if `path` is a dataset.
      paragraphs: division of text files, as in `plain_text.PlainText`.
    """

    name: str = "synthetic"
    read_split: str = "train"
    paragraphs: str = "blank_line"

    def items(self) -> Iterator[Item | Rejection | Notice]:
        """List runs of consecutive parts, estimated to make about a record each."""
        for document in self._read_documents():
            if isinstance(document, Rejection):
                yield document
            else:
                yield from self._cut(document)

    def _read_documents(self) -> Iterator[Item | Rejection]:
        """Read texts; an item's payload is (language, ((where, lines of paragraphs), ...))."""
        path = Path(self.path)
        if self.path and (path / INFO).is_file():
            yield from self._read_records()
        elif path.suffix.lower() == ".jsonl":
            yield from self._read_manifest()
        else:
            yield from self._read_files()

    def _read_manifest(self) -> Iterator[Item | Rejection]:
        for listed in Manifest(path=self.path, language=self.language, split=self.split).items():
            if isinstance(listed, Rejection):
                yield listed
                continue
            (recipe,) = listed.payload
            if recipe.kind != "text":
                yield _reject_kind(listed.where, recipe.kind)
                continue
            payload = (recipe.language, ((listed.where, recipe.clips[0].text),))
            yield dataclasses.replace(listed, payload=payload)

    def _read_records(self) -> Iterator[Item | Rejection]:
        try:
            records = RecordSource(self.path, self.read_split)
        except RecordError as error:
            raise SourceError(str(error)) from None
        for number in range(len(records)):
            where = f"{self.path}:{self.read_split}:{number}"
            try:
                record = records[number]
            except RecordError as error:
                yield Rejection(where, "damaged record", str(error))
                continue
            if record.kind != "text":
                yield _reject_kind(where, record.kind)
                continue
            text = "\n".join(part.text for part in record.parts)
            yield Item(record.id, self.split, where, (record.language, ((where, text),)))

    def _read_files(self) -> Iterator[Item | Rejection]:
        """Read text files; consecutive paragraphs of a file make a document."""
        listing = PlainText(
            path=self.path,
            language=self.language,
            split=self.split,
            paragraphs=self.paragraphs,
            max_characters=_MAX_CHARACTERS,
        )
        run: list[Item] = []

        def join_run() -> Item:
            paragraphs = tuple((item.where, item.payload) for item in run)
            return dataclasses.replace(run[0], payload=(self.language, paragraphs))

        for listed in listing.items():
            is_lost = isinstance(listed, Rejection)
            if run:
                is_other_file = _file_of(listed.where) != _file_of(run[0].where)
                is_long = sum(len(item.payload) for item in run) >= _MAX_CHARACTERS
                if is_lost or is_other_file or is_long:
                    yield join_run()
                    run = []
            if is_lost:
                yield listed
                continue
            # A paragraph's line breaks are mere wrapping.
            between = language_pack(self.language).space
            run.append(
                dataclasses.replace(listed, payload=between.join(listed.payload.split("\n")))
            )
        if run:
            yield join_run()

    def _cut(self, document: Item) -> Iterator[Item | Rejection | Notice]:
        language, pieces = document.payload
        paragraphs = [(w, line) for w, text in pieces for line in tidy(text, language).split("\n")]
        number, run, first = 0, [], document.where
        for where, paragraph in [*paragraphs, (document.where, None)]:
            problem = "" if paragraph is None else _find_problem(paragraph, language)
            first = first if run else where
            if paragraph is not None and not problem:
                run.append(paragraph)
                # Cutting takes time in the square of the length.
                if sum(map(len, run)) < _MAX_CHARACTERS:
                    continue
            if run:
                for texts in self._divide("\n".join(run), language, first):
                    if isinstance(texts, Notice):
                        yield texts
                        continue
                    if isinstance(texts, str):
                        detail = f"{texts[:80]!r}, expected two parts or more"
                        yield Rejection(first, "a lone part", detail)
                        continue
                    yield Item(
                        f"{document.id}-{number:04d}",
                        document.split,
                        first,
                        (language, *texts),
                        sum(estimate_seconds(part, language) for part in texts),
                    )
                    number += 1
                run = []
            if problem:
                yield Rejection(where, problem, repr(paragraph[:80]))

    def _divide(
        self, text: str, language: str, where: str
    ) -> Iterator[tuple[str, ...] | str | Notice]:
        """Yield the parts of each item, or a single part that is too lone for one."""
        texts, notices = self.divide_text(text, language, where)
        yield from notices
        seconds = [estimate_seconds(piece, language) for piece in texts]
        items, lone = fill_records(seconds, [True] * len(texts), limit=_ITEM * self.max_seconds)
        yield from (tuple(texts[first:end]) for first, end in items)
        yield from (texts[number] for number in lone)

    def records(self, item: Item) -> Iterator[Record | Rejection]:
        """Speak and check an item's parts."""
        language, *texts = item.payload
        voice = voices.choose_voice(
            self.tool("synthesiser").voices,
            language,
            item.split,
            seed=self.seed,
            id=item.id,
            blends=self.blends,
        )
        speed = voices.choose_speed(self.slowest, self.fastest, seed=self.seed, id=item.id)
        parts, is_kept = [], []
        for text in texts:
            result = self.speak(item.where, text, voice, speed, language)
            if isinstance(result, Take) and result.error > self.max_error:
                result = self.reject_misheard(item.where, result)
            is_kept.append(isinstance(result, Take))
            parts.append(result.part if isinstance(result, Take) else result)
            if isinstance(result, Rejection):
                yield result
        seconds = [part.seconds for part in parts]
        records, lone = fill_records(seconds, is_kept, limit=self.max_seconds)
        for part in (parts[number] for number in lone):
            yield Rejection(item.where, "a lone part", repr(part.text[:80]), part.seconds)
        for first, end in records:
            yield Record(
                id=f"{item.id}-{first:03d}",
                kind="interleaved",
                language=language,
                parts=tuple(parts[first:end]),
                source=self.name,
            )


def _reject_kind(where: str, kind: str) -> Rejection:
    return Rejection(where, "not text", f"a record of kind {kind!r}, expected 'text'")


def _file_of(where: str) -> str:
    return where.rsplit(":", 1)[0]


def _find_problem(paragraph: str, language: str) -> str:
    """The reason not to speak a paragraph, or ""."""
    if len(paragraph) > _MAX_CHARACTERS:
        return "too long a paragraph"
    return find_unfit(paragraph, language)
