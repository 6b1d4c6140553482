"""The suite by number of steps, on a made-up flow whose error is one over its steps."""

import types

import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.evals import flow_steps, suites
from ba_jax.evals.base import Bench, EvalError, EvalSettings
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.synthesize import Wave
from configs.eval import get_config


@pytest.fixture
def bench(tmp_path):
    config = get_config("nano").to_dict()
    settings = from_mapping(EvalSettings, config["eval"] | {"limit": 1})
    model = from_mapping(BaichuanAudioConfig, config["model"])
    judge = types.SimpleNamespace(map=map, names={"en": "told", "zh": "told"})
    bench = Bench(model, {}, settings, tmp_path, judge)
    bench.codes = lambda parts: [np.full((2, 8), i, np.int32) for i in range(len(parts))]
    # Ten steps are understood, fewer are not.
    bench.hear = lambda waves, languages, what: [
        u.part.text if " 10" in what else "" for u in bench.statements
    ]
    return bench


def test_errors_by_steps(bench, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, config, variables, settings, run):
            asked.append(settings)
            self.steps = settings.steps

        def flow_mels(self, codes, seeds):
            wanted = map(flow_steps._mel, bench.statements)
            return [mel_TM[:7] + 1 / self.steps for mel_TM in wanted]

        def waves_of_mels(self, mels, seeds):
            return [Wave(np.zeros(480, np.float32), 24000) for _ in mels]

    monkeypatch.setattr(flow_steps, "Synthesizer", Fake)
    outcome = flow_steps.run(bench)
    assert {settings.mel for settings in asked} == {"flow"}
    assert [s.norm_frames is not None for s in asked].count(True) == 1
    for steps in (2, 4, 6, 10):
        assert outcome.figures[f"flow_mel_mae_{steps}"] == pytest.approx(1 / steps, rel=1e-5)
        assert outcome.figures[f"flow_judge_wer_{steps}"] == (0 if steps == 10 else 1)
    assert outcome.figures["flow_mel_mae_10_streamed"] == pytest.approx(0.1, rel=1e-5)
    assert len(outcome.items) == outcome.figures["flow_steps_items"] == 2
    for item in outcome.items:
        assert item["correct"] and set(item["audio"]) == {"reference", "10_streamed", *"246", "10"}
        assert all((bench.out / path).is_file() for path in item["audio"].values())
    assert "flow_steps" in suites.SUITES


def test_nothing_to_decode(bench):
    bench.codes = lambda parts: [np.zeros((0, 8), np.int32) for _ in parts]
    with pytest.raises(EvalError, match="too short for a frame of codes"):
        flow_steps.run(bench)
