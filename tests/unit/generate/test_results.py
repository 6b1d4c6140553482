"""Results: saving, resuming, and refusal of other settings."""

import json

import numpy as np
import pytest

from ba_jax.audio import read_audio
from ba_jax.generate.results import Results, ResultsError

MADE = {"task": "asr", "settings": {"rows": (1, 2)}}


def test_resume(tmp_path):
    first = Results(tmp_path / "out", MADE)
    first.add([{"id": "a", "text": "天"}, {"id": "b", "error": "gone"}])
    path = tmp_path / "out" / "results.jsonl"
    with open(path, "a") as file:
        file.write('{"id": "c", "te')  # killed here
    again = Results(tmp_path / "out", MADE)
    assert list(again.lines) == ["a", "b"] and again.lines["a"]["text"] == "天"
    again.add([{"id": "c"}])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert list(Results(tmp_path / "out", MADE, retry=True).lines) == ["a", "c"]
    assert "gone" not in path.read_text(), "what failed is tried again"


def test_other_settings_are_refused(tmp_path):
    Results(tmp_path, MADE).add([{"id": "a"}])
    with pytest.raises(ResultsError, match="made with other settings; choose another --out"):
        Results(tmp_path, MADE | {"settings": 1})
    assert not Results(tmp_path, MADE | {"settings": 1}, overwrite=True).lines
    (tmp_path / "made_with.json").unlink()
    with pytest.raises(ResultsError, match="results.jsonl without made_with.json"):
        Results(tmp_path, MADE)


def test_damaged_line_in_the_middle(tmp_path):
    Results(tmp_path, MADE).add([{"id": "a"}, {"id": "b"}])
    path = tmp_path / "results.jsonl"
    path.write_text("{\n" + path.read_text())
    with pytest.raises(ResultsError, match=r"results\.jsonl:1: .*expected a result"):
        Results(tmp_path, MADE)


def test_waves_are_at_24_khz(tmp_path):
    results = Results(tmp_path, MADE)
    path = results.wave_path("deep/name", 1)
    wave_S = np.sin(np.arange(16000) / 10).astype(np.float32) / 2
    assert results.save(path, wave_S, 16000) == "audio/deep/name-2.wav"
    saved_S, rate = read_audio(path)
    assert rate == 24000 and len(saved_S) == 24000


def test_host_that_does_not_write(tmp_path):
    """It has the same interface and touches no file."""
    out = tmp_path / "out"
    results = Results(out, {"task": "tts"}, writes=False)
    path = results.wave_path("a")
    assert results.save(path, np.zeros(240, np.float32), 24000) == "audio/a.wav"
    results.add([{"id": "a", "audio": "audio/a.wav"}])
    assert list(results.lines) == ["a"] and not out.exists()
