"""What every speech tool does with the wave that it is given."""

from __future__ import annotations

import numpy as np

from ba_jax.audio import AudioError, check_wave, resample
from ba_jax.data.speech.interfaces import SpeechToolError

RATE = 16000
"""Hz that all tools listen at."""


def to_16k(wave_S: np.ndarray, rate: int, *, min_samples: int = 1) -> np.ndarray:
    """A wave as float32 (S,) at 16 kHz.

    Raises:
      SpeechToolError: not a mono floating wave, fewer samples, NaN or Inf, or no rate.
    """
    try:
        return resample(check_wave(wave_S, min_samples=min_samples), rate, RATE)
    except (AudioError, ValueError) as error:
        raise SpeechToolError(str(error)) from error
