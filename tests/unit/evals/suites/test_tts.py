"""Speech synthesis with a fake model and judge: figures, and a judge that fails."""

import numpy as np
import pytest

from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Failure
from tests.unit.evals.small_bench import FakeJudge, bench_of, recorded, run, teach


@pytest.fixture
def bench(tmp_path):
    return bench_of(tmp_path, lambda record: ("", 3))


def texts_of(bench):
    return [record.parts[0].text for record in bench.records.statements]


def teach_statements(bench, texts):
    """Teach the judge the references, and `texts` for the synthesized waves."""
    statements = bench.records.statements
    languages = [record.language for record in statements]
    references = [recorded(record.parts[0]) for record in statements]
    teach(bench, references, texts_of(bench), languages)
    teach(bench, bench.synthesize([np.full((3, 8), i) for i in range(4)]), texts, languages)


def test_corpus_level_and_macro_rates(bench):
    """A lost utterance of four: a quarter of the rates, another share of the units."""
    teach_statements(bench, ["", *texts_of(bench)[1:]])
    result = run("tts", bench)
    figures = result.figures
    lost, total = result.items[0]["units"], sum(item["units"] for item in result.items)
    assert figures["tts_judge_wer"] == pytest.approx(lost / total)
    assert figures["judge_wer_on_reference"] == 0 and figures["tts_judge"] == FakeJudge.names
    assert figures["tts_judge_wer_macro"] == 0.25 != figures["tts_judge_wer"]
    assert figures["tts_judge_wer_macro_en"] == 0.5 and figures["tts_judge_cer_macro_zh"] == 0
    assert set(figures["tts_normaliser"]) == {"en", "zh"}


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (SpeechToolError("no weights"), "judge: no weights"),
        (ConnectionRefusedError("down"), "judge: down"),
        (lambda waves: [None] * len(waves), "judge: answered None, expected a text"),
        (lambda waves: ["a"], "judge: 1 answers to 4 recordings"),
        (lambda waves: [Failure("judge: no zh")] * len(waves), "judge: no zh"),
    ],
    ids=["tool", "down", "no text", "too few", "language"],
)
def test_a_judge_that_is_down_or_answers_nonsense(bench, tmp_path, judge, reason):
    """Items fail with its reason; judged again by a working judge, they do not."""

    def hear(waves, languages, progress=None):
        if isinstance(judge, Exception):
            raise judge
        return judge(waves)

    working, bench.judge.hear = bench.judge.hear, hear
    result = run("tts", bench)
    assert [(f["stage"], f["reason"]) for f in result.failed] == [("judge", reason)] * 4
    assert result.figures["tts_judge_wer"] == 1 and result.figures["tts_failed"] == 4
    assert result.figures["judge_wer_on_reference"] is None
    for item in result.items:
        assert (tmp_path / item["audio"]["generated"]).is_file()

    bench.judge.hear = working
    teach_statements(bench, texts_of(bench))
    bench.generate = bench.synthesize = None  # saved lines are not generated again
    result = run("tts", bench, start="judge")
    assert result.figures["tts_judge_wer"] == 0 == result.figures["tts_failed"]


def test_a_reference_that_is_not_heard_is_no_failure_of_the_model(tmp_path):
    bench = bench_of(tmp_path, lambda record: ("", 3), limit=1)
    texts, calls = texts_of(bench), []

    def hear(waves, languages, progress=None):
        calls.append(waves)
        return texts if len(calls) == 1 else [Failure("judge: 31.0 s"), texts[1]]

    bench.judge.hear = hear
    result = run("tts", bench)
    assert result.figures["tts_judge_wer"] == 0 == result.figures["tts_failed"]
    first = result.items[0]
    assert first["reference_failed"] == "judge: 31.0 s"
    assert first["errors_on_reference"] == first["units_on_reference"]


def test_nonsense_from_a_judge_is_scored(tmp_path):
    nonsense = "\ud800 \x00 {} <|im_end|> " + "la " * 50
    bench = bench_of(tmp_path, lambda record: ("", 3), limit=1)
    bench.judge.hear = lambda waves, languages, progress=None: [nonsense] * len(waves)
    result = run("tts", bench)
    assert result.figures["tts_judge_wer"] > 1 and result.figures["tts_failed"] == 0
