"""Items that fail, in several suites: they are wrong and listed."""

import dataclasses

import pytest

from ba_jax.config import ConfigError
from ba_jax.evals.suites import registry
from ba_jax.types import Failure
from tests.unit.evals.small_bench import bench_of, run


def failing_first(text_of):
    """A model that fails on its first record and is right on the others."""
    failed = []

    def model(record):
        if not failed:
            failed.append(record.id)
            return Failure("no room")
        return text_of(record), 0

    return model


def test_a_failed_recognition_has_every_unit_wrong(tmp_path):
    result = run("asr", bench_of(tmp_path, failing_first(lambda record: record.parts[-1].text)))
    assert [failure["reason"] for failure in result.failed] == ["no room"]
    lost = result.items[0]
    assert len(result.items) == 8
    assert not lost["correct"] and lost["errors"] == lost["units"] > 0
    total = sum(item["units"] for item in result.items)
    assert result.figures["asr_wer"] == pytest.approx(lost["units"] / total)


def test_a_failed_answer_is_wrong(tmp_path):
    result = run("qa_s2t", bench_of(tmp_path, failing_first(lambda record: record.parts[-1].text)))
    assert [failure["reason"] for failure in result.failed] == ["no room"]
    lost = result.items[0]
    assert len(result.items) == 4 and result.figures["qa_s2t"] == 0.75
    assert not lost["correct"] and lost["errors"] == lost["units"] > 0


def test_a_failed_translation_is_empty(tmp_path):
    """It shortens the corpus, which lowers BLEU."""
    model = failing_first(lambda record: record.parts[0].translation)
    result = run("s2tt", bench_of(tmp_path, model))
    figures = result.figures
    assert figures["s2tt_items"] == 8 and figures["s2tt_bleu_zh_en_items"] == 4
    assert figures["s2tt_bleu_zh_en"] == pytest.approx(100) and figures["s2tt_bleu_en_zh"] < 90
    assert "|tok:zh|" in figures["s2tt_bleu_en_zh_signature"]
    assert "|tok:13a|" in figures["s2tt_bleu_zh_en_signature"]
    assert figures["s2tt_failed"] == 1
    (failed,) = (item for item in result.items if "failed" in item)
    assert result.failed == [{"id": failed["id"], "stage": "generate", "reason": "no room"}]
    assert failed["hypothesis"] == "" and failed["failed"] == "generate: no room"
    assert (failed["language"], failed["source_language"]) == ("zh", "en")


def test_an_unknown_language(tmp_path):
    bench = bench_of(tmp_path, lambda record: (record.parts[0].text, 0))
    statements = bench.records.statements
    statements[1] = dataclasses.replace(statements[1], language="German")
    result = run("asr", bench)
    assert len(result.items) == 8
    (failed,) = result.failed
    assert failed["id"] == statements[1].id and "language 'German', expected" in failed["reason"]
    assert result.figures["asr_wer"] == 0  # its words cannot be counted
    assert not result.items[1]["correct"]


def test_damaged_records_are_listed(tmp_path):
    bench = bench_of(tmp_path, lambda record: (record.parts[1].text, 0))
    bench.records.damaged[7] = "12 bytes that are no record"
    result = run("qa_t2t", bench)
    assert result.failed == [
        {"id": "record-7", "stage": "generate", "reason": "12 bytes that are no record"}
    ]
    assert result.figures["qa_t2t"] == 0.8 and result.figures["qa_t2t_items"] == 5


def test_an_unknown_suite():
    with pytest.raises(ConfigError, match="suite 'sing', expected one of"):
        registry.components(["sing"], "vocoder")


def test_suites_of_a_model_that_hears_features():
    parts = registry.components(["asr", "qa_s2t"], "vocoder", "features")
    assert parts == ("llm", "audio_encoder", "vq_bridge")
    for suite in ("tts", "codec"):
        with pytest.raises(ConfigError, match=f"suite {suite}: eval.hears = 'quantized', expected"):
            registry.components([suite], "vocoder", "quantized")
