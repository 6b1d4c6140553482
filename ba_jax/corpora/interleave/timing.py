"""Words of a transcript with their times, and parts that begin and end in pauses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ba_jax.corpora.interleave.cuts import best_cuts
from ba_jax.corpora.interleave.text import CLAUSE, SENTENCE, Lengths, find_breaks
from ba_jax.data.record import Word
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.languages import language_pack

PAUSE = 0.12
"""Seconds; shorter gaps in the sound are closures of plosives, not pauses."""

LONG_PAUSE = 0.3
"""Seconds; the shortest pause for a cut without punctuation."""

_OPENERS = "“‘「『《（([【"
_COST = {SENTENCE: 0.0, CLAUSE: 0.15, 0: 1.0}  # of a cut, by the break in the text


def locate(text: str, words: Sequence[Word]) -> tuple[Word, ...]:
    """Assign every character of a text to one of its words; the times stay.

    Punctuation and white space go to the word before them, opening quotes and brackets to the word
    after them. Only letters and digits are compared, so that words may have punctuation or not;
    words without letters and digits are dropped. Times out of order, or a word that does not match
    the text at its place, raise SpeechToolError.
    """
    spans = []  # of the letters of each word
    at = 0
    for word in words:
        letters = [c.casefold() for c in word.text if c.isalnum()]
        if not letters:
            continue
        first, before = None, at
        for letter in letters:
            while at < len(text) and not text[at].isalnum():
                at += 1
            if at == len(text) or text[at].casefold() != letter:
                place = text[before : before + 20].strip()
                raise SpeechToolError(f"word {word.text!r}: expected it at {place!r}")
            first = at if first is None else first
            at += 1
        if not (math.isfinite(word.start) and math.isfinite(word.end) and word.start <= word.end):
            raise SpeechToolError(f"word {word.text!r}: {word.start} to {word.end} s")
        if spans and word.start < spans[-1][2].start:
            raise SpeechToolError(f"word {word.text!r} at {word.start} s, before the last one")
        spans.append((first, at, word))
    if any(c.isalnum() for c in text[at:]):
        raise SpeechToolError(f"no word for {text[at : at + 20].strip()!r}")
    if not spans:
        raise SpeechToolError(f"{text!r}: no words")
    bounds = [0]
    for (_, end, _), (start, _, _) in zip(spans, spans[1:], strict=False):
        bounds.append(_boundary(text, end, start))
    bounds.append(len(text))
    return tuple(
        Word(text[a:b], word.start, word.end)
        for a, b, (_, _, word) in zip(bounds, bounds[1:], spans, strict=False)
    )


def _boundary(text: str, end: int, start: int) -> int:
    """The offset between two words' letters at which the first word's punctuation ends."""
    for i in range(start, end, -1):
        if text[i - 1].isspace():
            return i
    for i in range(end, start):
        if text[i] in _OPENERS:
            return i
    return start


def join(utterances: Sequence[Sequence[Word]], language: str) -> tuple[Word, ...]:
    """Concatenate the words of consecutive utterances, with the language's space between them."""
    joined: list[Word] = []
    for words in utterances:
        if (
            joined
            and language_pack(language).is_spaced
            and words
            and not joined[-1].text[-1:].isspace()
        ):
            joined[-1] = dataclasses.replace(joined[-1], text=joined[-1].text + " ")
        joined += words
    return tuple(joined)


