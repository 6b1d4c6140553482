"""Closed questions with a fake model and judge."""

import numpy as np

from tests.unit.evals.small_bench import bench_of, recorded, run, teach


def test_written_answers(tmp_path):
    """English answers are right, Mandarin ones wrong."""

    def model(record):
        return record.parts[1].text if record.language == "en" else "不知道。", 0

    for name in ("qa_s2t", "qa_t2t"):
        figures = run(name, bench_of(tmp_path, model)).figures
        low, high = figures.pop(f"{name}_ci95")
        assert 0 <= low < 0.5 < high <= 1
        assert figures.pop(f"{name}_en_ci95") == [1, 1]
        assert figures.pop(f"{name}_zh_ci95") == [0, 0]
        shares = {name: 0.5, f"{name}_items": 4, f"{name}_en": 1.0, f"{name}_zh": 0.0}
        assert figures == {**shares, f"{name}_failed": 0}


def test_a_transcript_of_the_question_is_no_part_of_the_answer(tmp_path):
    def model(record):
        question, answer = (part.text for part in record.parts)
        return f"{question}\n{answer if record.language == 'en' else question}", 0

    result = run("qa_s2t", bench_of(tmp_path, model))
    assert result.figures["qa_s2t_en"] == 1.0 and result.figures["qa_s2t_zh"] == 0.0
    for item in result.items:
        assert item["transcribe_first"] == item["question"]
        assert item["hypothesis"] == item["reference" if item["correct"] else "question"]


def test_spoken_answers(tmp_path):
    """Right, wrong, silent, right except for a word; the judge errs on a reference."""
    frames = iter((3, 3, 0, 3))
    bench = bench_of(tmp_path, lambda record: (record.parts[1].text, next(frames)))
    answers = [dialogue.parts[1] for dialogue in bench.records.dialogues]
    languages = [dialogue.language for dialogue in bench.records.dialogues]
    assert languages == ["en", "en", "zh", "zh"]
    references = [recorded(part) for part in answers]
    texts = [answers[0].text, "nothing", answers[2].text, answers[3].text]
    teach(bench, references, texts, languages)
    waves = bench.synthesize([np.full((3, 8), i) for i in range(4)])
    texts = [answers[0].text, "The answer is wrong.", "never heard", answers[3].text + "吗"]
    teach(bench, waves, texts, languages)
    result = run("qa_s2s", bench)
    assert [item["correct"] for item in result.items] == [True, False, False, True]
    figures = result.figures
    assert figures["qa_s2s"] == 0.5 and figures["qa_s2s_exact"] == 0.25
    assert figures["qa_s2s_text"] == 1.0 and figures["qa_s2s_on_reference"] == 0.75
    assert result.items[2]["hypothesis"] == "" and result.items[2]["audio"]["generated"] == ""
    assert (tmp_path / result.items[0]["audio"]["generated"]).is_file()
