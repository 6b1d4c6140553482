"""A language of tones, which small fake tools can really recognise.

A word is a tone of its own pitch; a voice speaks all of them in its own band. The tools take
nothing but the wave: they find bursts of tone and read their pitch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ba_jax.data.record import Word
from ba_jax.speech.interfaces import Heard, Spoken

RATE = 16000
WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night "
    "point home water room mother area money story fact month lot right study book eye job word "
    "business issue side kind head house service friend father power hour game line end"
).split()
BANDS = {"ann": 600.0, "bob": 2400.0, "eve": 4200.0}  # Hz, of the first word
_STEP = 20.0  # Hz between two words
WORD_SECONDS, GAP, PAUSE = 0.25, 0.06, 0.4


def tone(word: str, voice: str, seconds: float = WORD_SECONDS, level: float = 0.3) -> np.ndarray:
    """One word."""
    pitch = BANDS[voice] + _STEP * WORDS.index(word)
    return level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)


def silence(seconds: float) -> np.ndarray:
    """Silence between words."""
    return np.zeros(round(seconds * RATE))


def say(sentences: Sequence[str], voice: str, level: float = 0.3) -> np.ndarray:
    """Sentences with a pause after each."""
    pieces = []
    for sentence in sentences:
        for word in sentence.lower().strip(".").split():
            pieces += [tone(word, voice, level=level), silence(GAP)]
        pieces += [silence(PAUSE - GAP)]
    return np.concatenate(pieces)


def sentences(count: int, length: int = 6, seed: int = 0) -> list[str]:
    """Random sentences without repeated words."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(count):
        chosen = rng.choice(len(WORDS), length, replace=False)
        results.append(" ".join(WORDS[i] for i in chosen).capitalize() + ".")
    return results


def with_noise(wave_S: np.ndarray, level: float = 1e-3, seed: int = 0) -> np.ndarray:
    """The wave as float32, with noise added."""
    noise_S = np.random.default_rng(seed).standard_normal(len(wave_S))
    return (wave_S + level * noise_S).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Burst:
    """A recognised word."""

    word: str
    voice: str
    start: float
    end: float
    level: float


def bursts(wave_S: np.ndarray, rate: int) -> list[Burst]:
    """The words in a wave."""
    hop = rate // 100
    count = len(wave_S) // hop
    level_T = np.sqrt(np.square(wave_S[: count * hop].reshape(count, hop)).mean(axis=1))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (level_T > 0.02).astype(int), [0]])))
    results = []
    for a, b in edges.reshape(-1, 2):
        piece_S = wave_S[a * hop : b * hop]
        if len(piece_S) < 0.1 * rate:
            continue
        power_F = np.square(np.abs(np.fft.rfft(piece_S, 1 << 15)))
        peak = int(np.argmax(power_F))
        near = power_F[max(0, peak - 40) : peak + 41].sum()
        if near < 0.3 * power_F.sum():
            continue  # noise
        pitch = peak * rate / (1 << 15)
        voice = min(BANDS, key=lambda v: abs(pitch - BANDS[v] - 600))
        number = min(len(WORDS) - 1, max(0, round((pitch - BANDS[voice]) / _STEP)))
        level = float(level_T[a:b].max())
        results.append(
            Burst(WORDS[number], voice, float(a) * hop / rate, float(b) * hop / rate, level)
        )
    return results


class Vad:
    """Joins words with less than 0.1 s between them, like Silero."""

    def __init__(self):
        self.longest = 0.0

    def speech(self, wave_S, rate):
        self.longest = max(self.longest, len(wave_S) / rate)
        spans: list[tuple[float, float]] = []
        for burst in bursts(wave_S, rate):
            if spans and burst.start - spans[-1][1] < 0.1:
                spans[-1] = (spans[-1][0], burst.end)
            else:
                spans.append((burst.start, burst.end))
        return spans


class SpeakerEncoder:
    """Time spoken by each voice."""

    def embed(self, wave_S, rate):
        power_F = np.square(np.abs(np.fft.rfft(wave_S)))
        pitch_F = np.fft.rfftfreq(len(wave_S), 1 / rate)
        shares = [power_F[(pitch_F > b - 100) & (pitch_F < b + 1500)].sum() for b in BANDS.values()]
        return (np.array(shares) / max(np.linalg.norm(shares), 1e-9)).astype(np.float32)


class Recogniser:
    """Recognises English; a pause ends a sentence. Quiet speech has a low confidence."""

    def __init__(self, misheard: Mapping[str, str] | None = None):
        self.misheard = misheard or {}

    def recognise(self, wave_S, rate, language):
        assert len(wave_S) <= 30 * rate
        heard = bursts(wave_S, rate)
        if language == "zh":
            return Heard("天" * len(heard), (), 0.4, 0.1)
        pieces, is_start = [], True
        for i, burst in enumerate(heard):
            word = self.misheard.get(burst.word, burst.word)
            word = word.capitalize() if is_start else word
            is_start = i + 1 == len(heard) or heard[i + 1].start - burst.end > 0.2
            pieces.append(word + "." * is_start)
        loud = bool(heard) and min(burst.level for burst in heard) > 0.1
        words = tuple(Word(p, b.start, b.end) for p, b in zip(pieces, heard, strict=True))
        return Heard(" ".join(pieces), words, 0.9 if loud else 0.3, 0.05 if heard else 0.95)


class Aligner:
    """Gives the words of a text the times of the bursts."""

    def align(self, wave_S, rate, text, language):
        heard = bursts(wave_S, rate)
        return tuple(Word(t, b.start, b.end) for t, b in zip(text.split(), heard, strict=True))


class Synthesiser:
    """Speaks the words it knows."""

    voices = {"ann": "en", "bob": "en", "am_adam": "en", "eve": "zh"}

    def __init__(self):
        self.said: list[tuple[str, str, float]] = []

    def speak(self, text, voice, speed=1.0):
        self.said.append((text, voice, speed))
        band = voice if voice in BANDS else "bob"
        pieces, words, now = [silence(0.1)], [], 0.1
        for word in text.split():
            plain = word.lower().strip(",.")
            piece_S = tone(plain, band, WORD_SECONDS / speed)
            words.append(Word(word, now, now + len(piece_S) / RATE))
            pause = PAUSE if word[-1] in ",." else GAP
            pieces += [piece_S, silence(pause)]
            now += (len(piece_S) + len(pieces[-1])) / RATE
        return Spoken(np.concatenate(pieces).astype(np.float32), RATE, tuple(words))
