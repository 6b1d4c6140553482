"""Comparisons with fake likelihoods; tests decode the scored tokens."""

import dataclasses
import json

import numpy as np
import pytest

from ba_jax.audio import write_audio
from ba_jax.config import from_mapping
from ba_jax.data.corpus import facts
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.sequence import to_sequence
from ba_jax.evals import runner
from ba_jax.evals.items import EvalError
from ba_jax.evals.settings import Benchmarks, EvalSettings
from ba_jax.evals.suites import choice
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.likelihood import LENGTHS, Likelihood, Scored, Scorer
from ba_jax.sampling.session import Generated
from ba_jax.types import Failure
from configs.eval import get_config
from tests.unit.evals import small_bench
from tests.unit.models import conftest

SUITES = {suite.name: suite for suite in choice.SUITES}
MADE_WITH = dict.fromkeys(runner.FOLDERS, "x")


def bench_of(tmp_path, likelihood, writes=None, **benchmarks):
    """A bench whose model gives an ending the log-likelihood `likelihood(text)`; codes are 7.

    With `writes` it transcribes: it writes `writes(number)` for item `number`.
    """
    config = get_config("nano").to_dict()
    changes = {"limit": 2, "transcribe_first": writes is not None}
    settings = from_mapping(EvalSettings, config["eval"] | changes)
    settings = dataclasses.replace(settings, benchmarks=Benchmarks(**benchmarks))
    bench = small_bench.make_bench(
        from_mapping(BaichuanAudioConfig, config["model"]), {}, settings, tmp_path / "out", None
    )
    bench.seen = []

    def encoder(waves, progress):
        return [np.full((len(wave) // 1280, 8), 7, np.int32) for wave in waves]

    def log_likelihoods(endings, description):
        results = []
        for ending in endings:
            bench.seen.append(ending)
            text = bench.model.tokenizer.decode(ending.ids_L[ending.text_L].tolist())
            tokens, frames = int(ending.text_L.sum()), int(ending.audio_L.sum())
            nats = likelihood(text.strip() if tokens else frames)
            results.append(
                Likelihood(nats, tokens, 0.0, 0) if tokens else Likelihood(0.0, 0, nats, frames * 8)
            )
        return results

    def generate(prompts, description, numbers):
        bench.asked = [p if isinstance(p, Failure) else len(p) for p in prompts]
        return [
            text
            if isinstance(text, Failure)
            else Generated(bench.model.tokenizer.encode(text), None, True)
            for text in map(writes, numbers)
        ]

    bench.model.encoder, bench.log_likelihoods, bench.generate = encoder, log_likelihoods, generate
    return bench


def run(bench, name):
    return runner.run(SUITES[name], bench, MADE_WITH)


def before(bench, ending):
    """The text before the scored tokens, and the number of frames."""
    first = int((ending.text_L | ending.audio_L).argmax())
    ids, pad = ending.ids_L[:first], bench.model.config.tokens.audio_pad
    tokenizer = bench.model.tokenizer
    special = set(tokenizer.special_tokens.values())
    return tokenizer.decode([i for i in ids.tolist() if i not in special]), (ids == pad).sum()


def test_miniature(tmp_path):
    """The model prefers the right answers of the English dialogues alone."""
    right = {fact.answers["en"] for fact in facts.facts()}
    bench = bench_of(tmp_path, lambda ending: -1.0)
    answers = [dialogue.parts[1].text for dialogue in bench.records.dialogues]
    bench = bench_of(tmp_path, lambda ending: -1.0 if ending in answers[:2] else -9.0)
    for name, heard in (("cloze_t2t", False), ("cloze_s2t", True)):
        result = run(bench, name)
        figures, rows = result["figures"], result["items"]
        assert [row["reference"] for row in rows] == answers
        assert figures[name] == 0.5 and figures[f"{name}_en"] == 1 and figures[f"{name}_zh"] == 0
        assert figures[f"{name}_chance"] == 0.5 and figures[f"{name}_failed"] == 0
        assert figures[f"{name}_ci95"] == [0.0, 1.0]
        for row in rows:
            first, second = row["endings"]
            assert first != second and (row["language"] == "zh" or second in right)
        assert {bool(before(bench, ending)[1]) for ending in bench.seen} == {heard}
        bench.seen.clear()


def test_endings_are_scored_below_the_transcript(tmp_path):
    """Without a whole line they follow the speech; a failed transcript is wrong."""
    written = {0: "What is it?\nIt is", 1: "It is.", 2: "什么？\n", 3: Failure("cut")}
    bench = bench_of(tmp_path, lambda ending: -1.0 * len(ending), written.get)
    result = run(bench, "cloze_s2t")
    rows, figures = result["items"], result["figures"]
    assert [row.get("transcribe_first") for row in rows] == ["What is it?", "", "什么？", None]
    assert figures["cloze_s2t_transcribe_first"] == pytest.approx(2 / 3)
    assert "below the transcript" in figures["cloze_s2t_scored"]
    assert [failure["reason"] for failure in result["failed"]] == ["cut"]
    assert len(bench.seen) == 3 * 2
    for number, ending in enumerate(bench.seen):
        text, frames = before(bench, ending)
        row = rows[number // 2]
        line = f"{row['transcribe_first']}\n" if row["transcribe_first"] else ""
        assert text.endswith((":", "：")) if not line else text.endswith(line)
        assert (
            frames
            and bench.model.tokenizer.decode(ending.ids_L[ending.text_L].tolist())
            == (row["endings"][number % 2])
        )
        # its prompt ends before that line
        first = int(ending.text_L.argmax())
        assert bench.asked[number // 2] == first - len(bench.model.tokenizer.encode(line))


def test_a_spoken_context_is_transcribed_and_a_written_one_is_not(tmp_path, s2s):
    def writes(number):
        return f"Story {number}.\nOnce"

    bench = bench_of(
        tmp_path, lambda ending: -1.0, writes, s2sbench=str(s2s), subsets=("sStoryCloze",)
    )
    result = run(bench, "s2sbench_s2t")
    assert [row.get("transcribe_first") for row in result["items"]] == [
        "Story 0.",
        "Story 1.",
        None,
    ]
    text, frames = before(bench, bench.seen[0])
    assert text.endswith("content: Story 0.\n") and frames == 4
    ending = bench.seen[0].ids_L[bench.seen[0].text_L].tolist()
    assert bench.model.tokenizer.decode(ending) == "good end"
    figures = run(bench, "s2sbench_t2t")["figures"]
    assert "s2sbench_t2t_transcribe_first" not in figures
    for name in ("1_correct", "1_incorrect"):
        wav(tmp_path / "sSC" / f"{name}.wav", 0.4)
    stories = bench_of(tmp_path / "b", lambda frames: -1.0, writes,
                       spoken_story_cloze=str(tmp_path / "sSC"))  # fmt: skip
    assert "transcribe_first" not in run(stories, "spoken_story_cloze")["items"][0]


def test_likelihoods_below_a_line_are_those_of_training(tmp_path):
    """A tiny model: the scores equal those of the training examples' answers."""
    given = small_bench.tiny(transcribe_first=True)
    config = from_mapping(BaichuanAudioConfig, given["model"])
    variables = conftest.variables.__wrapped__(config.only("llm", "audio_embed", "audio_head"))
    settings = from_mapping(EvalSettings, given["eval"])
    bench = small_bench.make_bench(config, variables, settings, tmp_path, None)
    dialogues = bench.records.dialogues
    codes = [np.full((3 + i, 3), i, np.int32) for i in range(len(dialogues))]
    bench.encode = lambda parts: codes
    bench.generate = lambda prompts, what, numbers: [
        Generated(bench.model.tokenizer.encode(f"{dialogues[i].parts[0].text}\nx"), None, True)
        for i in numbers
    ]
    rows = run(bench, "cloze_s2t")["items"]
    maker, expected = ExampleMaker("aqa", transcribe_first=True), []
    for dialogue, own in zip(dialogues, codes, strict=True):
        question, answer = dialogue.parts
        for text in (answer.text, choice.wrong_answer(dialogue)):
            parts = (
                dataclasses.replace(question, codes_NQ=own),
                dataclasses.replace(answer, text=text),
            )
            example = maker(dataclasses.replace(dialogue, parts=parts))
            sequence = to_sequence(example, bench.model.tokenizer, (64, 32, 16))
            scored = Scored.of(sequence, config.tokens, bench.model.tokenizer.eos_id)
            line = bench.model.tokenizer.encode(f"{question.text}\n")
            assert scored.ids_L[scored.text_L].tolist()[: len(line)] == line
            expected.append(scored.without_first(len(line)))
    scorer = Scorer(config, variables, rows=4, lengths=LENGTHS)
    nats = [likelihood.text for likelihood in scorer(expected)]
    assert [n for row in rows for n in row["nats"]] == pytest.approx(nats, abs=1e-3)
    assert [n for row in rows for n in row["tokens"]] == [
        int(scored.text_L.sum()) for scored in expected
    ]


def test_wrong_answers_are_of_the_category(tmp_path):
    by_answer = {fact.answers[lang]: fact for fact in facts.facts() for lang in ("en", "zh")}
    bench = bench_of(tmp_path, float)
    for dialogue in bench.records.dialogues:
        answer, wrong = dialogue.parts[1].text, choice.wrong_answer(dialogue)
        assert wrong != answer
        assert by_answer[wrong].category == by_answer[answer].category
    other = dataclasses.replace(dialogue.parts[1], text="Perhaps.")
    with pytest.raises(EvalError, match=r"'Perhaps.' is no answer of the closed facts"):
        choice.wrong_answer(dataclasses.replace(dialogue, parts=(dialogue.parts[0], other)))


def wav(path, seconds=0.32):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, 0.1 * np.sin(np.arange(int(16000 * seconds))).astype(np.float32), 16000)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def s2s(tmp_path):
    folder = tmp_path / "S2S"
    stories = folder / "StoryCloze"
    lines(
        stories / "sStory_s2t.jsonl",
        [
            {
                "uttid": f"{i}",
                "first": f"Story {i // 2}.",
                "last": ("good end", "odd end now")[i % 2],
            }
            for i in range(6)
        ],
    )
    for i in (0, 2):
        wav(stories / "s-story-firstspeech" / f"{i}.wav")
    (stories / "s-story-firstspeech" / "4.wav").write_bytes(b"no audio")
    question = {"uttid": "q", "first": "几个？", "answer": "B"}
    lines(folder / "cmmlu" / "cmmlu_rewrite_4.jsonl", [question | {x: x * 3 for x in "ABCD"}])
    wav(folder / "cmmlu" / "cmmlu_rewrite" / "q.wav")
    return folder


def test_s2sbench_heard_and_read(tmp_path, s2s):
    """The mean decides; a damaged recording is wrong, and does not stop the rest."""
    # "odd end now" is likelier a token, "good end" as a whole
    likelihoods = {"good end": -6.0, "odd end now": -6.5, "BBB": -1.0, "AAA": -2.0}
    bench = bench_of(
        tmp_path,
        lambda ending: likelihoods.get(ending, -0.5 if ending == "DDD" else -3.0),
        s2sbench=str(s2s),
        subsets=("sStoryCloze", "sCMMLU"),
    )
    sizes = {e: len(bench.model.tokenizer.encode(" " + e)) for e in ("good end", "odd end now")}
    assert -6.0 / sizes["good end"] < -6.5 / sizes["odd end now"]
    result = run(bench, "s2sbench_s2t")
    figures, rows = result["figures"], result["items"]
    assert [row["correct"] for row in rows] == [False] * 4
    assert [row["correct_total"] for row in rows] == [True, True, False, False]
    assert figures["s2sbench_s2t_sStoryCloze"] == 0 == figures["s2sbench_s2t_sCMMLU"]
    assert figures["s2sbench_s2t_total"] == 0.5
    # B beats A and C, not D: two of three; of the stories none of three
    assert figures["s2sbench_s2t_pairs"] == pytest.approx(2 / 6)
    assert figures["s2sbench_s2t_chance"] == pytest.approx((3 / 2 + 1 / 4) / 4)
    assert [failure["id"] for failure in result["failed"]] == ["sStoryCloze/4"]
    assert "expected a WAV" in result["failed"][0]["reason"] and rows[2]["hypothesis"] == ""
    assert figures["s2sbench_s2t_failed"] == 1
    text, frames = before(bench, bench.seen[0])
    assert "Story" not in text and text.startswith("Below is a segment") and frames == 4
    bench.seen.clear()

    figures = run(bench, "s2sbench_t2t")["figures"]
    assert figures["s2sbench_t2t_items"] == 4 and figures["s2sbench_t2t_failed"] == 0
    text, frames = before(bench, bench.seen[0])
    assert text.endswith("Story 0.") and frames == 0
    assert len(bench.seen) == 3 * 2 + 4

    limited = bench_of(tmp_path / "b", lambda e: -1.0, s2sbench=str(s2s), limit=1,
                       subsets=("sStoryCloze", "sCMMLU"))  # fmt: skip
    result = run(limited, "s2sbench_t2t")
    assert [row["id"] for row in result["items"]] == ["sStoryCloze/0", "sCMMLU/q"]
    # all alike: a tie is no right choice
    assert result["figures"]["s2sbench_t2t"] == 0 == result["figures"]["s2sbench_t2t_pairs"]


def test_whole_spoken_stories_are_scored_by_their_codes(tmp_path):
    for name, seconds in (("1_correct", 0.4), ("1_incorrect", 0.8), ("2_correct", 0.02)):
        wav(tmp_path / "sSC" / f"{name}.wav", seconds)
    wav(tmp_path / "sSC" / "2_incorrect.wav", 0.4)
    bench = bench_of(
        tmp_path, lambda frames: {5: -40.0, 10: -100.0}[frames],
        spoken_story_cloze=str(tmp_path / "sSC"),
    )  # fmt: skip
    result = run(bench, "spoken_story_cloze")
    assert [row["correct"] for row in result["items"]] == [True, False]
    assert result["items"][0]["tokens"] == [40, 80]
    assert "no frame of codes" in result["failed"][0]["reason"]
    ending = bench.seen[0]
    assert ending.ids_L[0] == bench.model.config.tokens.audiogen_start
    assert ending.audio_L.sum() == 5 and not ending.text_L.any()


def test_nothing_to_compare(tmp_path, s2s):
    bench = bench_of(tmp_path, float)
    with pytest.raises(EvalError, match="benchmarks.s2sbench is not set"):
        run(bench, "s2sbench_t2t")
    with pytest.raises(EvalError, match="no such file or folder"):
        run(bench_of(tmp_path, float, cmmlu="nowhere"), "cmmlu_t2t")
    (tmp_path / "C" / "test").mkdir(parents=True)
    (tmp_path / "C" / "test" / "s.csv").write_text("Question,A,B,C,D,Answer\n谁？,我,你,他,她,D\n")
    with pytest.raises(EvalError, match="cmmlu_s2t: s/0 has no spoken context"):
        run(bench_of(tmp_path, float, cmmlu=str(tmp_path / "C")), "cmmlu_s2t")
    bench = bench_of(tmp_path, lambda ending: float("nan"), cmmlu=str(tmp_path / "C"))
    result = run(bench, "cmmlu_t2t")
    assert result["failed"][0]["reason"] == "a likelihood that is not finite"
    for options in ({"limit": -1}, {"style": "poem"}):
        with pytest.raises(ValueError, match="expected"):
            Benchmarks(**options)
