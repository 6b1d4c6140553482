"""The speech tools that data is made with, each behind one small interface.

Waves are float32 (S,) in [-1, 1] at `rate` Hz, times are in seconds. Implementations raise
`SpeechToolError` where they are not installed or were given what they cannot use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ba_jax.data.record import Word


class SpeechToolError(RuntimeError):
    """A tool that is missing, or an input that it cannot use."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Synthesised speech.

    Attributes:
      wave_S: float32.
      rate: Hz.
      words: when each word (in Mandarin each character) is said; they join to the text.
    """

    wave_S: np.ndarray
    rate: int
    words: tuple[Word, ...]


@dataclasses.dataclass(frozen=True)
class Heard:
    """Recognised speech.

    Attributes:
      text: in simplified characters where it is Mandarin.
      words: with their times.
      confidence: mean probability of its tokens, 0 to 1.
      no_speech: probability that nobody speaks, 0 to 1.
    """

    text: str
    words: tuple[Word, ...]
    confidence: float
    no_speech: float


class Synthesiser(Protocol):
    """Text to speech."""

    voices: Mapping[str, str]
    """Voice -> its language."""

    def speak(self, text: str, voice: str, speed: float = 1.0) -> Spoken:
        """Says a text of one or two sentences, in the voice's language."""
        ...


class Recogniser(Protocol):
    """Speech to text."""

    def recognise(self, wave_S: np.ndarray, rate: int, language: str) -> Heard:
        """Up to 30 seconds of speech in a language."""
        ...


class Aligner(Protocol):
    """Finds when the words of a known text are said."""

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        """Words (in Mandarin characters) of the text in order, with times."""
        ...


class VoiceActivity(Protocol):
    """Finds where somebody speaks."""

    def speech(self, wave_S: np.ndarray, rate: int) -> list[tuple[float, float]]:
        """(start, end) of each stretch of speech, in order, apart from each other."""
        ...


class SpeakerEncoder(Protocol):
    """Tells voices apart."""

    def embed(self, wave_S: np.ndarray, rate: int) -> np.ndarray:
        """A unit vector (D,), float32; the cosine of two tells how alike the voices are."""
        ...
