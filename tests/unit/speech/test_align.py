"""Alignment: refused texts and waves."""

from __future__ import annotations

import numpy as np
import pytest

from ba_jax.speech.align import PocketSphinxAligner, WhisperAligner
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.waves import RATE


def wave(seconds: float) -> np.ndarray:
    return np.full(round(seconds * RATE), 0.1, np.float32)


def test_texts_that_cannot_be_aligned_are_refused():
    for aligner in (PocketSphinxAligner(), WhisperAligner("nowhere")):
        with pytest.raises(SpeechToolError, match="says nothing"):
            aligner.align(wave(1.0), RATE, "...", "en")
        with pytest.raises(SpeechToolError, match="0.050 s, expected at least 0.1 s"):
            aligner.align(wave(0.05), RATE, "Hello", "en")
    with pytest.raises(SpeechToolError, match="'fr'"):
        PocketSphinxAligner().align(wave(1.0), RATE, "Bonjour", "fr")
    with pytest.raises(SpeechToolError, match="0.2 s of speech do not say 'Hello there"):
        PocketSphinxAligner().align(wave(0.2), RATE, "Hello there, my friends.", "en")
