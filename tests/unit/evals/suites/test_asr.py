"""Recognition with a fake model."""

import pytest

from tests.unit.evals.small_bench import bench_of, run


def test_error_rates_of_corpus_languages_and_groups(tmp_path):
    """Every text is right, except that the first English statement lacks a word."""
    changed = []

    def model(record):
        text = record.parts[0].text
        if record.language == "en" and not changed:
            changed.append(record.id)
            text = text.rsplit(" ", 1)[0]
        return text, 0

    result = run("asr", bench_of(tmp_path, model))
    items, figures = result.items, result.figures
    assert len(items) == 8 and figures["asr_items"] == 8
    total = sum(item["units"] for item in items)
    english = sum(item["units"] for item in items if item["language"] == "en")
    assert figures["asr_wer"] == pytest.approx(1 / total)
    assert figures["asr_wer_en"] == pytest.approx(1 / english)
    assert figures["asr_cer_zh"] == 0 == figures["asr_wer_questions"]
    assert [item["id"] for item in items if not item["correct"]] == changed
    for item in items:
        assert (tmp_path / item["audio"]["heard"]).is_file()
