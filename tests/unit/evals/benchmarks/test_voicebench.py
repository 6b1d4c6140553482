"""Small folders in the layout of the release (Parquet), and as JSON lines beside recordings."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from ba_jax.evals.benchmarks.tables import LayoutError
from ba_jax.evals.benchmarks.voicebench import DEFAULT, load


def write(folder, subset, split, rows, shard="00000-of-00001"):
    path = folder / subset / f"{split}-{shard}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def row(**columns):
    return {"audio": {"bytes": b"wav", "path": "0.wav"}, "prompt": "Who is it?", **columns}


@pytest.fixture
def folder(tmp_path):
    for subset in ("alpacaeval", "commoneval", "advbench"):
        write(tmp_path, subset, "test", [row(), row()])
    for split in ("usa", "aus"):
        write(tmp_path, "sd-qa", split, [row(reference="Anne")])
    for shard in range(2):
        write(tmp_path, "mmsu", "law", [row(reference="C")], f"0000{shard}-of-00002")
    write(tmp_path, "openbookqa", "test", [row(reference="A")])
    write(
        tmp_path,
        "ifeval",
        "test",
        [row(key=1, instruction_id_list=["x:y"], kwargs=[{"num_words": 3}])],
    )
    return tmp_path


def test_all_subsets(folder):
    questions = load(folder)
    assert {q.subset for q in questions} == set(DEFAULT)
    by_id = {q.id: q for q in questions}
    assert len(by_id) == len(questions) == 12
    # accents and subjects are splits; shards of a split count on
    assert {"sd-qa/aus/0", "sd-qa/usa/0", "mmsu/law/0", "mmsu/law/1"} <= set(by_id)
    assert by_id["sd-qa/aus/0"].references == ("Anne",)
    assert by_id["sd-qa/aus/0"].metadata == {"split": "aus", "reference": "Anne"}
    assert by_id["alpacaeval/test/1"].references == ()
    assert by_id["ifeval/test/0"].metadata["kwargs"] == [{"num_words": 3}]
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


def test_json_lines(tmp_path):
    own = tmp_path / "alpacaeval"
    (own / "audios").mkdir(parents=True)
    (own / "audios" / "a.wav").write_bytes(b"wav")
    line = {"audio": "audios/a.wav", "prompt": "Write.", "output": "Done."}
    (own / "test.jsonl").write_text(json.dumps(line) + "\n")
    (question,) = load(tmp_path, ("alpacaeval",))
    assert question.audio == own / "audios" / "a.wav" and question.references == ("Done.",)
    (own / "test.jsonl").write_text(json.dumps(line | {"audio": "b.wav"}) + "\n")
    with pytest.raises(LayoutError, match=r"test.jsonl, row 1: no file .*b.wav"):
        load(tmp_path, ("alpacaeval",))


def test_missing_parts_are_named(folder):
    with pytest.raises(LayoutError, match="subset 'mtbench' of VoiceBench, expected one of"):
        load(folder, ("mtbench",))
    with pytest.raises(LayoutError, match="wildvoice: no table, expected SPLIT-NNNNN-of-NNNNN"):
        load(folder, ("wildvoice",))
    write(folder, "mmsu", "law", [row(reference="Z")], "00000-of-00002")
    with pytest.raises(LayoutError, match="row 1: column 'reference' holds 'Z', expected one of"):
        load(folder, ("mmsu",))
    write(folder, "sd-qa", "usa", [row()])
    with pytest.raises(LayoutError, match=r"no column \['reference'\]"):
        load(folder, ("sd-qa",))
    write(folder, "advbench", "test", [row() | {"audio": {"bytes": None, "path": None}}])
    with pytest.raises(LayoutError, match="row 1: column 'audio' holds"):
        load(folder, ("advbench",))
    write(folder, "commoneval", "test", [row() | {"prompt": ""}])
    with pytest.raises(LayoutError, match="column 'prompt' holds '', expected text"):
        load(folder, ("commoneval",))
