"""Bases of the sources that use speech tools: their common fields, tools and checks."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from ba_jax.config import LocalPath, check_choices
from ba_jax.corpora.encode import CODINGS, encode_speech
from ba_jax.corpora.interleave.filters import script_share
from ba_jax.corpora.interleave.text import Lengths, find_unspeakable, segment
from ba_jax.corpora.interleave.writer import Writer, WriterSettings
from ba_jax.corpora.sources.base import Notice, Rejection, Source
from ba_jax.data.record import Part, check_language
from ba_jax.speech import tools
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.languages import language_pack
from ba_jax.speech.text_norm import error_rate

_LONGEST = 28.0  # seconds of a part: a recogniser's limit
_SCRIPT = 0.5  # least share of letters in the language's script


@dataclasses.dataclass(frozen=True)
class InterleavedSource(Source):
    """Base of `Crawl`, and of those that speak texts.

    A field named in `TOOLS` chooses a speech tool by its name. Tools are made on first use, in the
    worker that uses them, and are not pickled.

    Attributes:
      name, description, licence: metadata of the dataset.
      path: path of the input, see the subclass.
      split: split of inputs that name none.
      coding: "opus" or "flac".
      options: tool -> arguments of its class, {"recogniser": {"model": "/models/whisper"}}.
      max_seconds: longest length of a record.
      parts: seconds of a part.
      mos: the predictor of opinions, see `ba_jax.speech.tools`.
      min_mos: speech of a lower opinion ("dnsmos_overall", 1 to 5) is rejected; 0 asks for none.
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    path: LocalPath = ""
    split: str = "train"
    coding: str = "opus"
    options: dict = dataclasses.field(default_factory=dict)
    max_seconds: float = 300.0
    parts: Lengths = Lengths()
    mos: str = "dnsmos"
    min_mos: float = 0.0

    TOOLS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_choices(self, coding=CODINGS)
        if not 0 <= self.min_mos <= 5:
            raise ValueError(f"min_mos {self.min_mos}, expected 0 to 5")
        if unknown := sorted(set(self.options) - set(self.TOOLS)):
            raise ValueError(f"options {unknown}, expected some of {self.TOOLS}")
        if not 2 * self.parts.high < self.max_seconds <= 300:
            raise ValueError(
                f"max_seconds {self.max_seconds}, expected over twice the longest part, up to 300"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def tool(self, field: str) -> Any:
        """The tool that a field of the config chooses."""
        made = self.__dict__.setdefault("_tools", {})
        if field not in made:
            kind, options = field.removeprefix("second_"), self.options.get(field, {})
            made[field] = tools.make_tool(kind, getattr(self, field), **options)
        return made[field]

    def find_poor(self, wave_S: np.ndarray, rate: int) -> tuple[str, str] | None:
        """(reason, detail) to reject speech by its sound, or None."""
        if not self.min_mos:
            return None
        try:
            opinion = self.tool("mos").rate(wave_S, rate)["dnsmos_overall"]
        except SpeechToolError as error:
            return "no opinion of the sound", str(error)
        if opinion >= self.min_mos:
            return None
        return "poor sound", f"opinion {opinion:.2f}, expected at least {self.min_mos}"


@dataclasses.dataclass(frozen=True)
class Take:
    """A spoken text, the recogniser's transcript of it, and its error rate."""

    part: Part
    heard: str = ""
    error: float = 0.0


@dataclasses.dataclass(frozen=True)
class SpokenSource(InterleavedSource):
    """Base of the sources that speak texts.

    Attributes:
      language: language of texts that name none.
      synthesiser, recogniser: names, see `ba_jax.speech.tools`; "" as recogniser checks nothing.
      blends: speak with averages of two voices too, which sound like other speakers (Kokoro).
      slowest, fastest: bounds of the speed, 1 is the voice's own.
      seed: seed of voices and speeds.
      max_error: highest word (Mandarin: character) error rate of a part.
      writer: a language model that rewrites texts as they are read aloud and cuts them; the rules
        do where it has no address, or where its reply fails a check (counted as a warning).
    """

    language: str = "en"
    synthesiser: str = "kokoro"
    recogniser: str = "whisper"
    blends: bool = True
    slowest: float = 0.9
    fastest: float = 1.15
    seed: int = 0
    max_error: float = 0.2
    writer: WriterSettings = WriterSettings()

    TOOLS: ClassVar[tuple[str, ...]] = ("synthesiser", "recogniser", "mos")

    def __post_init__(self):
        super().__post_init__()
        check_language(self.language)
        if not 0 < self.slowest <= self.fastest:
            raise ValueError(f"slowest {self.slowest}, fastest {self.fastest}: expected in order")

    @property
    def _writer(self) -> Writer | None:
        """The language model, if there is one; opened on first use."""
        if self.writer.base_url and "_opened" not in self.__dict__:
            self.__dict__["_opened"] = Writer(self.writer)
        return self.__dict__.get("_opened")

    def divide_text(self, text: str, language: str, where: str) -> tuple[list[str], list[Notice]]:
        """Cut a tidy text into parts at natural places; also notes what the model did badly."""
        pieces, notices = [], []
        if model := self._writer:
            for line in text.split("\n"):
                if self.writer.normalise:
                    line, problem = model.normalise(line, language)
                    if problem:
                        notices.append(Notice(where, "normalised by the rules", problem))
                cut, problem = model.segment(line, language, self.parts)
                if problem:
                    notices.append(Notice(where, "cut by the rules", problem))
                pieces += cut or segment(line, language, self.parts)
        else:
            pieces = segment(text, language, self.parts)
        space = language_pack(language).space
        return [space.join(piece.strip().split("\n")) for piece in pieces], notices

    def speak(
        self, where: str, text: str, voice: str, speed: float, language: str
    ) -> Take | Rejection:
        """Speak a text and listen to it; the error rate is not judged here."""
        try:
            spoken = self.tool("synthesiser").speak(text, voice, speed)
        except SpeechToolError as error:
            return Rejection(where, "not spoken", f"{text[:80]!r}: {error}")
        wave_S, rate = spoken.wave_S, spoken.rate
        seconds = len(wave_S) / rate
        if seconds > _LONGEST:
            detail = f"{text[:80]!r}, expected at most {_LONGEST} s"
            return Rejection(where, "too long a part", detail, seconds)
        if problem := self.find_poor(wave_S, rate):
            return Rejection(where, problem[0], f"{problem[1]}: {text[:80]!r}", seconds)
        heard, error = "", 0.0
        if self.recogniser:
            heard = self.tool("recogniser").recognise(wave_S, rate, language).text
            error = error_rate(text, heard, language)
        audio, seconds = encode_speech(wave_S, rate, self.coding)
        part = Part(text=text, audio=audio, seconds=seconds, speaker=voice, words=spoken.words)
        return Take(part, heard, error)

    def reject_misheard(self, where: str, take: Take) -> Rejection:
        """The rejection of a take whose error rate is too high."""
        detail = f"{take.error:.2f} in {take.part.text[:80]!r}, heard {take.heard[:80]!r}"
        return Rejection(where, "misheard", detail, take.part.seconds)


def find_unfit(text: str, language: str) -> str:
    """The reason not to speak a text, or ""."""
    if problem := find_unspeakable(text):
        return problem
    return "other language" if script_share(text, language) < _SCRIPT else ""
