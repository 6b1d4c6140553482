"""Suites on made-up generations."""

import dataclasses

import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.data.record import RecordSource
from ba_jax.evals.suite import EvalError, items_of
from ba_jax.evals.suites import registry
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.session import Generated
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Failure
from configs.eval import get_config
from tests.unit.evals import small_bench
from tests.unit.evals.small_bench import FakeJudge, bench_of, recorded, run, settings, tell


def test_recognition(tmp_path):
    """All right but the first English statement, which lacks a word."""
    first = {}

    def model(record):
        words = record.parts[0].text
        if record.language == "en" and not first:
            first["id"] = record.id
            words = words.rsplit(" ", 1)[0]
        return words, 0

    outcome = run("asr", bench_of(tmp_path, model))
    items = outcome.items
    assert len(items) == 8 and outcome.figures["asr_items"] == 8
    total = sum(item["units"] for item in items)
    english = sum(item["units"] for item in items if item["language"] == "en")
    assert outcome.figures["asr_wer"] == pytest.approx(1 / total)
    assert outcome.figures["asr_wer_en"] == pytest.approx(1 / english)
    assert outcome.figures["asr_cer_zh"] == 0 == outcome.figures["asr_wer_questions"]
    assert [item["id"] for item in items if not item["correct"]] == [first["id"]]
    for item in items:
        assert (tmp_path / item["audio"]["heard"]).is_file()


def test_written_answers(tmp_path):
    """The right answer to English questions alone."""

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


def test_a_question_that_is_read_back_is_no_part_of_the_answer(tmp_path):
    def model(record):
        question, answer = (part.text for part in record.parts)
        return f"{question}\n{answer if record.language == 'en' else question}", 0

    outcome = run("qa_s2t", bench_of(tmp_path, model))
    assert outcome.figures["qa_s2t_en"] == 1.0 and outcome.figures["qa_s2t_zh"] == 0.0
    for item in outcome.items:
        assert item["transcribe_first"] == item["question"]
        assert item["hypothesis"] == item["reference" if item["correct"] else "question"]


def test_spoken_answers(tmp_path):
    """One is right, one wrong, one silent, one right but for a word; the judge errs on one."""
    frames = iter((3, 3, 0, 3))
    bench = bench_of(tmp_path, lambda record: (record.parts[1].text, next(frames)))
    answers = [dialogue.parts[1] for dialogue in bench.dialogues]
    languages = [dialogue.language for dialogue in bench.dialogues]
    assert languages == ["en", "en", "zh", "zh"]
    real = [recorded(part) for part in answers]
    tell(bench, real, [answers[0].text, "nothing", answers[2].text, answers[3].text], languages)
    made = bench.speech_of([np.full((3, 8), i) for i in range(4)])
    heard = [answers[0].text, "The answer is wrong.", "never heard", answers[3].text + "吗"]
    tell(bench, made, heard, languages)
    outcome = run("qa_s2s", bench)
    assert [item["correct"] for item in outcome.items] == [True, False, False, True]
    figures = outcome.figures
    assert figures["qa_s2s"] == 0.5 and figures["qa_s2s_exact"] == 0.25
    assert figures["qa_s2s_text"] == 1.0 and figures["qa_s2s_on_reference"] == 0.75
    assert outcome.items[2]["hypothesis"] == "" and outcome.items[2]["audio"]["generated"] == ""
    assert (tmp_path / outcome.items[0]["audio"]["generated"]).is_file()


def test_speech(tmp_path):
    bench = bench_of(tmp_path, lambda record: ("", 3))
    said = [record.parts[0].text for record in bench.statements]
    languages = [utterance.language for utterance in bench.statements]
    tell(bench, [recorded(u.parts[0]) for u in bench.statements], said, languages)
    made = bench.speech_of([np.full((3, 8), i) for i in range(4)])
    tell(bench, made, [said[0], "", said[2], said[3]], languages)
    outcome = run("tts", bench)
    lost, total = outcome.items[1]["units"], sum(item["units"] for item in outcome.items)
    assert outcome.figures["tts_judge_wer"] == pytest.approx(lost / total)
    assert outcome.figures["judge_wer_on_reference"] == 0
    assert outcome.figures["tts_judge"] == FakeJudge.names


def test_items_are_held_out_closed_sentences(tmp_path):
    bench = bench_of(tmp_path, None)
    records = RecordSource("embedded", "test")
    closed = {r.id for r in map(records.__getitem__, range(len(records))) if r.source == "closed"}
    assert {u.id for u in bench.statements} | {d.id for d in bench.dialogues} <= closed
    assert {u.id for u in bench.questions} == {f"{d.id}-question" for d in bench.dialogues}


