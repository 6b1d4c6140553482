"""Evaluation on datasets that `ba_jax.corpora` makes of folders in public layouts."""

from __future__ import annotations

import json

import pytest

from ba_jax.corpora.runner import PrepareError
from ba_jax.data.record import RecordError
from ba_jax.evals import results
from ba_jax.evals.results import evaluate
from tests.shared_models import share_speech_models
from tests.unit.corpora.corpora import config, made, manifest, put, put_text
from tests.unit.evals import small_bench


@pytest.fixture(scope="module", autouse=True)
def shared_models():
    with share_speech_models(results):
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return small_bench.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def run(dataset, split, suite, checkpoints, out):
    evaluation = small_bench.tiny(dataset=str(dataset), split=split, sources=(), limit=0)
    figures = evaluate(evaluation, checkpoints, out, [suite])
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return figures, items


def test_recognition_on_librispeech(checkpoints, tmp_path):
    folder = tmp_path / "LibriSpeech" / "test-clean" / "84" / "1240"
    for number in range(3):
        put(folder / f"84-1240-{number:04d}.flac", seconds=0.5 + number)
    texts = ["MISTER QUILTER IS", "THE APOSTLE OF", "THE MIDDLE CLASSES"]
    lines = [f"84-1240-{number:04d} {text}\n" for number, text in enumerate(texts)]
    put_text(folder / "84-1240.trans.txt", "".join(lines))
    source = config("librispeech", folder=tmp_path / "LibriSpeech", parts=("test-clean",))
    made(source, tmp_path / "data")
    figures, items = run(tmp_path / "data", "test_clean", "asr", checkpoints, tmp_path / "out")
    assert [item["reference"].upper() for item in items] == texts
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


def test_recognition_on_aishell(checkpoints, tmp_path):
    """Characters count, without the spaces that the transcripts have between words."""
    root = tmp_path / "data_aishell"
    texts = {"BAC009S0764W0121": "甚至 出现 交易", "BAC009S0764W0122": "一 二线 城市"}
    for name in texts:
        put(root / "wav" / "test" / "S0764" / f"{name}.wav", seconds=1.0)
    lines = [f"{name} {text}\n" for name, text in texts.items()]
    put_text(root / "transcript" / "aishell_transcript_v0.8.txt", "".join(lines))
    made(config("aishell", folder=root, splits=("test",)), tmp_path / "data")
    figures, items = run(tmp_path / "data", "test", "asr", checkpoints, tmp_path / "out")
    assert [item["reference"] for item in items] == ["甚至出现交易", "一二线城市"]
    assert [item["units"] for item in items] == [6, 5] and figures["asr_failed"] == 0
    assert figures["asr_wer"] == figures["asr_cer_zh"] and "asr_wer_en" not in figures
    assert "characters in Mandarin" in figures["asr_scored"]
    assert figures["asr_normaliser"]["zh"].startswith("Mandarin: simplified (OpenCC t2s)")


def test_recognition_on_wenetspeech(tmp_path):
    """Segments of a long recording; a character is wrong."""
    root = tmp_path / "wenetspeech"
    name = "Y0000000001_dev"
    put(root / "audio" / "test_net" / f"{name}.opus", seconds=4.0)
    texts = ("怎么样这些日子", "习惯吧")
    segments = [
        {
            "sid": f"{name}_S{n:05d}",
            "begin_time": 2.0 * n,
            "end_time": 2.0 * n + 1.5,
            "subsets": ["TEST_NET"],
            "text": text,
        }
        for n, text in enumerate(texts)
    ]
    audio = {"aid": name, "duration": 4.0, "path": f"audio/test_net/{name}.opus"}
    listing = {"audios": [{**audio, "segments": segments}]}
    put_text(root / "WenetSpeech.json", json.dumps(listing, ensure_ascii=False))
    made(config("wenetspeech", folder=root), tmp_path / "data")
    model = bench(
        tmp_path / "data", tmp_path / "out", "test_net", lambda part: part.text.replace("怎", "這")
    )
    outcome = small_bench.run("asr", model)
    assert [item["id"] for item in outcome.items] == [segment["sid"] for segment in segments]
    assert [item["hypothesis"] for item in outcome.items] == ["這么样这些日子", texts[1]]
    assert [item["errors"] for item in outcome.items] == [1, 0]
    assert outcome.figures["asr_cer_zh"] == outcome.figures["asr_wer"] == 1 / 10
    assert "asr_wer_en" not in outcome.figures


def test_translation_on_covost2(checkpoints, tmp_path):
    """Both directions; sacreBLEU's signature names the target's tokenizer."""
    pairs = {"en": ("zh-CN", "He said so.", "他是这么说的。"), "zh-CN": ("en", "早上好。", "Good.")}
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\n"
    for spoken, (written, text, translation) in pairs.items():
        folder, clip = tmp_path / spoken, f"common_voice_{spoken}_1.mp3"
        put(folder / "clips" / clip, rate=32000, seconds=1.0)
        put_text(folder / "validated.tsv", f"{header}speaker\t{clip}\t{text}\t2\t0\t\t\t\n")
        for split in ("train", "dev", "test"):
            put_text(folder / f"{split}.tsv", header)
        put_text(
            folder / f"covost_v2.{spoken}_{written}.tsv",
            f"path\ttranslation\tsplit\n{clip}\t{translation}\ttest\n",
        )
        source = config("covost2", folder=folder, spoken=spoken, written=written)
        records, _ = made(source, tmp_path / "data" / spoken)
        assert [record.parts[0].translation for record in records.values()] == [translation]
    # The first with the tiny model, the second with a model that writes the translation.
    figures, items = run(tmp_path / "data" / "en", "test", "s2tt", checkpoints, tmp_path / "out")
    assert [item["reference"] for item in items] == ["他是这么说的。"]
    assert figures["s2tt_items"] == figures["s2tt_bleu_en_zh_items"] == 1
    assert "tok:zh" in figures["s2tt_bleu_en_zh_signature"]
    assert "s2tt_bleu_zh_en" not in figures
    model = bench(
        tmp_path / "data" / "zh-CN", tmp_path / "zh", "test", lambda part: part.translation
    )
    figures = small_bench.run("s2tt", model).figures
    assert figures["s2tt_items"] == figures["s2tt_bleu_zh_en_items"] == 1
    assert "tok:13a" in figures["s2tt_bleu_zh_en_signature"]


def bench(dataset, out, split="test", writes=lambda part: part.text):
    """A bench whose model writes the words of a recording, or `writes(part)`."""
    changes = {"dataset": str(dataset), "split": split, "sources": (), "limit": 0}
    return small_bench.bench_of(out, lambda record: (writes(record.parts[0]), 0), **changes)


def test_a_missing_file_in_the_middle_of_a_manifest(tmp_path):
    """`ba_jax.corpora` lists it as rejected; the others are evaluated."""
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
