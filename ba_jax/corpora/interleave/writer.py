"""Text prepared by a language model: read out in words, cut at natural pauses, scored.

A reply is used only if it passes a check; else the caller goes by the rules, and counts it.
"""

from __future__ import annotations

import dataclasses
import json
import re

from ba_jax.config import LocalPath
from ba_jax.corpora.interleave.text import Lengths, estimate_seconds
from ba_jax.corpora.sources.base import SourceError
from ba_jax.speech.chat import Chat, ChatSettings
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.text_norm import error_rate

_SYSTEM = (
    "You prepare text for a speech synthesiser. Reply in exactly the format that is asked for."
)
_NORMALISE = (
    "Rewrite the text as it is read aloud, in its own language: numbers, units, abbreviations and "
    "symbols in words. Change nothing else. Reply with the text alone.\n\n{text}"
)
_SEGMENT = (
    "Cut the text at punctuation and natural pauses into pieces that take {low:g} to {high:g} "
    "seconds, best {target:g}, to say. Change, add and leave out nothing. Reply with a JSON array "
    "of strings, nothing else.\n\n{text}"
)
_SCORE = (
    "Question: {question}\nAnswer: {answer}\n\nHow good is this pair for training a voice "
    "assistant: clear, correct, helpful, easy to follow by ear? Reply with one whole number from 1 "
    "(useless) to 10 (could not be better), nothing else."
)
_MAX_CHANGE = 0.2
"""Largest error rate between a text and its normalised form: numbers in words are no errors."""


@dataclasses.dataclass(frozen=True)
class WriterSettings(ChatSettings):
    """Settings of the language model; without an address the rules do the work.

    Attributes:
      replies: JSONL file that keeps the replies: a run that resumes lists the same texts again.
      normalise: rewrite texts as they are read aloud too, before they are cut.
    """

    replies: LocalPath = ""
    normalise: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.base_url:
            self.check_address("writer")
            if not self.replies:
                raise ValueError("writer.replies '', expected a file to keep the replies in")


class Writer:
    """A language model that prepares text; every method also returns a problem, or ""."""

    def __init__(self, settings: WriterSettings):
        try:
            self._chat = Chat(settings, settings.replies)
        except SpeechToolError as error:
            raise SourceError(str(error)) from None

    def normalise(self, text: str, language: str) -> tuple[str, str]:
        """The text as it is read aloud, or as it was."""
        reply = " ".join(self._ask(_NORMALISE.format(text=text)).split())
        try:
            change = error_rate(text, reply, language)
        except ValueError as error:
            return text, str(error)
        if change > _MAX_CHANGE:
            return text, f"{change:.2f} of the words changed: {reply[:80]!r}"
        return reply, ""

    def segment(self, text: str, language: str, lengths: Lengths) -> tuple[list[str], str]:
        """The pieces of a text, or []."""
        reply = self._ask(_SEGMENT.format(text=text, **dataclasses.asdict(lengths)))
        array = re.search(r"\[.*\]", reply, re.DOTALL)
        try:
            pieces = json.loads(array[0] if array else reply)
            if not isinstance(pieces, list) or not all(isinstance(p, str) for p in pieces):
                raise ValueError("expected strings")
        except (ValueError, RecursionError) as error:
            return [], f"no JSON array of strings ({error}): {reply[:80]!r}"
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        if "".join("".join(pieces).split()) != "".join(text.split()):
            return [], f"pieces that do not join to the text: {reply[:80]!r}"
        longest = max((estimate_seconds(piece, language) for piece in pieces), default=0.0)
        if longest > lengths.high:
            return [], f"a piece of about {longest:.1f} s, expected at most {lengths.high} s"
        return pieces, ""

    def score(self, question: str, answer: str) -> tuple[float, str]:
        """The quality of a question and its answer, 1 to 10, or 0."""
        reply = self._ask(_SCORE.format(question=question, answer=answer))
        number = re.fullmatch(r"\W*(10|[1-9])(?:\s*/\s*10)?\W*", reply)
        return (float(number[1]), "") if number else (0.0, f"no score from 1 to 10: {reply[:80]!r}")

    def _ask(self, prompt: str) -> str:
        """A reply, kept whatever it is; SourceError without one: the next run goes on from here."""
        body = self._chat.body(_SYSTEM, prompt)
        reply = self._chat.kept(body)
        if reply is None:
            reply, reason = self._chat.request(body)
            if reply is None:
                s = self._chat.settings
                raise SourceError(
                    f"{s.model} at {s.base_url}: {reason}; {s.replies} keeps "
                    "the replies so far, run again"
                )
            self._chat.keep(body, reply)
        return reply
