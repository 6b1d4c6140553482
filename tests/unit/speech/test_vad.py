"""Voice activity."""

from __future__ import annotations

import numpy as np
import pytest

from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.vad import Silero
from ba_jax.speech.waves import RATE


def test_silence_has_no_speech_and_options_are_checked():
    assert Silero().speech(np.zeros(RATE * 2, np.float32), RATE) == []
    noise_S = np.random.default_rng(0).normal(0, 0.01, RATE * 2).astype(np.float32)
    assert Silero().speech(noise_S, 16000) == []
    with pytest.raises(SpeechToolError, match="threshold 2"):
        Silero(threshold=2)
    with pytest.raises(SpeechToolError, match="0 or more"):
        Silero(padding=-1)
