r"""Interleaved speech and text made from text (paper Figure 4, "synthetic").

    text -> tidying -> natural segmentation -> one of many voices -> TTS -> ASR check -> records

  1. Paragraphs are tidied (`interleave.text.tidy`); one that no voice can read out, or that is in
     another language, is dropped and parts what is before it from what is behind.
  2. Text is cut into parts of even length at the ends of sentences and clauses, never inside
     numbers, abbreviations, quotations and brackets.
  3. Parts that continue each other make an item, some minutes of speech; one voice and one speed
     speak it, chosen by seed and id alone. The held-out voices speak in every split but "train"
     and nowhere else.
  4. Each part is spoken and recognised; if too much of it is not heard it is dropped. What is left
     on both sides makes records of their own, so that a record is always continuous; a record has
     at least two parts and less than `max_seconds`.

Word timings are the synthesiser's own, exact to its units of 25 ms.

    python -m ba_jax.corpora --config=configs/prepare.py:synthetic \
        --config.source.path=/data/novels --config.source.language=zh --out=/data/records/novels

Of 82 parts of 3 to 8 s by ten of Kokoro's voices, in noise at 20 dB, one had an error over 0.2. A
CPU-second makes 1.8 seconds of checked speech, 2.4 unchecked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ba_jax.corpora.encode import CODINGS, encode_speech
from ba_jax.corpora.interleave import voices
from ba_jax.corpora.interleave.cuts import fill_records
from ba_jax.corpora.interleave.filters import script_share
from ba_jax.corpora.interleave.text import (
    Lengths,
    estimate_seconds,
    find_unspeakable,
    segment,
    tidy,
)
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.manifest import Manifest
from ba_jax.corpora.sources.plain_text import PlainText
from ba_jax.data.record import LANGUAGES, Part, Record, RecordSource
from ba_jax.speech import tools
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.text_norm import error_rate

_TOOLS = ("synthesiser", "recogniser")
_LONGEST = 28.0  # seconds of a part: what a recogniser takes at once
_SCRIPT = 0.5  # least share of letters in the language's script
_MAX_CHARACTERS = 50_000  # of a paragraph: an hour of English
_ITEM = 0.7  # of a record's length is aimed at: estimates are off by a third at most


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Text, spoken.

    Attributes:
      name: of the dataset.
      path: a text file or a folder of .txt files, see `plain_text`; a JSONL file of texts, see
        `manifest`; or the folder of a dataset with records of kind "text".
      language, split: of texts that do not say.
      read_split: of a dataset, which split to read.
      paragraphs: of text files, as in `plain_text.PlainText`.
      coding: "opus" or "flac".
      synthesiser, recogniser: names, see `ba_jax.speech.tools`; without a recogniser ("")
        nothing is checked.
      options: one of these two -> arguments of the tool's class.
      blends: speak with averages of two voices too, which sound like others (Kokoro).
      slowest, fastest: bounds of the speed, 1 is the voice's own.
      seed: of voices and speeds.
      max_error: word (Mandarin: character) error rate up to which a part is kept.
      max_seconds: of a record.
      parts: seconds of a part, as estimated from its text.
      description, licence: stored with the dataset.
    """

    name: str = "synthetic"
    path: str = ""
    language: str = "en"
    split: str = "train"
    read_split: str = "train"
    paragraphs: str = "blank_line"
    coding: str = "opus"
    synthesiser: str = "kokoro"
    recogniser: str = "whisper"
    options: dict = dataclasses.field(default_factory=dict)
    blends: bool = True
    slowest: float = 0.9
    fastest: float = 1.15
    seed: int = 0
    max_error: float = 0.2
    max_seconds: float = 300.0
    parts: Lengths = Lengths()
    description: str = ""
    licence: str = ""

    def __post_init__(self):
        if self.language not in LANGUAGES:
            raise ValueError(f"language {self.language!r}, expected one of {LANGUAGES}")
        if unknown := sorted(set(self.options) - set(_TOOLS)):
            raise ValueError(f"options {unknown}, expected some of {_TOOLS}")
        if self.coding not in CODINGS:
            raise ValueError(f"coding {self.coding!r}, expected one of {CODINGS}")
        if not 0 < self.slowest <= self.fastest:
            raise ValueError(f"slowest {self.slowest}, fastest {self.fastest}: expected in order")
        if not 2 * self.parts.high < self.max_seconds <= 300:
            raise ValueError(
                f"max_seconds {self.max_seconds}, expected over twice the longest part, up to 300"
            )

    def __getstate__(self) -> dict[str, Any]:
        # The tools that a worker made stay in it.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _synthesiser(self):
        return tools.make_synthesiser(self.synthesiser, **self.options.get("synthesiser", {}))

    @functools.cached_property
    def _recogniser(self):
        return tools.make_recogniser(self.recogniser, **self.options.get("recogniser", {}))

    def items(self) -> Iterator[Item | Rejection]:
        """Items of parts that continue each other, one record's worth or a little less."""
        for document in self._documents():
            if isinstance(document, Rejection):
                yield document
                continue
            yield from self._cut(document)

    def _documents(self) -> Iterator[Item | Rejection]:
        """Texts to cut; an item's payload is (language, ((where, lines of paragraphs), ...))."""
        path = Path(self.path)
        if self.path and (path / "dataset_info.json").is_file():
            yield from self._from_records()
        elif path.suffix == ".jsonl":
            yield from self._from_manifest()
        else:
            yield from self._from_files()

    def _from_manifest(self) -> Iterator[Item | Rejection]:
        for listed in Manifest(path=self.path, language=self.language, split=self.split).items():
            if isinstance(listed, Rejection):
                yield listed
                continue
            (recipe,) = listed.payload
            if recipe.kind != "text":
                yield _not_text(listed.where, recipe.kind)
                continue
            payload = (recipe.language, ((listed.where, recipe.clips[0].text),))
            yield dataclasses.replace(listed, payload=payload)

    def _from_records(self) -> Iterator[Item | Rejection]:
        for number, record in enumerate(RecordSource(self.path, self.read_split)):
            where = f"{self.path}:{self.read_split}:{number}"
            if record.kind != "text":
                yield _not_text(where, record.kind)
                continue
            text = "\n".join(part.text for part in record.parts)
            yield Item(record.id, self.split, where, (record.language, ((where, text),)))

    def _from_files(self) -> Iterator[Item | Rejection]:
        """Paragraphs that follow each other in one file, together."""
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
            # Lines of a paragraph are wrapped by hand.
            between = "" if self.language == "zh" else " "
            run.append(
                dataclasses.replace(listed, payload=between.join(listed.payload.split("\n")))
            )
        if run:
            yield join_run()

    def _cut(self, document: Item) -> Iterator[Item | Rejection]:
        """A document's items; its payload is as of `_documents`."""
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
        """The parts of each item, or a part that is alone."""
        between = "" if language == "zh" else " "
        texts = [piece.strip() for piece in segment(text, language, self.parts)]
        texts = [between.join(piece.split("\n")) for piece in texts]
        seconds = [estimate_seconds(piece, language) for piece in texts]
        items = fill_records(seconds, [True] * len(texts), limit=_ITEM * self.max_seconds)
        used = {i for first, end in items for i in range(first, end)}
        yield from (tuple(texts[first:end]) for first, end in items)
        yield from (text for i, text in enumerate(texts) if i not in used)

    def records(self, item: Item) -> Iterator[Record | Rejection]:
        """Speaks and checks an item's parts."""
        language, *texts = item.payload
        voice = voices.choose_voice(
            self._synthesiser.voices,
            language,
            item.split,
            seed=self.seed,
            id=item.id,
            blends=self.blends,
        )
        speed = voices.choose_speed(self.slowest, self.fastest, seed=self.seed, id=item.id)
        parts, is_kept = [], []
        for text in texts:
            spoken = self._speak(item, text, voice, speed, language)
            is_kept.append(isinstance(spoken, Part))
            parts.append(spoken)
            if isinstance(spoken, Rejection):
                yield spoken
        seconds = [part.seconds for part in parts]
        records = fill_records(seconds, is_kept, limit=self.max_seconds)
        used = {i for first, end in records for i in range(first, end)}
        for i, part in enumerate(parts):
            if is_kept[i] and i not in used:
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
        """One part, or why it is not used."""
        try:
            spoken = self._synthesiser.speak(text, voice, speed)
        except SpeechToolError as error:
            return Rejection(item.where, "not spoken", f"{text[:80]!r}: {error}")
        wave_S, rate = spoken.wave_S, spoken.rate
        if len(wave_S) / rate > _LONGEST:
            detail = f"{text[:80]!r}, expected at most {_LONGEST} s"
            return Rejection(item.where, "too long a part", detail, len(wave_S) / rate)
        if self.recogniser:
            heard = self._recogniser.recognise(wave_S, rate, language).text
            error = error_rate(text, heard, language)
            if error > self.max_error:
                detail = f"{error:.2f} in {text[:80]!r}, heard {heard[:80]!r}"
                return Rejection(item.where, "misheard", detail, len(wave_S) / rate)
        audio, seconds = encode_speech(wave_S, rate, self.coding)
        return Part(text=text, audio=audio, seconds=seconds, speaker=voice, words=spoken.words)

    def finish(self, directory: Path) -> None:
        """Nothing beside the shards."""


def _not_text(where: str, kind: str) -> Rejection:
    return Rejection(where, "not text", f"a record of kind {kind!r}, expected 'text'")


def _file_of(where: str) -> str:
    return where.rsplit(":", 1)[0]


def _find_problem(paragraph: str, language: str) -> str:
    """Why a paragraph is not spoken, or ""."""
    if len(paragraph) > _MAX_CHARACTERS:
        return "too long a paragraph"
    if problem := find_unspeakable(paragraph):
        return problem
    return "other language" if script_share(paragraph, language) < _SCRIPT else ""