def loudness(wave_S: np.ndarray, rate: int, window: float = 0.03) -> tuple[np.ndarray, float]:
    """Level in dB of each window, and the seconds from one to the next (a third of a window)."""
    hop = max(1, int(rate * window / 3))
    count = max(1, len(wave_S) // hop)
    padded_S = np.zeros(count * hop, np.float64)
    padded_S[: len(wave_S)] = wave_S[: len(padded_S)]
    power_T = np.square(padded_S.reshape(count, hop)).mean(axis=1)
    smooth_T = np.convolve(power_T, np.full(3, 1 / 3), mode="same")
    return 10 * np.log10(smooth_T + 1e-10), hop / rate


def find_pauses(wave_S: np.ndarray, rate: int) -> list[tuple[float, float]]:
    """Find the pauses, (start, end) in seconds, of mostly speech of a single voice.

    A pause is quieter than 35 dB below the loud (95th percentile) windows, or, in noise, than the
    floor (the quietest tenth of a second) plus a third of the range between the two. Speech less
    than 8 dB above the noise has no pauses.
    """
    level_T, hop = loudness(wave_S, rate)
    loud = float(np.percentile(level_T, 95))
    tenth = max(1, min(len(level_T), round(0.1 / hop)))
    means_T = np.convolve(level_T, np.full(tenth, 1 / tenth), mode="valid")
    floor = float(means_T.min())
    if loud - floor < 8:
        return []
    is_quiet_T = level_T < max(loud - 35, floor + (loud - floor) / 3)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_quiet_T.astype(np.int8), [0]])))
    spans = [(a * hop, b * hop) for a, b in edges.reshape(-1, 2)]
    return [(a, b) for a, b in spans if b - a >= PAUSE]


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A piece of a recording that becomes a part; times are seconds in the recording.

    The texts of its words join to the part's text.
    """

    words: tuple[Word, ...]
    start: float
    end: float

    @property
    def text(self) -> str:
        """The transcript, without white space at its end."""
        return "".join(word.text for word in self.words).rstrip()

    @property
    def seconds(self) -> float:
        """Length of the piece."""
        return self.end - self.start

    def words_for_record(self, language: str) -> tuple[Word, ...]:
        """The words in the form of records: times from the part's start, joining to `text`.

        English words have no white space (`speech.text_norm.join_words` restores it).
        """
        last = len(self.words) - 1
        return tuple(
            Word(
                w.text.strip() if language == "en" or i == last else w.text,
                min(max(0.0, w.start - self.start), self.seconds),
                min(max(0.0, w.end - self.start), self.seconds),
            )
            for i, w in enumerate(self.words)
        )


def cut_into_parts(
    words: Sequence[Word],
    pauses: Sequence[tuple[float, float]],
    language: str,
    *,
    start: float,
    end: float,
    lengths: Lengths,
) -> list[Stretch]:
    """Cut speech of one voice at punctuation and pauses into parts without gaps between them.

    A cut between two words needs a pause between their middles (word times are off by some tens of
    milliseconds, the sound is not) and lies in the middle of the longest such pause; without
    punctuation the pause must be long. The target is at most half of the whole, to get two parts;
    speech without pauses makes longer parts.

    Args:
      words: their texts join to the text.
      pauses: see `find_pauses`, in seconds in the recording.
      start, end: bounds of the speech in the recording.
    """
    if not words:
        return []
    text = "".join(word.text for word in words)
    breaks = find_breaks(text, language)
    # Place and cost of a cut after word i.
    places, costs = [], []
    offset, first = 0, 0
    for left, right in zip(words, words[1:], strict=False):
        offset += len(left.text)
        low, high = (left.start + left.end) / 2, (right.start + right.end) / 2
        while first < len(pauses) and pauses[first][1] <= low:
            first += 1
        best = (0.0, math.nan)
        for a, b in pauses[first:]:
            if a >= high:
                break
            a, b = max(a, low), min(b, high)
            best = max(best, (b - a, (a + b) / 2))
        length, place = best
        strength = min(breaks.get(offset, 0), SENTENCE)
        is_pause = length >= (PAUSE if strength else LONG_PAUSE)
        costs.append(_COST[strength] + 0.3 * (1 - min(length, 0.6) / 0.6) if is_pause else math.inf)
        places.append(place)
    # A unit lies between two consecutive possible cuts.
    allowed = [i for i, cost in enumerate(costs) if not math.isinf(cost)]
    marks = [start, *(places[i] for i in allowed), end]
    ends = best_cuts(
        np.maximum(np.diff(marks), 0),
        [*(costs[i] for i in allowed), 0.0],
        target=max(lengths.low, min(lengths.target, (end - start) / 2)),
        low=lengths.low,
        high=lengths.high,
    )
    bounds = [0, *(i + 1 for i in allowed), len(words)]
    parts, begin = [], 0
    for stop in ends:
        part = tuple(words[bounds[begin] : bounds[stop]])
        parts.append(Stretch(part, float(marks[begin]), float(marks[stop])))
        begin = stop
    return parts
