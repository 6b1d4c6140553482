"""Waves that cannot be rated, and the second predictor in front of a fake package;
`tests/unit/evals/scoring/test_sound.py` rates real waves."""

import contextlib
import sys
import types

import numpy as np
import pytest

from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.opinion import DistillMos, Dnsmos


@pytest.fixture
def fake(monkeypatch):
    """Shapes that the model got; the packages are made up."""
    seen = []

    class Model:
        def eval(self):
            return self

        def __call__(self, wave_BS):
            assert "torchaudio" not in sys.modules
            seen.append(wave_BS.shape)
            return [3.5]

    contents = {
        "distillmos": {"ConvTransformerSQAModel": Model},
        "torch": {"inference_mode": contextlib.nullcontext, "from_numpy": lambda wave_S: wave_S},
    }
    for name, values in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.parametrize("predictor", [Dnsmos, DistillMos])
@pytest.mark.parametrize(
    "seconds, reason", [(0.1, "0.100 s, expected at least 0.25 s"), (1.0, "silence")]
)
def test_waves_that_cannot_be_rated(predictor, seconds, reason):
    with pytest.raises(SpeechToolError, match=reason):
        predictor().rate(np.zeros(round(8000 * seconds), np.float32), 8000)


def test_a_second_predictor_where_it_is_installed(fake):
    assert DistillMos.is_installed()
    assert DistillMos().rate(np.ones(48_000, np.float32), 24_000) == 3.5
    assert fake == [(1, 32_000)] and "torchaudio" not in sys.modules


def test_a_second_predictor_that_is_not_installed(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "distillmos", None)
    assert not DistillMos.is_installed()
    with pytest.raises(SpeechToolError, match="pip install 'distillmos'"):
        DistillMos().rate(np.ones(48_000, np.float32), 24_000)
