"""Small folders in the layouts of the releases."""

import csv
import json

import pyarrow
import pytest
from pyarrow import parquet

from ba_jax.evals.benchmarks.questions import (
    OPENAUDIOBENCH,
    VOICEBENCH_DEFAULT,
    load_openaudiobench,
    load_voicebench,
)
from ba_jax.evals.items import EvalError

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


def write_csv(folder, subset, rows):
    (folder / subset / "audios").mkdir(parents=True, exist_ok=True)
    with (folder / subset / f"{subset}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        (folder / subset / "audios" / row.get("audio_filename", "x")).write_bytes(b"mp3")


@pytest.fixture
def openaudiobench(tmp_path):
    for subset, row in ROWS.items():
        rows = [row | {"audio_filename": f"{subset}_{i}.mp3"} for i in range(2)]
        write_csv(tmp_path / "eval_datas", subset, rows)
    return tmp_path


def test_openaudiobench(openaudiobench):
    assert set(ROWS) == set(OPENAUDIOBENCH)
    questions = load_openaudiobench(openaudiobench)
    assert [q.id for q in questions][:3] == [
        "alpaca_eval/alpaca_eval_0",
        "alpaca_eval/alpaca_eval_1",
        "llama_questions/llama_questions_0",
    ]
    of = {q.subset: q for q in questions}
    assert of["alpaca_eval"].references == ("[Knock knock]",)
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
    # the openaudiobench of the data itself will do, and some subsets
    assert load_openaudiobench(openaudiobench / "eval_datas", ("trivia_qa",)) == questions[6:8]


def test_missing_parts_of_openaudiobench(openaudiobench):
    with pytest.raises(EvalError, match="subset 'trivia' of OpenAudioBench, expected"):
        load_openaudiobench(openaudiobench, ("trivia",))
    data = openaudiobench / "eval_datas"
    (data / "web_questions" / "audios" / "web_questions_1.mp3").unlink()
    with pytest.raises(EvalError, match=r"web_questions.csv, row 2: no file .*questions_1.mp3"):
        load_openaudiobench(openaudiobench)
    row = {"audio_filename": "a.mp3", "Questions": "Why?", "Answer": " "}
    write_csv(data, "llama_questions", [row])
    with pytest.raises(EvalError, match="row 1: column 'Answer' holds ' ', expected text"):
        load_openaudiobench(openaudiobench, ("llama_questions",))
    write_csv(data, "llama_questions", [row | {"Answer": "so"}] * 2)
    with pytest.raises(EvalError, match="llama_questions/a: two rows name its recording"):
        load_openaudiobench(openaudiobench, ("llama_questions",))
    write_csv(data, "reasoning_qa", [{"audio_filename": "a.mp3", "Prompt": "Why?"}])
    with pytest.raises(EvalError, match=r"no column \['参考答案'\], expected \['audio_filename'"):
        load_openaudiobench(openaudiobench, ("reasoning_qa",))
    (data / "alpaca_eval" / "alpaca_eval.csv").unlink()
    with pytest.raises(EvalError, match="alpaca_eval.csv: no such file; expected a table"):
        load_openaudiobench(openaudiobench)


def write_parquet(folder, subset, split, rows, shard="00000-of-00001"):
    path = folder / subset / f"{split}-{shard}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def row(**columns):
    return {"audio": {"bytes": b"wav", "path": "0.wav"}, "prompt": "Who is it?", **columns}


@pytest.fixture
def voicebench(tmp_path):
    for subset in ("alpacaeval", "commoneval", "advbench"):
        write_parquet(tmp_path, subset, "test", [row(), row()])
    for split in ("usa", "aus"):
        write_parquet(tmp_path, "sd-qa", split, [row(reference="Anne")])
    for shard in range(2):
        write_parquet(tmp_path, "mmsu", "law", [row(reference="C")], f"0000{shard}-of-00002")
    write_parquet(tmp_path, "openbookqa", "test", [row(reference="A")])
    write_parquet(
        tmp_path,
        "ifeval",
        "test",
        [row(key=1, instruction_id_list=["x:y"], kwargs=[{"num_words": 3}])],
    )
    return tmp_path


def test_voicebench(voicebench):
    questions = load_voicebench(voicebench)
    assert {q.subset for q in questions} == set(VOICEBENCH_DEFAULT)
    by_id = {q.id: q for q in questions}
    assert len(by_id) == len(questions) == 12
    # accents and subjects are splits; shards of a split count on
    assert {"sd-qa/aus/0", "sd-qa/usa/0", "mmsu/law/0", "mmsu/law/1"} <= set(by_id)
    assert by_id["sd-qa/aus/0"].references == ("Anne",)
    assert by_id["alpacaeval/test/1"].references == ()
    rubrics = {q.subset: q.rubric for q in questions}
    assert rubrics == {
        "alpacaeval": "scale",
        "commoneval": "scale",
        "sd-qa": "correct",
        "mmsu": "letter",
        "openbookqa": "letter",
        "ifeval": "instructions",
        "advbench": "refusal",
    }
    assert all(q.audio == b"wav" and q.language == "en" for q in questions)


def test_voicebench_as_json_lines(tmp_path):
    own = tmp_path / "alpacaeval"
    (own / "audios").mkdir(parents=True)
    (own / "audios" / "a.wav").write_bytes(b"wav")
    line = {"audio": "audios/a.wav", "prompt": "Write.", "output": "Done."}
    (own / "test.jsonl").write_text(json.dumps(line) + "\n")
    (question,) = load_voicebench(tmp_path, ("alpacaeval",))
    assert question.audio == own / "audios" / "a.wav" and question.references == ("Done.",)
    (own / "test.jsonl").write_text(json.dumps(line | {"audio": "b.wav"}) + "\n")
    with pytest.raises(EvalError, match=r"test.jsonl, row 1: no file .*b.wav"):
        load_voicebench(tmp_path, ("alpacaeval",))


def test_missing_parts_of_voicebench(voicebench):
    with pytest.raises(EvalError, match="subset 'mtbench' of VoiceBench, expected one of"):
        load_voicebench(voicebench, ("mtbench",))
    with pytest.raises(EvalError, match="wildvoice: no table, expected SPLIT-NNNNN-of-NNNNN"):
        load_voicebench(voicebench, ("wildvoice",))
    write_parquet(voicebench, "mmsu", "law", [row(reference="Z")], "00000-of-00002")
    with pytest.raises(EvalError, match="row 1: column 'reference' holds 'Z', expected one of"):
        load_voicebench(voicebench, ("mmsu",))
    write_parquet(voicebench, "sd-qa", "usa", [row()])
    with pytest.raises(EvalError, match=r"no column \['reference'\]"):
        load_voicebench(voicebench, ("sd-qa",))
    write_parquet(
        voicebench, "advbench", "test", [row() | {"audio": {"bytes": None, "path": None}}]
    )
    with pytest.raises(EvalError, match="row 1: column 'audio' holds"):
        load_voicebench(voicebench, ("advbench",))
    write_parquet(voicebench, "commoneval", "test", [row() | {"prompt": ""}])
    with pytest.raises(EvalError, match="column 'prompt' holds '', expected text"):
        load_voicebench(voicebench, ("commoneval",))
