"""Voice activity detection with Silero's network, from the file in faster-whisper."""

from __future__ import annotations

import numpy as np

from ba_jax.speech.interfaces import SpeechToolError, import_tool
from ba_jax.speech.waves import RATE, to_16k


class Silero:
    """Finds speech.

    Args:
      threshold: least probability of speech.
      min_speech: seconds; shorter stretches are dropped.
      min_silence: seconds; shorter pauses do not end a stretch.
      padding: seconds added at both ends of a stretch.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        min_speech: float = 0.1,
        min_silence: float = 0.3,
        padding: float = 0.05,
    ):
        if not 0 < threshold < 1:
            raise SpeechToolError(f"threshold {threshold}, expected more than 0, less than 1")
        if min(min_speech, min_silence, padding) < 0:
            raise SpeechToolError("min_speech, min_silence and padding: expected 0 or more seconds")
        self._options = {
            "threshold": threshold,
            "min_speech_duration_ms": round(min_speech * 1000),
            "min_silence_duration_ms": round(min_silence * 1000),
            "speech_pad_ms": round(padding * 1000),
        }

    def speech(self, wave_S: np.ndarray, rate: int) -> list[tuple[float, float]]:
        """(start, end) of each stretch of speech, in order and disjoint."""
        vad = import_tool("faster_whisper.vad", "faster-whisper")
        wave_S = to_16k(wave_S, rate)
        timestamps = vad.get_speech_timestamps(wave_S, vad.VadOptions(**self._options))
        stretches: list[tuple[float, float]] = []
        for stretch in timestamps:
            start, end = stretch["start"] / RATE, stretch["end"] / RATE
            if stretches and start <= stretches[-1][1]:  # their paddings touch
                stretches[-1] = (stretches[-1][0], end)
            else:
                stretches.append((start, end))
        return stretches
