"""Stretches of speech by one voice out of a long recording.

Spans are (start, end) in seconds, in order and disjoint, as returned by a voice activity detector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ba_jax.corpora.interleave.cuts import best_cuts

Span = tuple[float, float]


def merge_spans(spans: Sequence[Span], gap: float) -> list[Span]:
    """Join spans with less than `gap` seconds between them."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and start - merged[-1][1] < gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def divide_span(span: Span, length: float) -> list[Span]:
    """Divide a span into equal pieces, each at least `length` long (or the span itself)."""
    start, end = span
    count = max(1, int((end - start) / length))
    marks = np.linspace(start, end, count + 1)
    return [(float(a), float(b)) for a, b in zip(marks, marks[1:], strict=False)]


def find_split(spans: Sequence[Span], end: float, gap: float) -> float | None:
    """The time at which to end a window of a recording without cutting speech.

    `end` is the window's own, a silence of `gap` seconds ends a turn.

    Returns:
      The middle of the last silence of that length in the second half of the window, else of the
      longest silence there; None if that half has no silence.
    """
    marks = [*spans, (end, end)]
    silences = [
        (b[0] - a[1], (a[1] + b[0]) / 2)
        for a, b in zip(marks, marks[1:], strict=False)
        if (a[1] + b[0]) / 2 >= end / 2 and b[0] > a[1]
    ]
    if not spans:
        return end
    if not silences:
        return None
    long = [middle for length, middle in silences if length >= gap]
    return long[-1] if long else max(silences)[1]


@dataclasses.dataclass(frozen=True)
class Voices:
    """Thresholds of the likeness of voices: cosines of two embeddings.

    The defaults are for Resemblyzer, measured on ten voices of Kokoro's (six English, four
    Mandarin). One piece against three sentences of a voice: 5th percentile of the same voice, 95th
    of the others, and the shares of both on the wrong side of `same`:

        0.8 s   0.70   0.67   30 %    0 %
        1.2 s   0.77   0.70    3 %    1 %
        1.6 s   0.80   0.71    1 %    2 %
        3.2 s   0.88   0.76    0 %    6 %  (alike ones: zm_yunjian and zm_yunyang)

    Both sides of a place in one voice's sentence, in pieces of 1.6 s: 0.63 or more at all of 52.
    Sentences of two voices are over 0.60 in 36 % of pairs and over 0.65 in 23 %: voices that are
    much alike can be mixed without being detected.

    Attributes:
      same: least likeness of a span to the voice before it, to continue that voice.
      mixed: least likeness of both sides of any place within a span of a single voice.
      piece: seconds of a piece.
    """

    same: float = 0.75
    mixed: float = 0.62
    piece: float = 1.6


@dataclasses.dataclass(frozen=True)
class VoiceTurn:
    """Consecutive spans of one voice; `voice_D` is the unit vector of the mean of its pieces."""

    spans: tuple[Span, ...]
    voice_D: np.ndarray


def find_turns(
    spans: Sequence[Span], pieces_SPD: Sequence[np.ndarray], voices: Voices, gap: float
) -> tuple[list[VoiceTurn], list[Span], list[Span]]:
    """Follow the voice from span to span.

    A span too short to tell its voice, or a span of a single piece that is neither clearly the same
    voice nor clearly another, belongs to the turn if the turn's voice continues after it. A silence
    longer than `gap` ends a turn.

    Args:
      pieces_SPD: unit vectors of each span's pieces, (P, D); (0, D) for a span too short for one.

    Returns:
      (turns, spans with several voices, short spans between voices).
    """
    turns: list[VoiceTurn] = []
    mixed: list[Span] = []
    short: list[Span] = []
    members: list[Span] = []
    waiting: list[Span] = []  # short spans after the members
    total_D: np.ndarray | None = None

    def end_turn() -> None:
        nonlocal total_D
        if members:
            turns.append(VoiceTurn(tuple(members), _unit(total_D)))
        short.extend(waiting)
        members.clear()
        waiting.clear()
        total_D = None

    for span, pieces_PD in zip(spans, pieces_SPD, strict=True):
        before = [*members, *waiting]
        if before and span[0] - before[-1][1] > gap:
            end_turn()
        if not len(pieces_PD):
            waiting.append(span)
            continue
        if is_mixed(pieces_PD, voices.mixed):
            end_turn()
            mixed.append(span)
            continue
        # Long spans weigh more: their pieces are more.
        sum_D = pieces_PD.sum(axis=0)
        likeness = -1.0 if total_D is None else float(_unit(sum_D) @ _unit(total_D))
        if voices.mixed <= likeness < voices.same and len(pieces_PD) == 1:
            waiting.append(span)
            continue
        if likeness < voices.same:
            end_turn()
        members += [*waiting, span]
        waiting.clear()
        total_D = sum_D if total_D is None else total_D + sum_D
    end_turn()
    return turns, mixed, short


def is_mixed(pieces_PD: np.ndarray, least: float) -> bool:
    """Whether a span's pieces are of different voices.

    At every place between two pieces the mean of all pieces before is compared with the mean of all
    pieces after it: a change of voice shows at its place, a single odd piece in a long span hardly.
    """
    for cut in range(1, len(pieces_PD)):
        before_D = _unit(pieces_PD[:cut].sum(axis=0))
        after_D = _unit(pieces_PD[cut:].sum(axis=0))
        if float(before_D @ after_D) < least:
            return True
    return False


def _unit(vector_D: np.ndarray) -> np.ndarray:
    return vector_D / max(float(np.linalg.norm(vector_D)), 1e-9)


class VoiceBook:
    """Numbers the voices of a recording in the order of their first appearance."""

    def __init__(self, same: float):
        self._same = same
        self._totals_VD: list[np.ndarray] = []

    def number(self, voice_D: np.ndarray) -> int:
        """The number of the most similar known voice, or a new number."""
        cosines = [float(_unit(total_D) @ voice_D) for total_D in self._totals_VD]
        if cosines and max(cosines) >= self._same:
            best = int(np.argmax(cosines))
            self._totals_VD[best] = self._totals_VD[best] + voice_D
            return best
        self._totals_VD.append(voice_D.copy())
        return len(self._totals_VD) - 1


def pack_utterances(spans: Sequence[Span], target: float, longest: float) -> list[list[Span]]:
    """Group the spans of a turn into utterances for a recogniser, cut at the longer silences.

    `target` and `longest` are seconds, silences inside included. Only a span that is longer itself
    makes a longer utterance.
    """
    if not spans:
        return []
    starts = [start for start, _ in spans]
    lengths = np.diff([*starts, spans[-1][1]])
    silences = [b[0] - a[1] for a, b in zip(spans, spans[1:], strict=False)]
    costs = [0.5 * (1 - min(silence, 1.0)) for silence in silences] + [0.0]
    ends = best_cuts(lengths, costs, target=target, low=0.0, high=longest)
    return [list(spans[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
