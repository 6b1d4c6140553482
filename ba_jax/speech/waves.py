"""Preparation of waves, and edges of sound, for all speech tools."""

from __future__ import annotations

import numpy as np

from ba_jax.audio import AudioError, check_wave, resample
from ba_jax.speech.interfaces import SpeechToolError

RATE = 16000
"""Hz of all tools that listen."""


def to_16k(wave_S: np.ndarray, rate: int, *, min_seconds: float = 0.0) -> np.ndarray:
    """Convert a mono floating wave to float32 (S,) at 16 kHz."""
    try:
        wave_S = resample(check_wave(wave_S), rate, RATE)
    except (AudioError, ValueError) as error:
        raise SpeechToolError(str(error)) from error
    if len(wave_S) < min_seconds * RATE:
        raise SpeechToolError(f"{len(wave_S) / RATE:.3f} s, expected at least {min_seconds} s")
    return wave_S


_FRAMES_A_SECOND = 200
_SILENT_DB = -40.0  # relative to the loudest frame


class SoundEdges:
    """Starts and ends of sound in a wave (S,): frames of 5 ms within 40 dB of the loudest.

    Noise has no silence, so that all times are returned unchanged.
    """

    def __init__(self, wave_S: np.ndarray, rate: int):
        samples = rate // _FRAMES_A_SECOND
        self._frames_a_second = rate / samples
        frames_FS = wave_S[: len(wave_S) // samples * samples].reshape(-1, samples)
        power_F = np.mean(np.square(frames_FS), axis=1)
        self._is_sound_F = power_F >= power_F.max(initial=0.0) * 10 ** (_SILENT_DB / 10)

    def fit(
        self, start: float, end: float, after_pause: bool, before_pause: bool
    ) -> tuple[float, float]:
        """Move the times of a word to its sound where it is beside a pause.

        A silent word keeps its times.
        """
        low, high = (max(0, round(t * self._frames_a_second)) for t in (start, end))
        sounds = low + np.flatnonzero(self._is_sound_F[low:high])
        if after_pause and len(sounds):
            start = max(start, float(sounds[0] / self._frames_a_second))
        if before_pause and len(sounds):
            end = min(end, float((sounds[-1] + 1) / self._frames_a_second))
        return start, end
