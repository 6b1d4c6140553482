"""Whole evaluations of a tiny random model: resuming, scoring again, bad input."""

import io
import json
import sys

import numpy as np
import pytest

from ba_jax.audio import write_audio
from ba_jax.checkpoints.components import find, load
from ba_jax.config import from_mapping
from ba_jax.data.record import Part, Record, RecordError, shard_name, write_metadata, write_shard
from ba_jax.evals import results
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges import recogniser as judge_lib
from ba_jax.evals.results import evaluate
from ba_jax.evals.scoring import text
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.report import evaluation
from ba_jax.sharding import ShardingError
from tests.shared_models import share_speech_models
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.evals import small_bench


@pytest.fixture(scope="module")
def tiny():
    return small_bench.tiny()


@pytest.fixture(scope="module", autouse=True)
def shared_models():
    with share_speech_models(results):
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return small_bench.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def prompt_counts(monkeypatch):
    """Number of prompts of each call of the model."""
    counts = []
    generate = Bench.generate

    def count(self, prompts, *arguments):
        counts.append(len(prompts))
        return generate(self, prompts, *arguments)

    monkeypatch.setattr(Bench, "generate", count)
    return counts


def test_results_of_written_suites_and_resuming(tiny, checkpoints, tmp_path, prompt_counts, capsys):
    names = ["asr", "s2tt", "qa_s2t", "qa_t2t"]
    figures = evaluate(tiny, checkpoints, tmp_path, names)
    assert figures["asr_items"] == figures["s2tt_items"] == 4
    assert figures["qa_s2t_items"] == figures["qa_t2t_items"] == 2
    low, high = figures["asr_wer_ci95"]
    assert 0 < low <= figures["asr_wer"] <= high
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    counts = {"asr": 4, "s2tt": 4, "qa_s2t": 2, "qa_t2t": 2}
    assert [item["suite"] for item in items] == [
        n for n, count in counts.items() for _ in range(count)
    ]
    assert (tmp_path / "failed.jsonl").read_text() == ""
    evaluation.write(tmp_path)
    assert "| asr_wer |" in (tmp_path / "report.md").read_text()
    assert "<audio" in (tmp_path / "index.html").read_text()
    generated = (tmp_path / "generations" / "asr.jsonl").read_text().splitlines()
    assert len(generated) == 5 and {"text", "ids", "codes"} <= set(json.loads(generated[1]))
    capsys.readouterr()
    # with a language model alone
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    save_variables(tmp_path / "llm", load(config, find(checkpoints, config, ("llm",))))
    before = evaluate(tiny, [str(tmp_path / "llm")], tmp_path / "before", ["qa_t2t"])
    assert before["qa_t2t"] == figures["qa_t2t"]
    # again: nothing is done
    prompt_counts.clear()
    assert evaluate(tiny, checkpoints, tmp_path, names) == figures and not prompt_counts
    assert "1/4 asr: done before" in capsys.readouterr().out
    # a damaged results file is made again from the saved lines
    (tmp_path / "suites" / "asr.json").write_text("{")
    again = evaluate(tiny, checkpoints, tmp_path, ["asr"])
    assert again["asr_wer"] == figures["asr_wer"] and not prompt_counts
    # other settings, or start="generate", generate again; another judge does not
    other = {**tiny, "eval": {**tiny["eval"], "judge": {"processes": 1, "beam": 2}}}
    evaluate(other, checkpoints, tmp_path, ["asr"])
    assert not prompt_counts
    evaluate({**tiny, "eval": {**tiny["eval"], "seed": 1}}, checkpoints, tmp_path, ["asr"])
    evaluate(tiny, checkpoints, tmp_path, ["asr"], start="generate")
    assert prompt_counts == [4, 4]


def test_scoring_again_without_a_model(
    tiny, checkpoints, tmp_path, prompt_counts, monkeypatch, capsys
):
    figures = evaluate(tiny, checkpoints, tmp_path, ["asr"])
    path = tmp_path / "generations" / "asr.jsonl"
    header, *lines = map(json.loads, path.read_text().splitlines())
    for line, item in zip(lines, read_items(tmp_path), strict=True):
        line["text"] = item["reference"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (header, *lines)))
    prompt_counts.clear()
    again = evaluate(tiny, [], tmp_path, ["asr"], start="score")
    assert again["asr_wer"] == 0 != figures["asr_wer"] and not prompt_counts
    assert again["checkpoints"] == figures["checkpoints"]
    with pytest.raises(EvalError, match="stage 'sing', expected one of"):
        evaluate(tiny, [], tmp_path, ["asr"], start="sing")
    # Figures of another version of the normalisers are never taken over.
    assert "version 2 " in again["normalisers"]["en"]
    monkeypatch.setattr(text, "SCORING_VERSION", 99)
    capsys.readouterr()
    again = evaluate(tiny, checkpoints, tmp_path, ["asr"])
    assert "version 99 " in again["normalisers"]["en"] and not prompt_counts
    assert "1/1 asr: other normalisers scored it: scored again" in capsys.readouterr().out


def read_items(folder):
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def encoded(wave_S):
    stream = io.BytesIO()
    write_audio(stream, np.asarray(wave_S, np.float32), 16000, "flac")
    return stream.getvalue()