def test_prompts_hold_what_is_heard_and_no_answer(tmp_path):
    """Encoded are questions alone; what is stored is taken as it is."""
    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    bench = small_bench.make_bench(config, {}, settings(), tmp_path, FakeJudge())
    encoded = []

    def encoder(waves, progress):
        encoded.extend(waves)
        return [np.full((len(wave) // 1280, 8), 7, np.int32) for wave in waves]

    bench.model.encoder = encoder
    dialogues = bench.dialogues[:2]
    stored = dataclasses.replace(dialogues[1].parts[0], codes_NQ=np.full((5, 8), 9))
    dialogues[1] = dataclasses.replace(dialogues[1], parts=(stored, dialogues[1].parts[1]))
    pad, tokens = config.tokens.audio_pad, config.tokens
    for task, options in (("sft", {"answers": "spoken"}), ("aqa", {})):
        first, second = bench.prompts(dialogues, task, **options)
        question = dialogues[0].parts[0]
        assert (first.ids_L == pad).sum() == round(question.seconds * 16000) // 1280
        assert (first.codes_LQ[first.ids_L == pad] == 7).all()
        assert (second.codes_LQ[second.ids_L == pad] == 9).all()
        assert (second.ids_L == pad).sum() == 5
        assert tokens.audiogen_start not in first.ids_L
    assert len(encoded) == 1  # the one question without codes, once
    written = bench.prompts(dialogues, "sft", questions="written", answers="spoken")
    said = bench.prompts(bench.statements, "tts")
    assert all(pad not in prompt.ids_L for prompt in written + said) and len(encoded) == 1
    assert all(prompt.ids_L[-1] == tokens.audiogen_start for prompt in said)


def test_texts_are_said_in_turns_or_at_once(tmp_path):
    """What is asked of the generator, and that a text without words fails alone."""
    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    asked = []

    class Fake:
        def __call__(self, prompts, seeds, progress):
            asked.append(("at once", prompts))
            return [Generated([], np.zeros((2, 8), np.int32), True) for _ in prompts]

        def in_turns(self, prompts, seeds, progress):
            asked.append(("in turns", prompts))
            return [Generated([], np.zeros((3, 8), np.int32), True) for _ in prompts]

    for words, frames in ((0, 2), (2, 3)):
        bench = small_bench.make_bench(
            config, {}, settings(tts_words_per_turn=words), tmp_path, FakeJudge()
        )
        bench.model.generator = Fake()
        items = items_of(bench.statements)
        silent = dataclasses.replace(items[1].record.parts[0], text="")
        items[1] = dataclasses.replace(
            items[1], record=dataclasses.replace(items[1].record, parts=(silent,))
        )
        lines = bench.say(items, "speaking")
        assert isinstance(lines[1], Failure) and "text" in lines[1].reason
        assert [len(one["codes"]) for one in lines if not isinstance(one, Failure)] == [frames] * 3
    (first, at_once), (second, in_turns) = asked
    assert (first, second) == ("at once", "in turns")
    for whole, pieces in zip(at_once, in_turns, strict=True):
        words = [bench.model.tokenizer.decode(piece.ids_L[:-1].tolist()) for piece in pieces]
        said = bench.model.tokenizer.decode(whole.ids_L[:-1].tolist())
        assert len(pieces) > 1 and "".join(words).replace(" ", "") == said.replace(" ", "")


def test_nothing_to_evaluate_on(tmp_path):
    bench = bench_of(tmp_path, None, sources=("nobody",))
    with pytest.raises(EvalError, match=r"split test: no record of \('nobody',\)"):
        run("asr", bench)
    with pytest.raises(EvalError, match="suite 'sing', expected one of"):
        registry.components(["sing"], "vocoder")


def test_translation(tmp_path):
    """Everything right but one English sentence, for which the model was too long."""
    lost = []

    def model(record):
        if record.language == "en" and not lost:
            lost.append(record.id)
            return Failure("too long")
        return record.parts[0].translation, 0

    outcome = run("s2tt", bench_of(tmp_path, model))
    figures = outcome.figures
    assert figures["s2tt_items"] == 8 and figures["s2tt_bleu_zh_en_items"] == 4
    assert figures["s2tt_bleu_zh_en"] == pytest.approx(100)
    assert figures["s2tt_bleu_en_zh"] < 90  # the empty one shortens the corpus
    assert "|tok:zh|" in figures["s2tt_bleu_en_zh_signature"]
    assert "|tok:13a|" in figures["s2tt_bleu_zh_en_signature"]
    assert figures["s2tt_failed"] == 1
    assert outcome.failed == [{"id": lost[0], "stage": "generate", "reason": "too long"}]
    (failed,) = (item for item in outcome.items if "failed" in item)
    assert failed["hypothesis"] == "" and failed["failed"] == "generate: too long"
    assert (failed["language"], failed["source_language"]) == ("zh", "en")


def test_what_fails_is_wrong_and_listed(tmp_path):
    """In every suite: the first item fails, the others are right."""

    def model():
        first = []

        def says(record):
            if not first:
                first.append(record.id)
                return Failure("no room")
            return record.parts[-1].text, 0

        return says

    for name, figure, items in (("asr", "asr_wer", 8), ("qa_s2t", "qa_s2t", 4)):
        outcome = run(name, bench_of(tmp_path, model()))
        assert [one["reason"] for one in outcome.failed] == ["no room"]
        assert len(outcome.items) == items
        lost = outcome.items[0]
        assert not lost["correct"] and lost["errors"] == lost["units"] > 0
        if name == "asr":
            total = sum(item["units"] for item in outcome.items)
            assert outcome.figures[figure] == pytest.approx(lost["units"] / total)
        else:
            assert outcome.figures[figure] == 0.75


def test_macro_and_corpus_level(tmp_path):
    """Of four utterances one is lost whole: a quarter of the rates, another share of the units."""
    bench = bench_of(tmp_path, lambda record: ("", 3))
    said = [record.parts[0].text for record in bench.statements]
    languages = [record.language for record in bench.statements]
    tell(bench, [recorded(r.parts[0]) for r in bench.statements], said, languages)
    made = bench.speech_of([np.full((3, 8), i) for i in range(4)])
    tell(bench, made, ["", *said[1:]], languages)
    figures = run("tts", bench).figures
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
def test_a_judge_that_is_down_or_answers_nonsense(tmp_path, judge, reason):
    """Items that need it fail with its reason; asked again when it is well, they do not."""
    bench = bench_of(tmp_path, lambda record: ("", 3))

    def hear(waves, languages, progress=None):
        if isinstance(judge, Exception):
            raise judge
        return judge(waves)

    well, bench.judge.hear = bench.judge.hear, hear
    outcome = run("tts", bench)
    assert [(one["stage"], one["reason"]) for one in outcome.failed] == [("judge", reason)] * 4
    assert outcome.figures["tts_judge_wer"] == 1 and outcome.figures["tts_failed"] == 4
    assert outcome.figures["judge_wer_on_reference"] is None
    for item in outcome.items:
        assert (tmp_path / item["audio"]["generated"]).is_file()

    bench.judge.hear = well
    said = [record.parts[0].text for record in bench.statements]
    languages = [record.language for record in bench.statements]
    tell(bench, [recorded(r.parts[0]) for r in bench.statements], said, languages)
    tell(bench, bench.speech_of([np.full((3, 8), i) for i in range(4)]), said, languages)
    bench.generate = bench.speech_of = None  # what was made is not made again
    outcome = run("tts", bench, start="judge")
    assert outcome.figures["tts_judge_wer"] == 0 == outcome.figures["tts_failed"]


def test_a_reference_that_is_not_heard_is_no_failure_of_the_model(tmp_path):
    bench = bench_of(tmp_path, lambda record: ("", 3), limit=1)
    said = [record.parts[0].text for record in bench.statements]
    calls = []

    def hear(waves, languages, progress=None):
        calls.append(waves)
        return said if len(calls) == 1 else [Failure("judge: 31.0 s"), said[1]]

    bench.judge.hear = hear
    outcome = run("tts", bench)
    assert outcome.figures["tts_judge_wer"] == 0 == outcome.figures["tts_failed"]
    first = outcome.items[0]
    assert first["reference_failed"] == "judge: 31.0 s"
    assert first["errors_on_reference"] == first["units_on_reference"]


def test_nonsense_of_a_model_or_a_judge_is_scored(tmp_path):
    odd = "\ud800 \x00 {} <|im_end|> " + "la " * 50
    bench = bench_of(tmp_path, lambda record: ("", 3), limit=1)
    bench.judge.hear = lambda waves, languages, progress=None: [odd] * len(waves)
    outcome = run("tts", bench)
    assert outcome.figures["tts_judge_wer"] > 1 and outcome.figures["tts_failed"] == 0


def test_a_language_that_nobody_knows(tmp_path):
    bench = bench_of(tmp_path, lambda record: (record.parts[0].text, 0))
    bench.statements[1] = dataclasses.replace(bench.statements[1], language="de")
    outcome = run("asr", bench)
    assert len(outcome.items) == 8
    (failed,) = outcome.failed
    assert failed["id"] == bench.statements[1].id and "language 'de', expected" in failed["reason"]
    assert outcome.figures["asr_wer"] == 0  # nobody can count its words
    assert not outcome.items[1]["correct"]


def test_damaged_records_are_listed(tmp_path):
    bench = bench_of(tmp_path, lambda record: (record.parts[1].text, 0))
    bench.damaged[7] = "12 bytes that are no record"
    outcome = run("qa_t2t", bench)
    assert outcome.failed == [
        {"id": "record-7", "stage": "generate", "reason": "12 bytes that are no record"}
    ]
    assert outcome.figures["qa_t2t"] == 0.8 and outcome.figures["qa_t2t_items"] == 5
