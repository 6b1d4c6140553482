"""Checks of waveforms."""

import numpy as np
import pytest

from ba_jax.audio import check_wave
from tests.unit.audio.test_read import refused, speech


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (np.zeros(399, np.float32), ("399 samples", "at least 400")),
        (np.zeros((400, 2), np.float32), ("(400, 2)", "mono")),
        (np.zeros(400, np.int16), ("int16", "floating")),
        (np.full(400, np.nan), ("clip.wav: sample 0 is nan",)),
    ],
)
def test_check_wave_refuses(wave, words):
    with refused(*words):
        check_wave(wave, min_samples=400, name="clip.wav")


def test_check_wave_accepts_valid_waves():
    wave = speech()
    assert check_wave(wave) is wave
