"""Voices of the embedded corpus: Kokoro's, and averages of two of one accent, "a+b"."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from ba_jax.corpora.interleave.voices import HELD_OUT
from ba_jax.data.record import LANGUAGES
from ba_jax.speech.languages import PACKS

_PREFIXES = {"en": ("a", "b"), "zh": ("z",)}

ASSISTANT: Mapping[str, str] = {language: PACKS[language].voice for language in LANGUAGES}
"""The voice of the answers, in every split: a trained model answers in it."""

# English without the whispering af_nicole and novelties; Mandarin without zf_xiaoni, which Whisper
# hears badly.
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "en": tuple(
        (
            "af_heart af_alloy af_aoede af_bella af_jessica af_kore af_nova af_river af_sarah "
            "af_sky am_echo am_eric am_fenrir am_liam am_michael am_onyx am_puck "
            "bf_alice bf_isabella bf_lily bm_daniel bm_fable bm_george bm_lewis"
        ).split()
    ),
    "zh": tuple("zf_xiaoxiao zf_xiaoyi zm_yunjian zm_yunxia zm_yunyang".split()),
}
_AVERAGES: Mapping[str, tuple[str, ...]] = {
    "en": ("af_bella+am_michael", "af_nova+am_puck", "af_sky+am_onyx", "bf_isabella+bm_george"),
    "zh": tuple("+".join(pair) for pair in itertools.combinations(_SINGLE["zh"], 2)),
}

SPEEDS = (0.9, 1.0, 1.05, 1.1, 1.15)
_TRIES = 4

Takes = tuple[tuple[str, float], ...]
"""(voice, speed) pairs to try in order, until the recogniser understands a pair."""


def test_voices(language: str) -> tuple[str, ...]:
    """The voices of the test split, which are never trained on."""
    return tuple(voice for voice in HELD_OUT if voice.startswith(_PREFIXES[language]))


def split_voices(language: str, split: str) -> tuple[str, ...]:
    """The voices of a split: "test" has the held-out ones, any other split those of training."""
    return test_voices(language) if split == "test" else training_voices(language)


def training_voices(language: str) -> tuple[str, ...]:
    """All voices of the training and validation splits."""
    return (*_SINGLE[language], *_AVERAGES[language])


def members(voice: str) -> tuple[str, ...]:
    """The voices that a name averages: "a+b" -> (a, b)."""
    return tuple(voice.split("+"))


def answer_takes(language: str) -> Takes:
    """The assistant's takes, normal speed first: equal answers sound equal."""
    return tuple((ASSISTANT[language], speed) for speed in (1.0, 1.05, 0.95, 1.1))


class Casting:
    """Assigns voices in turns, so that all speak equally often, with random speeds."""

    def __init__(self, voices: Sequence[str], seed: str):
        self._random = random.Random(seed)
        self._voices = list(voices)
        self._random.shuffle(self._voices)
        self._next = 0

    def takes(self) -> Takes:
        """The next voice, followed by others to try if it is not understood."""
        voices = itertools.islice(itertools.cycle(self._voices), self._next, self._next + _TRIES)
        takes = tuple((voice, self._random.choice(SPEEDS)) for voice in voices)
        self._next = (self._next + 1) % len(self._voices)
        return takes
