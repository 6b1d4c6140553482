"""Waves that DNSMOS cannot rate; `tests/unit/evals/scoring/test_sound.py` rates real ones."""

import numpy as np
import pytest

from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.opinion import Dnsmos


@pytest.mark.parametrize(
    "seconds, reason", [(0.1, "0.100 s, expected at least 0.25 s"), (1.0, "silence")]
)
def test_waves_that_cannot_be_rated(seconds, reason):
    with pytest.raises(SpeechToolError, match=reason):
        Dnsmos().rate(np.zeros(round(8000 * seconds), np.float32), 8000)
