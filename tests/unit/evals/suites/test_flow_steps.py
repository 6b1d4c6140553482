"""The suite of the flow's steps: each variant with its own synthesizer, errors and words."""

import numpy as np
import pytest

from ba_jax.audio.mel import FLOW_MEL
from ba_jax.evals.items import EvalError
from ba_jax.evals.scoring import mel
from ba_jax.evals.suites import flow_steps
from ba_jax.sampling.synthesize import SynthesisSettings, Wave
from tests.unit.evals.small_bench import bench_of, recorded, run, teach


class OffBySteps:
    """Mels that are off by a tenth of the steps, or by 2 with a stream's blocks."""

    def __init__(self, settings, wanted):
        self._off = 2.0 if settings.blocks else settings.steps / 10
        self._wanted = wanted

    def flow_mels(self, codes, numbers):
        return [self._wanted[len(codes_NQ)] + self._off for codes_NQ in codes]

    def waves_of_mels(self, mels, numbers):
        return [Wave(np.full(100 + n, self._off / 4, np.float32), 24000) for n in numbers]


def test_each_number_of_steps_has_its_own_figures(tmp_path):
    bench = bench_of(tmp_path, None)
    parts = [utterance.parts[0] for utterance in bench.records.statements]
    texts = [part.text for part in parts]
    languages = [record.language for record in bench.records.statements]
    codes = [np.zeros((10 + i, 8), np.int32) for i in range(len(parts))]
    wanted = {10 + i: mel.recorded_mel(part, FLOW_MEL) for i, part in enumerate(parts)}
    bench.encode_segments = lambda parts: [codes[texts.index(part.text)] for part in parts]
    bench.model.synthesizer_with = lambda settings: OffBySteps(settings, wanted)
    teach(bench, map(recorded, parts), texts, languages)
    for name, settings in flow_steps.variants(bench.settings.synthesis).items():
        waves = OffBySteps(settings, wanted).waves_of_mels(None, range(len(parts)))
        # Two steps are not understood.
        heard = ["nothing"] * len(texts) if name == "2" else texts
        teach(bench, waves, heard, languages)
    outcome = run("flow_steps", bench)
    for steps in flow_steps.STEPS:
        assert outcome.figures[f"flow_mel_mae_{steps}"] == pytest.approx(steps / 10, rel=1e-4)
        assert (outcome.figures[f"flow_judge_wer_{steps}"] > 0.5) == (steps == 2)
    assert outcome.figures["flow_mel_mae_10_streamed"] == pytest.approx(2.0, rel=1e-4)
    assert outcome.figures["flow_judge_wer_10_streamed"] == 0
    for item in outcome.items:
        assert item["correct"] and len(item["heard"]) == len(flow_steps.VARIANTS)
        assert all((tmp_path / path).is_file() for path in item["audio"].values())


def test_variants_keep_the_other_settings():
    settings = SynthesisSettings(vocoder="griffin_lim", mel="decoder", frames=(40,), guidance=0.5)
    variants = flow_steps.variants(settings)
    assert tuple(variants) == flow_steps.VARIANTS
    for name, variant in variants.items():
        assert variant.mel == "flow" and variant.guidance == 0.5 and variant.frames == (40,)
        assert variant.steps == int(name.split("_")[0])
        assert bool(variant.blocks) == (variant.norm_frames is not None) == (name == "10_streamed")


def test_nothing_to_say(tmp_path):
    bench = bench_of(tmp_path, None, sources=("nobody",))
    with pytest.raises(EvalError):
        run("flow_steps", bench)
