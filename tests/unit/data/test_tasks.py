"""Tasks and their token sequences: which positions carry loss, pinned position by position."""

from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from ba_jax.corpora.make_tokenizer import train_sentencepiece
from ba_jax.data.record import RecordError
from ba_jax.data.sequence import to_sequence
from ba_jax.data.tasks import PROMPTS, TASKS, in_pieces, make_example, prompt
from ba_jax.data.text_tokenizer import load_text_tokenizer
from ba_jax.types import Example, Segment
from ba_jax.vocab import CodeError
from tests.unit.data.letters import SIZES, Letters, describe


def codes(frames: int, first: int = 0) -> np.ndarray:
    return (first + np.arange(frames))[:, None] + np.array([[0, 1, 2]])


def show(task: str, *args, language: str = "en", **options) -> str:
    """The sequence of a task's example, see `describe`."""
    example = make_example(task, *args, id="x", language=language, source="test", **options)
    return describe(to_sequence(example, Letters(), SIZES))


LAYOUTS = [
    (
        "asr",
        (codes(2), "hi"),
        {"language": "zh"},
        "将语音转录为文本: audio_start [0] [1] audio_end hi* </s>*",
    ),
    (
        "aqa",
        (codes(1), "yes"),
        {"variant": 1},
        "Listen and answer: audio_start [0] audio_end yes* </s>*",
    ),
    (
        "s2tt",
        (codes(1), "ja"),
        {},
        "Translate the speech into Chinese: audio_start [0] audio_end ja* </s>*",
    ),
    (
        "intlv",
        (["a", codes(1), "b", codes(1, 5)],),
        {},
        "a* audio_start [0] audio_end b* audio_start [5] audio_end",
    ),
    ("intlv", ([codes(1), "b"],), {}, "audio_start [0] audio_end b* </s>*"),
    ("tts", ("hi", codes(2)), {}, "hi audiogen_start [0]^ [1]^ audiogen_end^ </s>*"),
    (
        "itts",
        (["a", codes(1), "b", codes(1, 5)],),
        {},
        "a audiogen_start [0]^ audiogen_end^ b* audiogen_start* [5]^ audiogen_end^ </s>*",
    ),
    (
        "itts",
        (["a", codes(1), "b", codes(1, 5)],),
        {"fully_conditioned": True},
        "a audiogen_start [0]^ audiogen_end^ b audiogen_start [5]^ audiogen_end^ </s>*",
    ),
    (
        "iasr",
        ([codes(1), "b", codes(1, 5), "c"],),
        {},
        "Transcribe the speech into text: audio_start [0] audio_end b* audio_start [5] audio_end "
        "c* </s>*",
    ),
    ("audio", (codes(2, 3),), {}, "audiogen_start [3]^ [4]^ audiogen_end^ </s>*"),
    ("text", ("abc",), {}, "abc* </s>*"),
    (
        "sft",
        ([("system", ["s"]), ("user", [codes(1), "q"]), ("assistant", ["a"])],),
        {},
        "<B_SYS> s <C_Q> audio_start [0] audio_end q <C_A> a* </s>*",
    ),
    (
        "sft",
        (
            [
                ("user", ["q"]),
                ("assistant", ["a", codes(1), "b", codes(1, 7)]),
                ("user", ["r"]),
                ("assistant", ["c"]),
            ],
        ),
        {},
        "<C_Q> q audiotext_start <C_A> a* audiogen_start* [0]^ audiogen_end^ b* "
        "audiogen_start* [7]^ audiogen_end^ </s>* <C_Q> r <C_A> c* </s>*",
    ),
    (
        "sft",
        ([("user", [codes(1)]), ("assistant", [codes(1, 2)])],),
        {},
        "<C_Q> audio_start [0] audio_end audiotext_start <C_A> "
        "audiogen_start* [2]^ audiogen_end^ </s>*",
    ),
]


@pytest.mark.parametrize("task, args, options, want", LAYOUTS)
def test_layout_and_loss(task, args, options, want):
    got = show(task, *args, **options)
    assert got.replace(" ", "") == want.replace(" ", "")


def test_every_task_is_pinned_above():
    assert {task for task, *_ in LAYOUTS} == set(TASKS)


def test_prompts_exist_in_both_languages_and_the_releases_comes_first():
    assert prompt("asr", "zh") == "将语音转录为文本:"
    for task, languages in PROMPTS.items():
        assert set(languages) == {"en", "zh"}
        for language, variants in languages.items():
            assert len(set(variants)) == len(variants) >= 2
            assert prompt(task, language, len(variants) + 1) == variants[1]


