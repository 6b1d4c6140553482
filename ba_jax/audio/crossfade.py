"""Joining the waves of consecutive segments with a short linear cross-fade.

Two segments longer than the fade overlap by `fade` samples; shorter ones are laid end to end. (The
public demos insert the faded samples between two whole segments, which repeats 10 ms.)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FADE_SECONDS = 0.01


def fade_samples(rate: int) -> int:
    """Samples of a cross-fade of FADE_SECONDS: 240 at 24 kHz."""
    return round(rate * FADE_SECONDS)


def join(waves: Iterable[np.ndarray], *, fade: int = 240) -> np.ndarray:
    """Join segments (S_i,) into one wave (S,), float32: two of 1000 samples give 1760.

    Raises:
      ValueError: fade < 0, or a segment that is not mono.
    """
    fader = Crossfader(fade)
    parts = []
    for wave_S in waves:
        parts += [fader.push(wave_S), fader.end_segment()]
    return np.concatenate([*parts, fader.finish()])


class Crossfader:
    """The join of segments that arrive in pieces.

    The results of `push`, `end_segment` and `finish`, concatenated, equal `join` of the whole
    segments bit for bit, however they are cut. At most `fade` samples of the current segment and
    `fade` of the previous one are held back.

    Args:
      fade: samples of a cross-fade.

    Raises:
      ValueError: fade < 0.
    """

    def __init__(self, fade: int = 240):
        self.fade = fade
        self._rise_S, self._fall_S = _ramps(fade)
        self._tail_S = _EMPTY  # end of the previous segment, to be faded out
        self._held_S = _EMPTY  # of the current segment
        self._count = 0  # samples of the current segment so far
        self._joined = False  # the start of the current segment is final
        self._closed = False

    def push(self, piece_S: np.ndarray) -> np.ndarray:
        """Add a piece of the current segment, of any length; return the samples that are final.

        Raises:
          ValueError: not mono, or after `finish`.
        """
        self._check_open()
        piece_S = _to_mono(piece_S)
        self._count += len(piece_S)
        self._held_S = np.concatenate([self._held_S, piece_S])
        if not self._joined:
            if len(self._tail_S) and self._count <= self.fade:
                return _EMPTY  # too short to know whether it will be faded in
            if len(self._tail_S):
                head_S = self._held_S[: self.fade]
                head_S[:] = self._tail_S * self._fall_S + head_S * self._rise_S
                self._tail_S = _EMPTY
            self._joined = True
        ready = max(0, len(self._held_S) - self.fade)
        final_S, self._held_S = self._held_S[:ready], self._held_S[ready:]
        return final_S

    def end_segment(self) -> np.ndarray:
        """End the current segment, so that the next `push` starts another; return final samples.

        Raises:
          ValueError: after `finish`.
        """
        self._check_open()
        final_S = _EMPTY
        if self._count > self.fade:
            self._tail_S = self._held_S
        elif self._count:  # laid end to end on both sides
            final_S = np.concatenate([self._tail_S, self._held_S])
            self._tail_S = _EMPTY
        self._held_S, self._count, self._joined = _EMPTY, 0, False
        return final_S

    def finish(self) -> np.ndarray:
        """End the last segment; return all samples that were held back.

        Raises:
          ValueError: if called twice.
        """
        final_S = np.concatenate([self.end_segment(), self._tail_S])
        self._tail_S, self._closed = _EMPTY, True
        return final_S

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the cross-fade was finished: expected no more samples")


def _ramps(fade: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (fade,) that fade in and out."""
    if fade < 0:
        raise ValueError(f"fade of {fade} samples: expected at least 0")
    rise_S = np.linspace(0, 1, fade, dtype=np.float32)
    return rise_S, 1 - rise_S


def _to_mono(wave_S: np.ndarray) -> np.ndarray:
    wave_S = np.asarray(wave_S, np.float32)
    if wave_S.ndim != 1:
        raise ValueError(f"wave of shape {wave_S.shape}: expected (samples,)")
    return wave_S


_EMPTY = np.zeros(0, np.float32)
