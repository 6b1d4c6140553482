"""Conditions: levels, lengths, and what of a record changes."""

import dataclasses
import io

import numpy as np
import pytest

from ba_jax.audio import read_audio, write_audio
from ba_jax.data.record import Part, Record, Word
from ba_jax.evals.conditions import CONDITIONS, change_record, change_wave

RATE = 16_000
WAVE_S = (0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def power(wave_S):
    return float(np.mean(np.square(wave_S, dtype=np.float64)))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_is_a_function_of_wave_and_seed(condition):
    first, again, other = (change_wave(WAVE_S, RATE, condition, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32 and np.abs(first).max() <= 1
    assert np.array_equal(first, other) == (condition in ("clean", "fast"))
    assert not change_wave(np.zeros(RATE, np.float32), RATE, condition, 0).any()


def test_noise_is_10_db_lower():
    noise_S = change_wave(WAVE_S, RATE, "noise", 0) - WAVE_S
    assert 10 * np.log10(power(WAVE_S) / power(noise_S)) == pytest.approx(10, abs=0.5)


def test_fast_is_shorter_and_higher():
    fast_S = change_wave(WAVE_S, RATE, "fast", 0)
    assert len(fast_S) == pytest.approx(RATE / 1.2, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(fast_S))) * RATE / len(fast_S)
    assert peak == pytest.approx(1.2 * 440, abs=3)


def test_far_rings_after_the_sound_and_is_low():
    click_S = np.zeros(RATE, np.float32)
    click_S[:100] = WAVE_S[:100]
    far_S = change_wave(click_S, RATE, "far", 0)
    early, late = power(far_S[1000:2000]), power(far_S[5000:6000])
    # 60 dB in half a second: 30 dB in the quarter between them.
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)
    far_S = change_wave(WAVE_S, RATE, "far", 0)
    level = 10 * np.log10(power(far_S) / power(WAVE_S))
    assert level == pytest.approx(-20 + 10 * np.log10(1 + 10**0.5), abs=3)


def test_all_recordings_but_the_assistants_change():
    file = io.BytesIO()
    write_audio(file, WAVE_S, RATE, "flac")
    codes_NQ, words = np.zeros((12, 2), np.int32), (Word("a", 0.0, 1.0),)
    user = Part("a", file.getvalue(), codes_NQ, 1.0, role="user", words=words)
    answer = dataclasses.replace(user, role="assistant")
    record = Record("r", "dialogue", "en", (user, answer), "x")
    assert change_record(record, "clean") is record
    changed = change_record(record, "fast")
    assert changed.parts[1] is answer
    heard = changed.parts[0]
    assert heard.codes_NQ is None and heard.words == () and heard.text == "a"
    wave_S, rate = read_audio(heard.audio)
    assert rate == RATE and heard.seconds == len(wave_S) / RATE < 0.9
    assert (
        change_record(record, "noise").parts[0].audio
        != change_record(dataclasses.replace(record, id="s"), "noise").parts[0].audio
    )
