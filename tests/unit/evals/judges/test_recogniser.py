"""The judge on recordings that it cannot hear; the real recogniser on a recording."""

import numpy as np
import pytest

from ba_jax.data.record import RecordSource
from ba_jax.evals.judges.recogniser import SpeechJudge, SpeechJudgeSettings
from ba_jax.evals.scoring import text
from ba_jax.speech import assets
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Failure
from tests.unit.evals.small_bench import recorded

SHORT = (np.zeros(100, np.float32), 16000)


def test_languages_and_weights_that_are_missing_start_no_process(monkeypatch):
    def ensure(name):
        raise SpeechToolError(f"{name}: no network")

    monkeypatch.setattr(assets, "ensure", ensure)
    with SpeechJudge() as judge:
        counts = []
        heard = judge.hear([SHORT, None, SHORT], ["de", "de", "en"], counts.append)
        assert "language 'de', expected one of ('en', 'zh')" in heard[0].reason
        assert heard[1] == "" and heard[2] == Failure("judge: whisper-tiny.en: no network")
        assert counts == [1, 2, 3] and judge._pool is None


def test_settings():
    with pytest.raises(ValueError, match="processes = 0, expected at least 1"):
        SpeechJudgeSettings(processes=0)


@pytest.mark.slow
def test_each_recording_is_heard_or_fails_alone():
    source = RecordSource("embedded", "test")
    records = (source[i] for i in range(len(source)))
    record = next(r for r in records if r.kind == "speech" and r.language == "en")
    wave, words = recorded(record.parts[0]), record.parts[0].text
    copies = int(31 / record.parts[0].seconds) + 1
    long = (np.tile(wave.wave_S, copies), wave.rate)
    broken = (np.full((5, 5), np.nan, np.float32), 16000)
    with SpeechJudge(SpeechJudgeSettings(processes=1)) as judge:
        heard = judge.hear([long, wave, broken, SHORT], ["en"] * 4)
        assert "s of speech, expected at most 30.0 s" in heard[0].reason
        tally = text.tally(words, heard[1], "en", "word")
        assert tally.errors / tally.units < 0.5
        assert isinstance(heard[2], Failure)
        assert isinstance(heard[3], str)
