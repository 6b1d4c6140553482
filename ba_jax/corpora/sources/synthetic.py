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
from typing import ClassVar

from ba_jax.corpora.encode import encode_speech
from ba_jax.corpora.interleave import voices
from ba_jax.corpora.interleave.cuts import fill_records
from ba_jax.corpora.interleave.filters import script_share
from ba_jax.corpora.interleave.text import estimate_seconds, find_unspeakable, segment, tidy
from ba_jax.corpora.sources.base import INFO, Item, Rejection, SourceError
from ba_jax.corpora.sources.interleaved import InterleavedSource
from ba_jax.corpora.sources.manifest import Manifest
from ba_jax.corpora.sources.plain_text import PlainText
from ba_jax.data.record import Part, Record, RecordError, RecordSource, check_language
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.languages import language_pack
from ba_jax.speech.text_norm import error_rate

_LONGEST = 28.0  # seconds of a part: a recogniser's limit
_SCRIPT = 0.5  # least share of letters in the language's script
_MAX_CHARACTERS = 50_000  # of a paragraph: an hour of English
_ITEM = 0.7  # aimed share of a record's length: estimates are off by a third at most


@dataclasses.dataclass(frozen=True)
class Synthetic(InterleavedSource):
    """Spoken text.

    Attributes:
      path: a text file or a folder of .txt files, see `plain_text`; a JSONL file of texts, see
        `manifest`; or the folder of a dataset with records of kind "text".
      language: language of texts that name none.
      read_split: the split to read, if `path` is a dataset.
      paragraphs: division of text files, as in `plain_text.PlainText`.
      synthesiser, recogniser: names, see `ba_jax.speech.tools`; "" as recogniser checks nothing.
      blends: speak with averages of two voices too, which sound like other speakers (Kokoro).
      slowest, fastest: bounds of the speed, 1 is the voice's own.
      seed: seed of voices and speeds.
      max_error: highest word (Mandarin: character) error rate of a part.
    """

    name: str = "synthetic"
    language: str = "en"
    read_split: str = "train"
    paragraphs: str = "blank_line"
    synthesiser: str = "kokoro"
    recogniser: str = "whisper"
    blends: bool = True
    slowest: float = 0.9
    fastest: float = 1.15
    seed: int = 0
    max_error: float = 0.2

    TOOLS: ClassVar[tuple[str, ...]] = ("synthesiser", "recogniser")

    def __post_init__(self):
        super().__post_init__()
        check_language(self.language)
        if not 0 < self.slowest <= self.fastest:
            raise ValueError(f"slowest {self.slowest}, fastest {self.fastest}: expected in order")

    def items(self) -> Iterator[Item | Rejection]:
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

    def _cut(self, document: Item) -> Iterator[Item | Rejection]:
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
                for texts in self._divide("\n".join(run), language):
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

    def _divide(self, text: str, language: str) -> Iterator[tuple[str, ...] | str]:
        """Yield the parts of each item, or a single part that is too lone for one."""
        between = language_pack(language).space
        texts = [piece.strip() for piece in segment(text, language, self.parts)]
        texts = [between.join(piece.split("\n")) for piece in texts]
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
            result = self._speak(item, text, voice, speed, language)
            is_kept.append(isinstance(result, Part))
            parts.append(result)
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

    def _speak(
        self, item: Item, text: str, voice: str, speed: float, language: str
    ) -> Part | Rejection:
        try:
            spoken = self.tool("synthesiser").speak(text, voice, speed)
        except SpeechToolError as error:
            return Rejection(item.where, "not spoken", f"{text[:80]!r}: {error}")
        wave_S, rate = spoken.wave_S, spoken.rate
        if len(wave_S) / rate > _LONGEST:
            detail = f"{text[:80]!r}, expected at most {_LONGEST} s"
            return Rejection(item.where, "too long a part", detail, len(wave_S) / rate)
        if self.recogniser:
            heard = self.tool("recogniser").recognise(wave_S, rate, language).text
            error = error_rate(text, heard, language)
            if error > self.max_error:
                detail = f"{error:.2f} in {text[:80]!r}, heard {heard[:80]!r}"
                return Rejection(item.where, "misheard", detail, len(wave_S) / rate)
        audio, seconds = encode_speech(wave_S, rate, self.coding)
        return Part(text=text, audio=audio, seconds=seconds, speaker=voice, words=spoken.words)


def _reject_kind(where: str, kind: str) -> Rejection:
    return Rejection(where, "not text", f"a record of kind {kind!r}, expected 'text'")


def _file_of(where: str) -> str:
    return where.rsplit(":", 1)[0]


def _find_problem(paragraph: str, language: str) -> str:
    """The reason not to speak a paragraph, or ""."""
    if len(paragraph) > _MAX_CHARACTERS:
        return "too long a paragraph"
    if problem := find_unspeakable(paragraph):
        return problem
    return "other language" if script_share(paragraph, language) < _SCRIPT else ""
