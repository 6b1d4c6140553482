"""Waves that DNSMOS cannot rate; `tests/unit/evals/scoring/test_sound.py` rates real ones."""

import sys
import types

import numpy as np
import pytest

from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.opinion import DistillMos, Dnsmos


@pytest.mark.parametrize(
    "seconds, reason", [(0.1, "0.100 s, expected at least 0.25 s"), (1.0, "silence")]
)
def test_waves_that_cannot_be_rated(seconds, reason):
    with pytest.raises(SpeechToolError, match=reason):
        Dnsmos().rate(np.zeros(round(8000 * seconds), np.float32), 8000)


def test_a_second_predictor_where_it_is_installed(monkeypatch):
    seen = []

    class Model:
        def eval(self):
            return self

        def __call__(self, wave_BS):
            assert "torchaudio" not in sys.modules
            seen.append(wave_BS.shape)
            return wave_BS.new_tensor([3.5])

    module = types.ModuleType("distillmos")
    module.__spec__ = types.SimpleNamespace()
    module.ConvTransformerSQAModel = Model
    monkeypatch.setitem(sys.modules, "distillmos", module)
    pytest.importorskip("torch")
    assert DistillMos.is_installed()
    assert DistillMos().rate(np.ones(48_000, np.float32), 24_000) == 3.5
    assert seen == [(1, 32_000)]
    with pytest.raises(SpeechToolError, match="expected at least 0.25 s"):
        DistillMos().rate(np.zeros(1000, np.float32), 16_000)
    monkeypatch.setitem(sys.modules, "distillmos", None)
    monkeypatch.delitem(sys.modules, "distillmos")
    if not DistillMos.is_installed():
        with pytest.raises(SpeechToolError, match="pip install 'distillmos'"):
            DistillMos().rate(np.ones(48_000, np.float32), 24_000)
