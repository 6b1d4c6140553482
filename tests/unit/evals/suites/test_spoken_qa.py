"""Benchmarks of spoken questions, from a folder to figures, with a fake model and judges."""

import csv
import dataclasses

import numpy as np
import pytest

from ba_jax.audio import write_audio
from ba_jax.config import from_mapping
from ba_jax.evals import lines, runner
from ba_jax.evals.items import EvalError
from ba_jax.evals.settings import Benchmarks, EvalSettings
from ba_jax.evals.suites.spoken_qa import SUITES as SPOKEN_QA
from ba_jax.evals.suites.spoken_qa import figures_of_verdicts
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.loop import Generated
from ba_jax.sampling.synthesize import Wave
from configs.eval import get_config
from tests.unit.evals.small_bench import make_bench

SUITES = {suite.name: suite for suite in SPOKEN_QA}
MADE_WITH = dict.fromkeys(runner.FOLDERS, "x")
ANSWERS = {0: "It is Paris.", 1: "It is Rome.", 2: "never asked", 3: "Knock knock."}


class FakeJudge:
    """Hears ANSWERS[the number in the wave]."""

    names = {"en": "fake", "zh": "fake"}  # noqa: RUF012
    map = staticmethod(map)

    def hear(self, waves, languages, progress=None):
        return ["" if w is None else ANSWERS[round(float(w.wave_S[0]) * 10)] for w in waves]


