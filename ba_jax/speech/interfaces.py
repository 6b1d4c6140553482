"""Interfaces of the speech tools.

Waves are float32 (S,) in [-1, 1] at `rate` Hz, times are in seconds. Implementations raise
`SpeechToolError` if they are not installed or cannot use their input.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ba_jax.data.record import Word


class SpeechToolError(RuntimeError):
    """A missing tool, or an input that it cannot use."""


def import_tool(module: str, package: str) -> types.ModuleType:
    """Import a module of an optional package, or raise SpeechToolError that names the package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        name = package.split("[")[0]
        raise SpeechToolError(f"{name} is not installed: pip install '{package}'") from None


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Synthesised speech; the words (in Mandarin the characters) join to the text."""

    wave_S: np.ndarray
    rate: int
    words: tuple[Word, ...]


@dataclasses.dataclass(frozen=True)
class Heard:
    """Recognised speech.

    Attributes:
      text: Mandarin in simplified characters.
      words: words with their times.
      confidence: mean probability of its tokens, 0 to 1.
      no_speech: probability of no speech, 0 to 1.
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
        """Speak a text of one or two sentences, in the voice's language."""
        ...


class Recogniser(Protocol):
    """Speech to text."""

    def recognise(self, wave_S: np.ndarray, rate: int, language: str) -> Heard:
        """Recognise up to 30 seconds of speech in a language."""
        ...


class Aligner(Protocol):
    """Finds the times of the words of a known text."""

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        """Align the words (in Mandarin characters) of the text, in order."""
        ...


class VoiceActivity(Protocol):
    """Finds speech."""

    def speech(self, wave_S: np.ndarray, rate: int) -> list[tuple[float, float]]:
        """(start, end) of each stretch of speech, in order and disjoint."""
        ...


class OpinionPredictor(Protocol):
    """Predicts listeners' opinions of speech."""

    def rate(self, wave_S: np.ndarray, rate: int) -> Mapping[str, float]:
        """Opinions by name, 1 to 5; "dnsmos_overall" is the one that filters go by."""
        ...


class SpeakerEncoder(Protocol):
    """Tells voices apart."""

    def embed(self, wave_S: np.ndarray, rate: int) -> np.ndarray:
        """A unit vector (D,), float32; the cosine of two is the likeness of the voices."""
        ...