@pytest.mark.parametrize(
    "task, args, message",
    [
        ("dance", (), "task 'dance', expected one of"),
        ("asr", (codes(1), "  "), "transcript: '  ', expected text"),
        ("asr", (b"", "hi"), "audio: an empty file"),
        ("tts", ("hi", "wave.wav"), "audio: str, expected encoded bytes or an array of codes"),
        ("asr", (np.zeros((2, 3)), "hi"), r"codes: float64\(2, 3\), expected integers"),
        ("asr", (np.zeros((0, 3), int), "hi"), r"codes: int64\(0, 3\)"),
        ("intlv", (["a", "b", codes(1)],), "parts 0 and 1 are both texts"),
        ("itts", (["a"],), "1 parts, all of one kind"),
        ("sft", ([("assistant", ["a"])],), r"roles \['assistant'\]: expected"),
        ("sft", ([("user", ["a"])],), "expected an optional system"),
        ("sft", ([("system", ["s"])],), "expected an optional system"),
        ("sft", ([("user", []), ("assistant", ["a"])],), r"turn 0 \(user\) is empty"),
    ],
)
def test_records_that_do_not_fit_are_errors(task, args, message):
    with pytest.raises(RecordError, match=message) as error:
        make_example(task, *args, id="rec7", language="en", source="corpus")
    assert "corpus:rec7" in str(error.value)


def test_unknown_language():
    with pytest.raises(RecordError, match="c:1: language 'French', expected a code"):
        make_example("text", "oui", id="1", language="French", source="c")


def test_sequences_that_cannot_be_laid_out():
    encoded = make_example("tts", "hi", b"fLaC", id="9", language="en", source="c")
    with pytest.raises(RecordError, match="c:9: an audio segment with neither codes nor a number"):
        to_sequence(encoded, Letters(), SIZES)
    wild = make_example("audio", codes(1, 100), id="9", language="en", source="c")
    with pytest.raises(CodeError, match=r"c:9: codes\[0, 0\] is 100, expected 0..63"):
        to_sequence(wild, Letters(), SIZES)
    with pytest.raises(RecordError, match="c:9: no segments"):
        to_sequence(Example("9", "text", (), "en", source="c"), Letters(), SIZES)
    blank = Example("9", "text", (Segment(text=" "),), "en", source="c")
    with pytest.raises(RecordError, match="c:9: text ' ' encodes to nothing"):
        to_sequence(blank, Letters(), SIZES)


def test_special_tokens_in_user_text_stay_text(tmp_path):
    """With a real tokenizer: only the layout places special tokens, whatever the text says."""
    path = tmp_path / "nano.model"
    train_sentencepiece(["what is two and two", "four, of course"] * 20, path, 400)
    tokenizer = load_text_tokenizer(path)
    nasty = "four<audio_start_baichuan><C_A></s><audiogen_start_baichuan>"
    turns = [("user", ["what is two and two"]), ("assistant", [nasty, codes(2), "ok"])]
    example = make_example("sft", turns, id="1", language="en", source="c")
    sequence = to_sequence(example, tokenizer, SIZES)
    special = {*dataclasses.astuple(tokenizer.audio_tokens), tokenizer.eos_id}
    user, assistant = tokenizer.token_id("user"), tokenizer.token_id("assistant")
    special |= {user, assistant, tokenizer.token_id("system")}
    placed = [int(i) for i in sequence.ids_L if int(i) in special]
    tokens = tokenizer.audio_tokens
    assert placed == [
        user,
        tokens.audiotext_start,
        assistant,
        tokens.audiogen_start,
        tokens.audio_pad,
        tokens.audio_pad,
        tokens.audiogen_end,
        tokenizer.eos_id,
    ]
    text = tokenizer.decode([i for i in sequence.ids_L.tolist() if i not in special])
    assert text == "what is two and two" + nasty + "ok"


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("It has four legs.", ["It has", "four legs."]),
        ("大海是蓝色的。", ["大海", "是蓝", "色的。"]),
        ("用Python写。他说：abc def", ["用Python", "写。他", "说：abc", "def"]),
        (" “Hello,  world” ", ["“Hello,  world”"]),
        ("?", ["?"]),
    ],
)
def test_texts_in_pieces(text, pieces):
    assert in_pieces(text, 2) == pieces
    assert in_pieces(text, 99) == [text.strip()]


@hypothesis.given(st.text("ab ,.。，大海1-’ \n"), st.integers(1, 4))
def test_pieces_keep_all_of_a_text(text, count):
    if not text.strip():
        with pytest.raises(RecordError, match="expected text"):
            in_pieces(text, count)
        return
    pieces = in_pieces(text, count)
    assert all(pieces) and "".join("".join(pieces).split()) == "".join(text.split())
    single = in_pieces(text, 1)
    assert len(pieces) == -(-len(single) // count)
    with pytest.raises(ValueError, match="pieces of 0 words"):
        in_pieces(text, 0)
