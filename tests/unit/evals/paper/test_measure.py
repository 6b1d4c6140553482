"""Measures on a tiny random model: quantization, numbers of codebooks, errors."""

import dataclasses

import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.evals.items import EvalError
from ba_jax.evals.paper import measure
from ba_jax.evals.settings import EvalSettings
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure
from configs.eval import get_config
from tests.unit.evals.small_bench import make_bench
from tests.unit.models import conftest


class Judge:
    """Returns the texts in `heard`."""

    names = {"en": "fake", "zh": "fake"}  # noqa: RUF012
    map = staticmethod(map)

    def hear(self, waves, languages, progress=None):
        return self.heard


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The tiny codec on two sentences and two dialogues of each language."""
    from configs.models import get_config as sizes

    model = sizes("tiny").to_dict()
    for name in ("vq_bridge", "audio_embed", "audio_head"):
        model[name]["codebook_sizes"] = (64, 32, 16)
    config = from_mapping(BaichuanAudioConfig, model)
    parts = ("audio_encoder", "vq_bridge", "audio_decoder", "audio_embed")
    variables = conftest.variables.__wrapped__(config.only(*parts))
    evaluation = get_config("nano").to_dict()["eval"]
    evaluation |= {"limit": 1, "encode_rows": 2}
    evaluation["synthesis"] |= {"rows": 2, "frames": (48,), "iterations": 1}
    settings = from_mapping(EvalSettings, evaluation)
    return make_bench(config, variables, settings, tmp_path_factory.mktemp("out"), Judge())


def test_speech_of_the_data(bench):
    statements, answers = measure.statements(bench), measure.answers(bench)
    assert statements.languages == answers.languages == ("en", "zh")
    assert answers.parts[0] is bench.records.dialogues[0].parts[1]
    settings = dataclasses.replace(bench.settings, sources=("nobody",))
    with pytest.raises(EvalError, match="no record of"):
        measure.statements(make_bench(bench.model.config, {}, settings, bench.out, Judge()))


def test_features_past_the_codebooks(bench):
    """Quantized features give the decoded codes' mel, the others another one."""
    speech = measure.statements(bench)
    wanted = bench.model.synthesizer.decode(measure.encode(bench, speech))
    through = measure.refined_mels(bench, speech, quantized=True)
    past = measure.refined_mels(bench, speech, quantized=False)
    for mel, other, want in zip(through, past, wanted, strict=True):
        np.testing.assert_allclose(mel, want.mel_TM, atol=2e-3)
        assert other.shape == mel.shape and np.abs(other - mel).max() > 0.1


def test_mel_error_of_a_shift(bench):
    from ba_jax.audio.mel import HIFIGAN_MEL, log_mel
    from ba_jax.data.features import decode

    speech = measure.statements(bench)
    mels = [log_mel(decode(p.audio, p.seconds, (16000,))[0], HIFIGAN_MEL) for p in speech.parts]
    assert measure.mel_error(mels, speech).value == 0
    shifted = [mels[0] + 0.5, mels[1][:-1]]
    frames = len(mels[0]), len(mels[1]) - 1
    measurement = measure.mel_error(shifted, speech)
    assert measurement.value == pytest.approx(0.5 * frames[0] / sum(frames), rel=1e-5)
    assert measurement.interval[0] == pytest.approx(0) and measurement.interval[1] == pytest.approx(
        0.5
    )


def test_word_errors(bench):
    speech = measure.statements(bench)
    waves = [Wave(np.zeros(100, np.float32), 16000)] * 2
    bench.judge.heard = [part.text for part in speech.parts]
    assert measure.word_error_rate(bench, waves, speech, "hearing").value == 0
    bench.judge.heard = ["", speech.parts[1].text]
    first = len(speech.parts[0].text.split())
    measurement = measure.word_error_rate(bench, waves, speech, "hearing")
    assert 0 < measurement.value < 1 and measurement.value == pytest.approx(
        first / (first + len(speech.parts[1].text.strip("。")))
    )
    bench.judge.heard = ["", Failure("deaf")]
    with pytest.raises(EvalError, match="deaf"):
        measure.word_error_rate(bench, waves, speech, "hearing")


def test_later_codebooks_are_zeroed(bench):
    embed = bench.model.variables["params"]["audio_embed"]
    fewer = measure.keep_codebooks(bench.model.variables, 2)["params"]["audio_embed"]
    for q in range(3):
        kept = np.asarray(fewer[f"embedding_{q}"])
        assert kept.any() == (q < 2) and kept.shape == embed[f"embedding_{q}"].shape
    assert (
        measure.keep_codebooks(bench.model.variables, 3)["params"]["audio_embed"].keys()
        == embed.keys()
    )
    for count in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            measure.keep_codebooks(bench.model.variables, count)


def test_zeroed_rows_add_nothing(bench):
    """Quantised features are then those of the first codebooks, whose rows stay."""
    config, variables = bench.model.config.only("vq_bridge"), bench.model.variables
    model, z_BNE = BaichuanAudio(config), np.random.default_rng(0).normal(size=(1, 5, 128))
    lengths_B = np.array([4])

    def quantize(variables, **options):
        bridge = {"params": {}, "codebook": {"vq_bridge": variables["codebook"]["vq_bridge"]}}
        return model.apply(
            bridge,
            method=lambda model: model.vq_bridge.quantize(
                z_BNE.astype(np.float32), lengths_B, **options
            ),
        ).z_BNE

    want = quantize(variables, used_BQ=np.arange(3)[None] < 2)
    np.testing.assert_allclose(quantize(measure.keep_quantized(variables, 2)), want, atol=1e-6)
    assert np.abs(want - quantize(variables)).max() > 1e-3


def test_damaged_recordings_are_named(bench):
    speech = measure.statements(bench)
    broken = dataclasses.replace(speech.parts[0], audio=b"none")
    with pytest.raises(EvalError, match="recording: "):
        measure.encode(bench, dataclasses.replace(speech, parts=(broken, speech.parts[1])))