@pytest.fixture
def folder(tmp_path):
    """Three questions on capitals, the last one's recording damaged, and an open request."""
    data = {
        "llama_questions": [
            {"Questions": "Capital of France?", "Answer": "Paris"},
            {"Questions": "Capital of Spain?", "Answer": "Madrid"},
            {"Questions": "Capital of Chile?", "Answer": "Santiago"},
        ],
        "alpaca_eval": [{"instruction": "Tell a joke.", "output": "Ha."}],
    }
    for subset, rows in data.items():
        subfolder = tmp_path / "bench" / subset
        (subfolder / "audios").mkdir(parents=True)
        with (subfolder / f"{subset}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, [*rows[0], "audio_filename"])
            table.writeheader()
            for i, row in enumerate(rows):
                table.writerow(row | {"audio_filename": f"{subset}_{i}.wav"})
                path = subfolder / "audios" / f"{subset}_{i}.wav"
                write_audio(path, np.full(16000, 0.1, np.float32), 16000)
    (tmp_path / "bench" / "llama_questions" / "audios" / "llama_questions_2.wav").write_bytes(b"x")
    return tmp_path / "bench"


def bench_of(tmp_path, folder, **benchmarks):
    config = get_config("nano").to_dict()
    settings = from_mapping(EvalSettings, config["eval"])
    defaults = {"openaudiobench": str(folder), "subsets": ("llama_questions", "alpaca_eval")}
    settings = dataclasses.replace(settings, benchmarks=Benchmarks(**defaults | benchmarks))
    model = from_mapping(BaichuanAudioConfig, config["model"])
    bench = make_bench(model, {}, settings, tmp_path / "out", FakeJudge())
    bench.model.encoder = lambda waves, progress: [np.full((12, 8), 7, np.int32) for _ in waves]
    bench.prompted = []

    def generate(prompts, what, numbers=None):
        bench.prompted += prompts
        return [
            Generated(bench.model.tokenizer.encode(ANSWERS[n]), np.full((3, 8), n), True)
            for n in numbers
        ]

    def synthesize(codes, numbers=None):
        return [Wave(np.full(480, c[0, 0] / 10, np.float32), 24000) for c in codes]

    bench.generate, bench.synthesize = generate, synthesize
    return bench


@pytest.mark.parametrize("way", ["s2t", "s2s"])
def test_from_folder_to_figures(tmp_path, folder, way):
    """A right answer, a wrong one, a damaged recording, and a rubric that rules cannot judge."""
    bench = bench_of(tmp_path, folder)
    name = f"openaudiobench_{way}"
    result = runner.run(SUITES[name], bench, MADE_WITH)
    figures, rows = result["figures"], result["items"]
    assert [row["verdict"] for row in rows] == ["right", "wrong", "wrong", "unjudged"]
    assert figures[f"{name}_llama_questions"] == pytest.approx(1 / 3)
    assert figures[f"{name}_llama_questions_items"] == 3
    assert f"{name}_alpaca_eval" not in figures and figures[f"{name}_alpaca_eval_unjudged"] == 1
    assert figures[f"{name}_judge"].startswith("rules") and figures[f"{name}_failed"] == 1
    assert [item["id"] for item in result["failed"]] == ["llama_questions/llama_questions_2"]
    assert rows[0]["hypothesis"] == "It is Paris." and rows[2]["hypothesis"] == ""
    pad, speaks = bench.model.config.tokens.audio_pad, way == "s2s"
    assert [(prompt.ids_L == pad).sum() for prompt in bench.prompted] == [12] * 3
    assert [prompt.wants_speech for prompt in bench.prompted] == [speaks] * 3
    _, presented = lines.read_lines(tmp_path / "out" / "judge_inputs" / f"{name}.jsonl")
    first = presented["llama_questions/llama_questions_0"]
    assert first["references"] == ["Paris"] and first["rubric"] == "correct"
    if speaks:
        assert (tmp_path / "out" / rows[0]["audio"]["generated"]).is_file()
        assert figures[f"{name}_heard_by"] == FakeJudge.names
        # The text of an answer is judged by itself.
        assert [row["of_text"]["verdict"] for row in rows] == [row["verdict"] for row in rows]
        assert figures[f"{name}_text_llama_questions"] == pytest.approx(1 / 3)

    # another judge, without generating again
    judged = []

    def verdicts(questions, progress):
        judged.extend(questions)
        return [
            {
                "id": question["id"],
                "verdict": "scored",
                "score": 4.0,
                "reason": "",
                "judge": "",
                "said": "",
            }
            for question in questions
        ]

    verdicts.name = "made up"
    bench.answer_judge = verdicts
    bench.generate = None
    again = runner.run(SUITES[name], bench, MADE_WITH, start="judge")
    assert [question["answer"] for question in judged] == [
        "It is Paris.",
        "It is Rome.",
        "Knock knock.",
    ] * (2 if speaks else 1)
    assert again["figures"][f"{name}_alpaca_eval"] == 4.0
    assert again["figures"][f"{name}_judge"] == "made up"


def test_failed_items_have_the_lowest_score(tmp_path, folder):
    (folder / "alpaca_eval" / "audios" / "alpaca_eval_0.wav").write_bytes(b"")
    result = runner.run(SUITES["openaudiobench_s2t"], bench_of(tmp_path, folder), MADE_WITH)
    assert result["figures"]["openaudiobench_s2t_alpaca_eval"] == 1.0
    assert result["figures"]["openaudiobench_s2t_failed"] == 2


def test_a_base_model_gets_its_task(tmp_path, folder):
    bench = bench_of(tmp_path, folder, style="aqa", limit=1)
    result = runner.run(SUITES["openaudiobench_s2t"], bench, MADE_WITH)
    assert len(result["items"]) == 2
    text = bench.model.tokenizer.decode(bench.prompted[0].ids_L[:6].tolist())
    assert text.startswith(("Answer the", "Listen and"))
    with pytest.raises(EvalError, match="style 'aqa' gives written answers, expected 'sft'"):
        runner.run(SUITES["openaudiobench_s2s"], bench, MADE_WITH)


def test_components():
    assert "flow_unet" in SUITES["voicebench_s2s"].components and SUITES["voicebench_s2s"].speaks
    assert "flow_unet" not in SUITES["voicebench_s2t"].components


def test_figures_of_verdicts():
    def verdict(kind, score=None):
        return {"id": "x", "verdict": kind, "score": score, "reason": "r"}

    counts = figures_of_verdicts(
        "q", [verdict(k) for k in ("right", "wrong", "invalid", "unjudged")]
    )
    assert counts["q"] == pytest.approx(1 / 3) and counts["q_judged"] == 3
    scores = figures_of_verdicts(
        "q", [verdict("scored", 4.0), verdict("scored", 9.0), verdict("invalid")]
    )
    assert scores["q"] == 6.5 and scores["q_invalid"] == 1
