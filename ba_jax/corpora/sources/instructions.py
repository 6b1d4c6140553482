r"""Spoken dialogues made from text instructions (paper 3.3, SFT).

    {"id": "a1", "question": "What is two and two?", "answer": "Four.", "type": "arithmetic",
     "language": "en", "split": "train"}

is a line of the JSONL file; all but question and answer are optional.

  1. Selection. Rules reject what no voice can read out, another language, and texts that are too
     long; then types that are not wanted, near duplicates of earlier questions, pairs below
     `min_score` of the language model, and, by `per_type`, what a type has too much of (the best
     scores stay; without them chance decides).
  2. The answer is cut at natural pauses, as `synthetic` cuts texts. Every piece is a part of the
     assistant's turn with text and speech, which `sft` lays out in turns as generation does.
  3. The question is spoken by a voice of its split (the held-out ones never in "train"), the answer
     by the assistant's. A recogniser listens; a text that fails is tried again, up to `tries`
     times, the question in other voices, the answer at other speeds.

Two datasets are set aside, in the folders `tts` and `asr` of the output, as records of speech:

  tts   texts that the synthesiser failed to speak at first (no speech, poor sound, or misheard) and
        then spoke so that they were understood, with this good take
  asr   texts that no take of which was understood, with the best take: hard for the recogniser.
        Takes with an error rate above `max_hard` are dropped: they may say anything

A dialogue with a text that failed for good is rejected, with the reason.

    python -m ba_jax.corpora --config=configs/prepare.py:instructions \
        --config.source.path=instructions.jsonl --out=/data/records/instructions
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ba_jax.config import check_at_least
from ba_jax.corpora.duplicates import find_originals
from ba_jax.corpora.interleave import voices
from ba_jax.corpora.interleave.text import estimate_seconds, tidy
from ba_jax.corpora.sources.base import Aside, Item, Notice, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.interleaved import SpokenSource, Take, find_unfit
from ba_jax.corpora.sources.listing import (
    check_fields,
    clean_text,
    list_items,
    parse_object,
    read_lines,
)
from ba_jax.data.record import Part, Record, RecordError, check_language
from ba_jax.speech.languages import language_pack

_KEYS = dict.fromkeys(("id", "question", "answer", "type", "language", "split"), (str,))
_LAYOUT = re.compile(r"^\s*(?:[-*•#>|]|\d+[.)])\s|\*\*|`|\$\$|\\[a-zA-Z(\[]|\|.*\|", re.MULTILINE)
_SPEEDS = (1.0, 0.95, 1.05, 0.9, 1.1)  # of the assistant: equal answers sound equal


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A question and its answer."""

    type: str
    language: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Instructions(SpokenSource):
    """Spoken dialogues.

    Attributes:
      path: the JSONL file.
      types: types that are wanted; () for all.
      per_type: most instructions of a type; 0 for no bound.
      likeness: share of common runs of four characters from which on a question is a duplicate.
      min_score: least score by `writer`, 1 to 10; 0 asks for none.
      max_question, max_answer: longest estimated length of each, in seconds.
      assistant: voice of the answers; "" for the language's own, see `ba_jax.speech.languages`.
      tries: most takes of a text.
      max_hard: highest error rate of a take for the set `asr`.
    """

    name: str = "instructions"
    types: tuple[str, ...] = ()
    per_type: int = 0
    likeness: float = 0.7
    min_score: float = 0.0
    max_question: float = 20.0
    max_answer: float = 60.0
    assistant: str = ""
    tries: int = 3
    max_hard: float = 0.6

    asides: ClassVar[tuple[str, ...]] = ("tts", "asr")

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, per_type=0, tries=1)
        if not 0 < self.likeness <= 1:
            raise ValueError(f"likeness {self.likeness}, expected over 0, up to 1")
        if self.tries > len(_SPEEDS):
            raise ValueError(f"tries {self.tries}, expected at most {len(_SPEEDS)}")
        if self.min_score and not self.writer.base_url:
            raise ValueError(f"min_score {self.min_score}: expected writer.base_url, which scores")
        if voices.is_held_out(self.assistant):
            raise ValueError(f"assistant {self.assistant!r}, expected a voice that is not held out")

    def items(self) -> Iterator[Item | Rejection | Notice]:
        """List the selected dialogues; an item's payload is (language, question, *pieces)."""
        path = Path(self.path)
        if not self.path or not path.is_file():
            raise SourceError(f"source.path = {self.path!r}: no such file, expected a JSONL file")
        listed = []
        for item in list_items(read_lines(path), self._make_item):
            if isinstance(item, Rejection):
                yield item
            else:
                listed.append(item)
        rejections = self._find_duplicates(listed)
        scores: dict[int, float] = {}
        for number, item in enumerate(listed):
            if number not in rejections and self.min_score:
                value = item.payload
                scores[number], problem = self._writer.score(value.question, value.answer)
                if scores[number] < self.min_score:
                    detail = problem or f"{scores[number]:g}, expected at least {self.min_score:g}"
                    rejections[number] = item.where, "low score", detail
        self._limit_types(listed, scores, rejections)
        for number, item in enumerate(listed):
            if number in rejections:
                yield Rejection(*rejections[number])
                continue
            value = item.payload
            pieces, notices = self.divide_text(value.answer, value.language, item.where)
            yield from notices
            seconds = estimate_seconds(value.question + value.answer, value.language)
            payload = (value.language, value.question, *pieces)
            yield dataclasses.replace(item, payload=payload, seconds=seconds)

    def _make_item(self, where: str, line: str) -> Item | None:
        if not line.strip():
            return None
        fields = check_fields(parse_object(line), _KEYS, needed=("question", "answer"))
        type = fields.get("type", "")
        try:
            language = check_language(fields.get("language", self.language))
        except RecordError as error:
            raise Rejected("unknown language", str(error)) from None
        if self.types and type not in self.types:
            raise Rejected("type not wanted", f"{type!r}, expected one of {self.types}")
        if not (self.assistant or language_pack(language).voice):
            raise Rejected("no assistant's voice", f"language {language!r}, expected `assistant`")
        texts = {}
        for name, most in (("question", self.max_question), ("answer", self.max_answer)):
            text = tidy(fields[name], language)
            shown = f"{name} {text[:80]!r}"
            if _LAYOUT.search(text):
                raise Rejected("layout", shown)
            if problem := find_unfit(text, language):
                raise Rejected(problem, shown)
            seconds = estimate_seconds(text, language)
            if seconds > most:
                raise Rejected(f"{name} too long", f"about {seconds:.0f} s, {shown}")
            texts[name] = text
        question = language_pack(language).space.join(texts["question"].split("\n"))
        id = fields.get("id", f"{Path(self.path).stem}-{where.rsplit(':', 1)[1]}")
        if not clean_text(id):
            raise Rejected("bad value", f"id {id!r}, expected some text")
        value = Instruction(type, language, question, texts["answer"])
        return Item(id, fields.get("split", self.split), where, value)

    def _find_duplicates(self, listed: Sequence[Item]) -> dict[int, tuple[str, str, str]]:
        """Number of an item -> its rejection's fields."""
        originals = find_originals((item.payload.question for item in listed), self.likeness)
        return {
            number: (listed[number].where, "near duplicate", f"of {listed[original].where}")
            for number, original in enumerate(originals)
            if original is not None
        }

    def _limit_types(self, listed: Sequence[Item], scores, rejections) -> None:
        by_type: dict[str, list[int]] = {}
        for number, item in enumerate(listed):
            if self.per_type and number not in rejections:
                by_type.setdefault(item.payload.type, []).append(number)
        for type, numbers in by_type.items():
            numbers.sort(
                key=lambda n: (
                    -scores.get(n, 0.0),
                    voices.draw_unit(self.seed, listed[n].id, "type"),
                )
            )
            for number in numbers[self.per_type :]:
                detail = f"{type!r} has {len(numbers)}, expected at most {self.per_type}"
                rejections[number] = listed[number].where, "type is full", detail

    def records(self, item: Item) -> Iterator[Record | Rejection | Aside]:
        """Speak and check a dialogue."""
        language, *texts = item.payload
        answerer = self.assistant or language_pack(language).voice
        parts: list[Part] = []
        for number, text in enumerate(texts):
            if number:
                takes = [(answerer, speed) for speed in _SPEEDS[: self.tries]]
            else:
                takes = [self._cast(item, language, n) for n in range(self.tries)]
            part = yield from self._perform(item, f"{item.id}-{number:03d}", text, takes, language)
            if part is None:
                return
            parts.append(dataclasses.replace(part, role="assistant" if number else "user"))
        yield Record(item.id, "dialogue", language, tuple(parts), self.name)

    def _cast(self, item: Item, language: str, take: int) -> tuple[str, float]:
        """The voice and the speed of a question."""
        id = f"{item.id}-{take}" if take else item.id
        known = self.tool("synthesiser").voices
        voice = voices.choose_voice(
            known, language, item.split, seed=self.seed, id=id, blends=self.blends
        )
        return voice, voices.choose_speed(self.slowest, self.fastest, seed=self.seed, id=id)

    def _perform(
        self, item: Item, id: str, text: str, takes: Sequence[tuple[str, float]], language: str
    ) -> Iterator[Rejection | Aside]:
        """Take a text until it is understood; returns its part, or None."""
        failed: list[Take | Rejection] = []
        for voice, speed in takes:
            take = self.speak(item.where, text, voice, speed, language)
            if isinstance(take, Take) and take.error <= self.max_error:
                if failed:
                    yield Aside("tts", Record(id, "speech", language, (take.part,), self.name))
                return take.part
            failed.append(take)
        spoken = [take for take in failed if isinstance(take, Take)]
        if not spoken:
            yield failed[0]
            return None
        best = min(spoken, key=lambda take: take.error)
        if best.error <= self.max_hard:
            yield Aside("asr", Record(id, "speech", language, (best.part,), self.name))
        yield self.reject_misheard(item.where, best)
        return None