def spoken(id, wave_S, text="one two", audio=None):
    audio = encoded(wave_S) if audio is None else audio
    part = Part(text, audio, None, len(wave_S) / 16000, translation="一二")
    return Record(id, "speech", "en", (part,), "bad")


def write_dataset(folder, records):
    folder.mkdir(parents=True)
    shard = write_shard(folder / shard_name("bad", "test", 0, 1), records)
    write_metadata(folder, "bad", {"test": [shard]})
    return folder


def tone(seconds):
    return 0.1 * np.sin(np.arange(int(seconds * 16000)) / 20)


def test_bad_recordings(tiny, checkpoints, tmp_path, monkeypatch):
    """Each gives a result or its own reason; the others are the same as alone."""
    monkeypatch.setattr(judge_lib, "SpeechJudge", small_bench.LengthJudge)
    suites = ["asr", "s2tt", "tts", "codec"]
    good, whole = spoken("good", tone(1.0)), encoded(tone(1.0))
    bad = [
        spoken("empty", tone(0.03)),
        spoken("silence", np.zeros(16000)),
        spoken("noise", np.random.default_rng(0).standard_normal(16000) * 0.1),
        spoken("cut", tone(1.0), audio=whole[: len(whole) // 2]),
        spoken("no-audio", tone(1.0), audio=b"\0" * 100),
        spoken("wrong-length", tone(9.0), audio=whole),
        spoken("long", tone(600.0)),
        spoken("no-text", tone(1.0), text=""),
        spoken("no-words", tone(1.0), text="?!"),
    ]
    config = {**tiny, "eval": {**tiny["eval"], "sources": (), "limit": 0, "save_every": 3}}

    def run(name, records):
        folder = write_dataset(tmp_path / name, records)
        changed = {**config, "eval": {**config["eval"], "dataset": str(folder)}}
        figures = evaluate(changed, checkpoints, tmp_path / f"{name}-out", suites)
        lines = read_items(tmp_path / f"{name}-out")
        items = {(line["suite"], line["id"]): line for line in lines}
        assert len(items) == len(lines)
        return figures, items

    _, alone = run("alone", [good])
    figures, items = run("mixed", [*bad[:4], good, *bad[4:]])
    for suite in suites:
        good, expected = dict(items[suite, "good"]), alone[suite, "good"]
        # Another batch rounds differently.
        assert good.pop("mel_mae", None) == pytest.approx(expected.pop("mel_mae", None))
        assert good == expected
    reasons = {key: item["failed"] for key, item in items.items() if "failed" in item}
    heard = {id: reason for (suite, id), reason in reasons.items() if suite == "asr"}
    assert heard == {
        "empty": "generate: recording of 0.030 s: no frame of codes",
        "cut": heard["cut"],
        "no-audio": heard["no-audio"],
        "wrong-length": "generate: recording: audio cut short: 1.000 s, expected 9.000 s",
        "long": heard["long"],
        "no-text": "generate: task asr: no text",
    }
    assert "recording: " in heard["cut"] and "recording: " in heard["no-audio"]
    assert "positions, expected at most 64 (generation.lengths)" in heard["long"]
    assert figures["asr_items"] == 10 and figures["asr_failed"] == 6
    assert figures["codec_failed"] == 5 and "no-text" not in {
        id for suite, id in reasons if suite == "codec"
    }
    # Synthesis needs no recording; a lost reference has no path.
    assert {id for suite, id in reasons if suite == "tts"} == {"no-text"}
    assert items["tts", "cut"]["audio"]["reference"] == ""
    listed = [
        json.loads(line) for line in (tmp_path / "mixed-out/failed.jsonl").read_text().splitlines()
    ]
    assert {(f["suite"], f["id"]): f"{f['stage']}: {f['reason']}" for f in listed} == reasons
    for item in items.values():
        if "failed" in item:
            assert not item.get("correct") and item.get("errors", 0) == item.get("units", 0)


def test_a_mesh_of_another_size_than_the_devices(tiny, checkpoints, tmp_path):
    with pytest.raises(ShardingError, match="expected sizes whose product is the 1 devices"):
        evaluate({**tiny, "mesh": {"replica": 3}}, checkpoints, tmp_path, ["asr"])


def test_missing_packages_are_an_error_before_any_work(tiny, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(EvalError, match=r"pystoi is not installed: pip install 'ba_jax\[eval\]'"):
        evaluate(tiny, checkpoints, tmp_path, ["asr", "reconstruction"])
    assert not (tmp_path / "generations").exists()


def test_nothing_to_evaluate_on(tiny, checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    for dataset, split, error, match in (
        (tmp_path / "none", "test", RecordError, "no dataset_info.json"),
        (tmp_path / "empty", "test", RecordError, "no dataset_info.json"),
        ("embedded", "tset", RecordError, "split 'tset', expected one of"),
        (write_dataset(tmp_path / "nobody", []), "test", RecordError, "split 'test' has no record"),
    ):
        changed = {**tiny["eval"], "dataset": str(dataset), "split": split, "sources": ()}
        with pytest.raises(error, match=match):
            evaluate({**tiny, "eval": changed}, checkpoints, tmp_path / "out", ["asr"])
