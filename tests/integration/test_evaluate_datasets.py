"""Evaluation on datasets that `prepare` makes of folders in the layouts of public corpora."""

from __future__ import annotations

import json

import pytest

from ba_jax.data.prepare.runner import PrepareError
from ba_jax.data.record import RecordError
from ba_jax.evaluate import evaluate
from tests.unit.data.prepare.corpora import config, made, manifest, put, put_text
from tests.unit.evals import small_bench


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return small_bench.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def run(dataset, split, suite, checkpoints, out):
    given = small_bench.tiny(dataset=str(dataset), split=split, sources=(), limit=0)
    figures = evaluate(given, checkpoints, out, [suite])
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return figures, items


def test_recognition_on_librispeech(checkpoints, tmp_path):
    folder = tmp_path / "LibriSpeech" / "test-clean" / "84" / "1240"
    for number in range(3):
        put(folder / f"84-1240-{number:04d}.flac", seconds=0.5 + number)
    said = ["MISTER QUILTER IS", "THE APOSTLE OF", "THE MIDDLE CLASSES"]
    lines = [f"84-1240-{number:04d} {text}\n" for number, text in enumerate(said)]
    put_text(folder / "84-1240.trans.txt", "".join(lines))
    source = config("librispeech", folder=tmp_path / "LibriSpeech", parts=("test-clean",))
    made(source, tmp_path / "data")
    figures, items = run(tmp_path / "data", "test_clean", "asr", checkpoints, tmp_path / "out")
    assert [item["reference"].upper() for item in items] == said
    assert figures["asr_items"] == 3 and figures["asr_failed"] == 0
    assert figures["asr_wer"] == figures["asr_wer_en"] and "asr_cer_zh" not in figures
    assert sum(item["units"] for item in items) == 9


def test_translation_on_fleurs(checkpoints, tmp_path):
    """Both directions: the two languages of a sentence translate each other."""
    texts = {"en_us": "A tornado is a spinning column.", "cmn_hans_cn": "龙卷风是旋转的空气柱。"}
    for language, text in texts.items():
        folder = tmp_path / "fleurs" / language
        put(folder / "audio" / "test" / "10001.wav", seconds=1.0)
        row = ("7", "10001.wav", text, text.lower(), "x", "16000", "FEMALE")
        put_text(folder / "test.tsv", "\t".join(row) + "\n")
    source = config("fleurs", folder=tmp_path / "fleurs", splits=("test",))
    records, _ = made(source, tmp_path / "data")
    assert len(records) == 2
    figures, items = run(tmp_path / "data", "test", "s2tt", checkpoints, tmp_path / "out")
    assert {(item["source_language"], item["reference"]) for item in items} == {
        ("en", texts["cmn_hans_cn"]),
        ("zh", texts["en_us"]),
    }
    assert figures["s2tt_items"] == 2 and 0 <= figures["s2tt_bleu_en_zh"] <= 100
    assert "tok:13a" in figures["s2tt_bleu_zh_en_signature"]


def bench(dataset, out):
    """With a model that writes what was said."""
    given = {"dataset": str(dataset), "split": "test", "sources": (), "limit": 0}
    return small_bench.bench_of(out, lambda record: (record.parts[0].text, 0), **given)


def test_a_missing_file_in_the_middle_of_a_manifest(tmp_path):
    """`prepare` lists it as rejected; the others are evaluated."""
    for name in ("a", "c"):
        put(tmp_path / "audio" / f"{name}.wav", seconds=0.5)
    lines = [
        {"id": name, "audio": f"audio/{name}.wav", "text": f"{name} two", "language": "en"}
        for name in ("a", "b", "c")
    ]
    path = manifest(tmp_path, *({**line, "split": "test"} for line in lines))
    records, rejected = made(config("manifest", path=path), tmp_path / "data")
    assert sorted(records) == ["a", "c"] and len(rejected) == 1
    outcome = small_bench.run("asr", bench(tmp_path / "data", tmp_path / "out"))
    assert [item["id"] for item in outcome.items] == ["a", "c"]
    assert outcome.figures["asr_items"] == 2 and outcome.figures["asr_wer"] == 0


def test_an_empty_manifest(tmp_path):
    path = put_text(tmp_path / "empty.jsonl", "")
    with pytest.raises(PrepareError, match="no record was written: 0 rejected"):
        made(config("manifest", path=path), tmp_path / "data")
    with pytest.raises(RecordError, match="data: no dataset_info.json, expected a dataset"):
        small_bench.run("asr", bench(tmp_path / "data", tmp_path / "out"))
