"""Rows and measures of each table from fake evaluations: claims refer to them."""

import pathlib
import types

import numpy as np
import pytest

from ba_jax.evals.items import EvalError
from ba_jax.evals.paper import measure, tables
from ba_jax.evals.paper.published import CLAIMS
from ba_jax.evals.paper.table import Measurement, to_json, to_markdown
from ba_jax.sampling.synthesize import Decoded, Wave
from configs import lm_text
from configs.eval import get_config

FIGURES = {
    "text": {"cloze_t2t": 0.9, "qa_t2t": 0.8},
    "single": {
        "cloze_t2t": 0.89,
        "cloze_s2t": 0.6,
        "cloze_s2t_transcribe_first": 0.9,
        "qa_t2t": 0.79,
        "qa_s2t": 0.3,
    },
    "stage2": {
        "cloze_t2t": 0.88,
        "cloze_s2t": 0.7,
        "cloze_s2t_ci95": [0.6, 0.8],
        "cloze_s2t_transcribe_first": 1.0,
        "qa_t2t": 0.78,
        "qa_s2t": 0.2,
        "asr_wer": 0.2,
        "asr_wer_en": 0.3,
    },
    "hears_features": {
        "asr_wer": 0.1,
        "asr_wer_en": 0.1,
        "asr_cer_zh": 0.2,
        "s2tt_bleu_en_zh": 30.0,
        "s2tt_bleu_zh_en": 20.0,
        "qa_s2t": 0.5,
    },
    "hears_quantized": {
        "asr_wer_en": 0.2,
        "asr_cer_zh": 0.3,
        "s2tt_bleu_en_zh": 25.0,
        "s2tt_bleu_zh_en": 15.0,
        "qa_s2t": 0.4,
    },
    "stage2_speech": {
        "s2tt_bleu_en_zh": 12.0,
        "tts_judge_wer": 0.9,
        "judge_wer_on_reference": 0.01,
        "qa_s2t": 0.3,
        "qa_s2s": 0.2,
        "qa_s2s_text": 0.25,
        "qa_s2s_scored": "as heard",
    },
}


class FakeMaker(tables.TableMaker):
    """With fake figures and benches."""

    def __init__(self, bench):
        runs = types.SimpleNamespace(
            get=pathlib.Path, steps=lambda name: {"text": 300}.get(name, 7)
        )
        judge = types.SimpleNamespace(names={"en": "tiny", "zh": "base"})
        super().__init__(runs, "out", get_config("nano").to_dict(), judge)
        self.bench, self.asked = bench, []

    def _make_bench(self, runs, components, config=None):
        self.asked.append(([run.name for run in runs], components))
        return self.bench

    def _evaluate(self, name, runs, suites, config=None):
        name = name.removesuffix("_noise").removesuffix("_fast").removesuffix("_far")
        assert {suite.split("_")[0] for suite in suites} <= {"cloze", "qa", "asr", "s2tt", "tts"}
        return FIGURES[name]

    def _recognition_error(self, bench, count):
        return Measurement(0.4 - 0.02 * count)

    def _hearing_error(self, count):
        return Measurement(0.4 - 0.02 * count)


@pytest.fixture
def maker(monkeypatch):
    """Errors fall with codebooks, flow and no quantisation."""

    def decode(codes, codebooks=8):
        return [Decoded(np.zeros((1, 1)), np.full((4, 80), 1.0 / codebooks))]

    wave = [Wave(np.zeros(16000, np.float32), 16000)]
    synthesizer = types.SimpleNamespace(
        decode=decode,
        invert=lambda mels, geometry: [Wave(np.full(10, mels[0].mean()), 16000)],
        flow_mels=lambda codes, seeds: codes,
        waves_of_mels=lambda mels, seeds: [Wave(np.full(10, 0.1), 16000)],
        waves_without_flow=lambda codes: [Wave(np.full(10, 0.2), 16000)],
    )
    model = types.SimpleNamespace(synthesizer=synthesizer)
    bench = types.SimpleNamespace(model=model)
    speech = measure.Speech((), ())
    for name, made in {
        "answers": lambda bench: speech,
        "statements": lambda bench: speech,
        "encode": lambda bench, speech: [np.zeros((1, 8), np.int32)],
        "recordings": lambda speech: [Wave(np.full(10, 0.05), 16000)],
        "word_error_rate": lambda bench, waves, speech, what: Measurement(
            float(waves[0].wave_S.mean())
        ),
        "mel_error": lambda mels, speech: Measurement(float(np.mean(mels[0]))),
        "refined_mels": lambda bench, speech, quantized: [np.full((2, 80), 0.1 + quantized)],
        "opinions": lambda bench, waves, speech: {
            "dnsmos_overall": Measurement(4 - float(waves[0].wave_S.mean())),
            "distillmos": Measurement(4 - float(waves[0].wave_S.mean())),
            "stoi": Measurement(0.9),
        },
    }.items():
        monkeypatch.setattr(measure, name, made)
    monkeypatch.setattr(tables, "_compute_mel", lambda wave: wave.wave_S)
    assert wave
    return FakeMaker(bench)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7, 8])
def test_claims_refer_to_rows_and_columns(maker, number):
    table = maker(number)
    assert table.number == number
    columns = {column.name for column in table.columns}
    for row, cells in table.rows.items():
        assert set(cells) <= columns, row
    for claim in CLAIMS[number]:
        assert claim.measure in columns and set(claim.order) <= set(table.rows)
    claims = to_json(table)["claims"]
    assert all(claim["holds"] is not None for claim in claims) and claims
    # By the fake numbers all claims hold but one.
    wrong = [claim["measure"] for claim in claims if not claim["holds"]]
    assert wrong == (["questions"] if number == 5 else [])
    assert f"Table {number}" in to_markdown(table)


def test_stages_have_their_own_rows(maker):
    rows = maker(5).rows
    assert rows["two stages, s->t"]["cloze"] == Measurement(0.7, [0.6, 0.8])
    assert rows["one stage, t->t"]["questions"] == Measurement(0.79)
    assert (
        rows["two stages, s->t"]["steps"] == "7+7+7" and rows["text alone, t->t"]["steps"] == "300"
    )
    assert "text alone, s->t" not in rows
    note = maker(5).notes[0]
    assert "(one stage: 90% of the questions, two stages: 100% of the questions)" in note


def test_runs_of_each_table(maker):
    maker(1)
    assert [runs for runs, _ in maker.asked] == [["flow"], ["tokenizer"], ["tokenizer", "stage2"]]
    maker.asked.clear()
    maker(3)
    assert maker.asked == [(["flow"], tables._FLOW)]


def test_hours_of_the_mixture_by_task(maker, monkeypatch):
    config = lm_text.get_config().to_dict()
    monkeypatch.setattr(tables.layout, "read_run_config", lambda folder: config)
    rows = maker(4).rows
    assert set(rows) == {member["task"] for member in config["data"]["mixture"].values()}
    assert rows["text"]["hours"].value == 0 < rows["text"]["examples"].value
    assert sum(cells["share of rows"].value for cells in rows.values()) == pytest.approx(1)
    monkeypatch.setattr(tables.layout, "read_run_config", lambda folder: None)
    with pytest.raises(EvalError, match="no config of the run"):
        maker(4)
    with pytest.raises(EvalError, match="table 9, expected 1 to 8"):
        maker(9)
