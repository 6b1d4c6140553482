"""Measures of real speech: itself, in noise, silence, and short waves."""

import sys

import numpy as np
import pytest

from ba_jax.audio import read_audio
from ba_jax.data.record import RecordSource
from ba_jax.evals.items import EvalError
from ba_jax.evals.scoring import sound
from ba_jax.sampling.synthesize import Wave
from ba_jax.speech.opinion import MOS
from ba_jax.types import Failure


@pytest.fixture(scope="module")
def speech():
    source = RecordSource("embedded", "test")
    records = (source[i] for i in range(len(source)))
    record = next(r for r in records if r.kind == "speech" and r.parts[0].seconds > 1.5)
    return Wave(*read_audio(record.parts[0].audio))


def noisy(speech, level):
    noise_S = np.random.default_rng(0).standard_normal(len(speech.wave_S))
    return Wave((speech.wave_S + level * noise_S).astype(np.float32), speech.rate)


def test_a_recording_is_perfect_and_noise_makes_it_worse(speech):
    # the end of the longer wave does not count
    same = sound.measure((Wave(np.pad(speech.wave_S, (0, 9999)), speech.rate), speech))
    much = sound.measure((noisy(speech, 0.3), speech))
    assert same["pesq_wb"] > 4.6 and same["stoi"] > 0.999
    for name in ("pesq_wb", "stoi", "dnsmos_overall", "dnsmos_background"):
        assert same[name] > much[name], name
    for name in MOS.values():
        assert 1 <= same[name] <= 5
    assert same["dnsmos_overall"] == pytest.approx(same["dnsmos_overall_on_reference"], abs=0.3)
    assert not any(name.endswith("_failed") for name in {**same, **much})


def test_measures_that_fail_give_a_reason(speech, monkeypatch):
    monkeypatch.setattr(sound, "_second_predictor", lambda: None)
    silence = Wave(np.zeros_like(speech.wave_S), speech.rate)
    results = sound.measure((silence, silence))
    assert results == {
        "pesq_wb_failed": "a reference of silence",
        "stoi_failed": "a reference of silence",
        "dnsmos_failed": "silence",
        "dnsmos_on_reference_failed": "silence",
    }
    short = Wave(speech.wave_S[:100], speech.rate)
    for pair in ((None, short), (Failure("gone"), None), (short, Failure("gone"))):
        for name, why in sound.measure(pair).items():
            assert name.endswith("_failed") and "expected at least 0.25 s" in why


def test_figures():
    measured = {"pesq_wb": 2.0, "stoi": 0.5, "dnsmos_overall": 3.0}
    failed = {"pesq_wb": 3.0, "stoi_failed": "silence", "dnsmos_failed": "silence"}
    results = sound.figures([measured, failed])
    assert results["reconstruction_pesq_wb"] == 2.5
    assert results["reconstruction_pesq_wb_ci95"] == [2, 3]
    assert results["reconstruction_stoi"] == 0.5 and results["reconstruction_stoi_failed"] == 1
    assert results["reconstruction_dnsmos_signal"] is None
    assert results["reconstruction_dnsmos_failed"] == 1
    assert "wideband" in results["reconstruction_sound"]["pesq_wb"]


def test_without_a_package(monkeypatch):
    sound.require()
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(EvalError, match=r"pesq is not installed: pip install 'ba_jax\[eval\]'"):
        sound.require()
