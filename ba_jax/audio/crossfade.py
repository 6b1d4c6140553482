"""Joins the waves of consecutive segments with a short linear cross-fade (architecture.md, 9).

Two segments longer than the fade are faded into each other; others are laid end to end. "clean"
overlaps and adds: a joint takes `fade` samples away. "reference" does what the public demos do:
they put the faded samples between two whole segments, so that 10 ms are heard again at each joint.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FADE_SECONDS = 0.01
MODES = ("clean", "reference")


def fade_samples(rate: int) -> int:
    """Samples of a cross-fade of FADE_SECONDS: 240 at 24 kHz."""
    return round(rate * FADE_SECONDS)


def join(waves: Iterable[np.ndarray], *, fade: int = 240, mode: str = "clean") -> np.ndarray:
    """One wave (S,), float32, of segments (S_i,).

    Two segments of 1000 samples give 1760 with "clean", 2240 with "reference".

    Raises:
      ValueError: an unknown mode, fade < 0, or a segment that is not mono.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: expected one of {MODES}")
    if mode == "reference":
        return _insert(waves, fade)
    fader = Crossfader(fade)
    parts = []
    for wave_S in waves:
        parts += [fader.push(wave_S), fader.next()]
    return np.concatenate([*parts, fader.finish()])


class Crossfader:
    """The clean join of segments that come in pieces.

    What `push`, `next` and `finish` return, one after the other, is what `join` gives of the whole
    segments, bit for bit, however they are cut. At most `fade` samples of what was pushed, and as
    many of the segment before, are held back.

    Args:
      fade: samples of a cross-fade.

    Raises:
      ValueError: fade < 0.
    """

    def __init__(self, fade: int = 240):
        self.fade = fade
        self._rise_S, self._fall_S = _ramps(fade)
        self._tail_S = _NONE  # end of the segment before, to be faded out
        self._held_S = _NONE  # of this segment
        self._count = 0  # samples of this segment so far
        self._joined = False  # this segment's beginning was settled
        self._closed = False

    def push(self, piece_S: np.ndarray) -> np.ndarray:
        """Takes a piece of the present segment, of any length; gives samples that are final.

        Raises:
          ValueError: not mono, or after `finish`.
        """
        self._check_open()
        piece_S = _mono(piece_S)
        self._count += len(piece_S)
        self._held_S = np.concatenate([self._held_S, piece_S])
        if not self._joined:
            if len(self._tail_S) and self._count <= self.fade:
                return _NONE  # too short to know whether it will be faded in
            if len(self._tail_S):
                head_S = self._held_S[: self.fade]
                head_S[:] = self._tail_S * self._fall_S + head_S * self._rise_S
                self._tail_S = _NONE
            self._joined = True
        ready = max(0, len(self._held_S) - self.fade)
        given_S, self._held_S = self._held_S[:ready], self._held_S[ready:]
        return given_S

    def next(self) -> np.ndarray:
        """Ends the present segment; what is pushed from now on belongs to the next one.

        Raises:
          ValueError: after `finish`.
        """
        self._check_open()
        given_S = _NONE
        if self._count > self.fade:
            self._tail_S = self._held_S
        elif self._count:  # laid end to end on both sides
            given_S = np.concatenate([self._tail_S, self._held_S])
            self._tail_S = _NONE
        self._held_S, self._count, self._joined = _NONE, 0, False
        return given_S

    def finish(self) -> np.ndarray:
        """Ends the last segment; gives all that was held back.

        Raises:
          ValueError: the second time.
        """
        given_S = np.concatenate([self.next(), self._tail_S])
        self._tail_S, self._closed = _NONE, True
        return given_S

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the cross-fade was finished: expected no more samples")


def _insert(waves: Iterable[np.ndarray], fade: int) -> np.ndarray:
    rise_S, fall_S = _ramps(fade)
    parts: list[np.ndarray] = []
    before_S = _NONE
    for wave_S in map(_mono, waves):
        if len(before_S) > fade and len(wave_S) > fade > 0:
            parts.append(before_S[-fade:] * fall_S + wave_S[:fade] * rise_S)
        parts.append(wave_S)
        before_S = wave_S
    return np.concatenate(parts) if parts else _NONE


def _ramps(fade: int) -> tuple[np.ndarray, np.ndarray]:
    if fade < 0:
        raise ValueError(f"fade of {fade} samples: expected at least 0")
    rise_S = np.linspace(0, 1, fade, dtype=np.float32)
    return rise_S, 1 - rise_S


def _mono(wave_S: np.ndarray) -> np.ndarray:
    wave_S = np.asarray(wave_S, np.float32)
    if wave_S.ndim != 1:
        raise ValueError(f"wave of shape {wave_S.shape}: expected (samples,)")
    return wave_S


_NONE = np.zeros(0, np.float32)
