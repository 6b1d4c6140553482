"""Each table's rows and measures from made-up evaluations: the claims have to find them."""

import pathlib
import types

import numpy as np
import pytest

from ba_jax.evals.paper import measure, tables
from ba_jax.evals.paper.published import CLAIMS
from ba_jax.evals.paper.table import Measured, as_json, as_markdown
from ba_jax.evals.suite import EvalError
from ba_jax.sampling.synthesize import Decoded, Wave
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
    "stage2_speech": {
        "s2tt_bleu_en_zh": 12.0,
        "tts_judge_wer": 0.9,
        "judge_wer_on_reference": 0.01,
        "qa_s2t": 0.3,
        "qa_s2s": 0.2,
        "qa_s2s_text": 0.35,
        "qa_s2s_scored": "as heard",
    },
}


class Made(tables.Maker):
    """With figures and benches made up."""

    def __init__(self, bench):
        runs = types.SimpleNamespace(
            get=pathlib.Path, steps=lambda name: {"text": 300}.get(name, 7)
        )
        judge = types.SimpleNamespace(names={"en": "tiny", "zh": "base"})
        super().__init__(runs, "out", get_config("nano").to_dict(), judge)
        self.bench, self.asked = bench, []

    def _bench(self, runs, components, config=None):
        self.asked.append(([run.name for run in runs], components))
        return self.bench

    def _evaluate(self, name, runs, suites):
        assert {suite.split("_")[0] for suite in suites} <= {"cloze", "qa", "asr", "s2tt", "tts"}
        return FIGURES[name]

    def _recognised(self, bench, count):
        return Measured(0.4 - 0.02 * count)


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
    bench = types.SimpleNamespace(model=model, statements=[], questions=[], hear=lambda *args: [])
    speech = measure.Speech((), ())
    for name, made in {
        "answers": lambda bench: speech,
        "statements": lambda bench: speech,
        "codes_of": lambda bench, speech: [np.zeros((1, 8), np.int32)],
        "recordings": lambda speech: [Wave(np.full(10, 0.05), 16000)],
        "wer": lambda bench, waves, speech, what: Measured(float(waves[0].wave_S.mean())),
        "mel_mae": lambda mels, speech: Measured(float(np.mean(mels[0]))),
        "refined_mels": lambda bench, speech, quantised: [np.full((2, 80), 0.1 + quantised)],
        "opinions": lambda bench, waves, speech: {
            "dnsmos_overall": Measured(4 - float(waves[0].wave_S.mean())),
            "stoi": Measured(0.9),
        },
    }.items():
        monkeypatch.setattr(measure, name, made)
    monkeypatch.setattr(tables, "_mel_of", lambda wave: wave.wave_S)
    assert wave
    return Made(bench)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7, 8])
def test_claims_find_their_rows(maker, number):
    made = maker(number)
    assert made.number == number
    columns = {column.name for column in made.columns}
    for row, cells in made.rows.items():
        assert set(cells) <= columns, row
    for claim in CLAIMS[number]:
        assert claim.measure in columns and set(claim.order) <= set(made.rows)
    found = as_json(made)["claims"]
    assert all(claim["holds"] is not None for claim in found) and found
    # the numbers were made up so that all hold, but for one that the paper has otherwise
    wrong = [claim["measure"] for claim in found if not claim["holds"]]
    assert wrong == (["questions"] if number == 5 else [])
    assert f"Table {number}" in as_markdown(made)


def test_stages_are_told_apart(maker):
    rows = maker(5).rows
    assert rows["two stages, s->t"]["cloze"] == Measured(0.7, [0.6, 0.8])
    assert rows["one stage, t->t"]["questions"] == Measured(0.79)
    assert (
        rows["two stages, s->t"]["steps"] == "7+7+7" and rows["text alone, t->t"]["steps"] == "300"
    )
    assert "text alone, s->t" not in rows
    note = maker(5).notes[0]
    assert "(one stage: 90% of the questions, two stages: 100% of the questions)" in note


def test_where_weights_come_from(maker):
    maker(1)
    assert [runs for runs, _ in maker.asked] == [["flow"], ["tokenizer"], ["tokenizer", "stage2"]]
    maker.asked.clear()
    maker(3)
    assert maker.asked == [(["flow"], tables._FLOW)]


def test_amounts_of_data(maker):
    rows = maker(4).rows
    assert {"speech", "dialogue", "text"} <= set(rows)
    assert rows["text"]["hours"].value == 0 < rows["speech"]["hours"].value
    with pytest.raises(EvalError, match="table 9, expected 1 to 8"):
        maker(9)
