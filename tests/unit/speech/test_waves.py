"""Waves at the rate of the tools."""

from __future__ import annotations

import numpy as np
import pytest

from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.waves import to_16k


def test_waves_are_resampled():
    assert len(to_16k(np.zeros(24000, np.float32), 24000)) == 16000
    with pytest.raises(SpeechToolError, match="rate"):
        to_16k(np.zeros(100, np.float32), 0)
