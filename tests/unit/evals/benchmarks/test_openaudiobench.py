"""A small folder in the layout of the release."""

import csv

import pytest

from ba_jax.evals.benchmarks.openaudiobench import SUBSETS, load
from ba_jax.evals.benchmarks.tables import LayoutError

ROWS = {
    "alpaca_eval": {"instruction": "Tell a joke.", "output": "[Knock knock]", "dataset": "helpful"},
    "llama_questions": {"Questions": "What is the capital of France?", "Answer": "Paris"},
    "reasoning_qa": {"Prompt": "三加四得几？", "参考答案": "七"},
    "trivia_qa": {
        "question": "Who wrote Babbitt?",
        "answer_normalized_aliases": "['sinclair lewis', 'harry sinclair lewis']",
    },
    "web_questions": {
        "question": "what do jamaican people speak?",
        "answers": "['Jamaican Creole English Language' 'Jamaican English']",
    },
}


def write(folder, subset, rows):
    (folder / subset / "audios").mkdir(parents=True, exist_ok=True)
    with (folder / subset / f"{subset}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        (folder / subset / "audios" / row.get("audio_filename", "x")).write_bytes(b"mp3")


@pytest.fixture
def folder(tmp_path):
    for subset, row in ROWS.items():
        rows = [row | {"audio_filename": f"{subset}_{i}.mp3"} for i in range(2)]
        write(tmp_path / "eval_datas", subset, rows)
    return tmp_path


def test_five_subsets(folder):
    assert set(ROWS) == set(SUBSETS)
    questions = load(folder)
    assert [q.id for q in questions][:3] == [
        "alpaca_eval/alpaca_eval_0",
        "alpaca_eval/alpaca_eval_1",
        "llama_questions/llama_questions_0",
    ]
    of = {q.subset: q for q in questions}
    assert of["alpaca_eval"].references == ("[Knock knock]",)
    assert of["alpaca_eval"].metadata == {"dataset": "helpful"}
    assert of["reasoning_qa"].language == "zh" and of["reasoning_qa"].references == ("七",)
    assert of["trivia_qa"].references == ("sinclair lewis", "harry sinclair lewis")
    assert of["web_questions"].references == (
        "Jamaican Creole English Language",
        "Jamaican English",
    )
    rubrics = {q.subset: q.rubric for q in questions}
    assert [s for s, rubric in rubrics.items() if rubric == "scale"] == [
        "alpaca_eval",
        "reasoning_qa",
    ]
    assert all(q.audio.read_bytes() == b"mp3" for q in questions)
    # the folder of the data itself will do, and some subsets
    assert load(folder / "eval_datas", ("trivia_qa",)) == questions[6:8]


def test_missing_parts_are_named(folder):
    with pytest.raises(LayoutError, match="subset 'trivia' of OpenAudioBench, expected"):
        load(folder, ("trivia",))
    data = folder / "eval_datas"
    (data / "web_questions" / "audios" / "web_questions_1.mp3").unlink()
    with pytest.raises(LayoutError, match=r"web_questions.csv, row 2: no file .*questions_1.mp3"):
        load(folder)
    row = {"audio_filename": "a.mp3", "Questions": "Why?", "Answer": " "}
    write(data, "llama_questions", [row])
    with pytest.raises(LayoutError, match="row 1: column 'Answer' holds ' ', expected text"):
        load(folder, ("llama_questions",))
    write(data, "llama_questions", [row | {"Answer": "so"}] * 2)
    with pytest.raises(LayoutError, match="llama_questions/a: two rows name its recording"):
        load(folder, ("llama_questions",))
    write(data, "reasoning_qa", [{"audio_filename": "a.mp3", "Prompt": "Why?"}])
    with pytest.raises(LayoutError, match=r"no column \['参考答案'\], expected \['audio_filename'"):
        load(folder, ("reasoning_qa",))
    (data / "alpaca_eval" / "alpaca_eval.csv").unlink()
    with pytest.raises(LayoutError, match="alpaca_eval.csv: no such file; expected a table"):
        load(folder)
