"""Prompts are the beginnings of training sequences."""

import numpy as np
import pytest

from ba_jax.data import tasks
from ba_jax.data.record import RecordError, dataset_directory
from ba_jax.data.sequence import to_sequence
from ba_jax.data.text_tokenizer import load_text_tokenizer
from ba_jax.sampling.prompt import (
    PromptError,
    cut_prompt,
    cut_prompts_at_speech,
    make_prompt,
    make_prompts_in_turns,
)

SIZES = (64, 32, 16)
HEARD = np.arange(12).reshape(4, 3)
SAID = np.arange(15).reshape(5, 3)


@pytest.fixture(scope="module")
def tokenizer():
    return load_text_tokenizer(dataset_directory("embedded") / "tokenizer.model")


def example(task, *values, **options):
    return tasks.make_example(task, *values, id="a", language="en", source="made", **options)


def test_prompt_of_recognition(tokenizer):
    training_example = example("asr", HEARD, "It has four legs.")
    prompt = make_prompt(training_example, tokenizer, SIZES)
    tokens = tokenizer.audio_tokens
    words = tokenizer.encode(tasks.prompt("asr", "en"))
    want = [*words, tokens.audio_start, *[tokens.audio_pad] * 4, tokens.audio_end]
    assert prompt.ids_L.tolist() == want
    np.testing.assert_array_equal(prompt.codes_LQ[len(words) + 1 : -1], HEARD)
    assert not prompt.speaks and not prompt.wants_speech


def test_prompt_of_speech_from_text(tokenizer):
    prompt = make_prompt(example("tts", "It has four legs.", SAID), tokenizer, SIZES)
    want = [*tokenizer.encode("It has four legs."), tokenizer.audio_tokens.audiogen_start]
    assert prompt.ids_L.tolist() == want
    assert prompt.speaks and prompt.wants_speech


def test_prompt_of_a_spoken_answer(tokenizer):
    turns = [("user", [HEARD]), ("assistant", ["The answer is five.", SAID])]
    prompt = make_prompt(example("sft", turns), tokenizer, SIZES)
    tokens = tokenizer.audio_tokens
    assert prompt.ids_L.tolist() == [
        tokenizer.token_id("user"),
        tokens.audio_start,
        *[tokens.audio_pad] * 4,
        tokens.audio_end,
        tokens.audiotext_start,
        tokenizer.token_id("assistant"),
    ]
    assert prompt.wants_speech and not prompt.speaks


@pytest.mark.parametrize("words", [1, 2, 3, 9])
def test_prompts_in_turns_have_the_layout_of_training(tokenizer, words):
    """The prompts with the speech between them join to the training sequence."""
    text = "It has four legs."
    prompts = make_prompts_in_turns(text, words, tokenizer, SIZES, id="a", language="en")
    pieces = tasks.in_pieces(text, words)
    assert len(prompts) == len(pieces) == -(-4 // words) and " ".join(pieces) == text
    parts = [part for piece in pieces for part in (piece, SAID)]
    whole = to_sequence(example("itts", parts, fully_conditioned=True), tokenizer, SIZES)
    tokens = tokenizer.audio_tokens
    speech = [*[tokens.audio_pad] * len(SAID), tokens.audiogen_end]
    ids = [token_id for prompt in prompts for token_id in [*prompt.ids_L, *speech]]
    assert [*ids, tokenizer.eos_id] == whole.ids_L.tolist()
    assert whole.text_target_L.nonzero()[0].tolist() == [len(whole) - 1]
    assert [prompt.continues_turn for prompt in prompts] == [False] + [True] * (len(pieces) - 1)
    assert all(prompt.speaks and prompt.wants_speech for prompt in prompts)


def test_no_speech_to_generate(tokenizer):
    sequence = to_sequence(example("asr", HEARD, "Four."), tokenizer, SIZES)
    with pytest.raises(PromptError, match="x: no audio is a target"):
        cut_prompts_at_speech(sequence, "x")
    with pytest.raises(RecordError, match="text: ' ', expected text"):
        make_prompts_in_turns(" ", 2, tokenizer, SIZES, id="a", language="en")


def test_sequences_without_a_prompt(tokenizer):
    with pytest.raises(PromptError, match="made:a: its first position is a target"):
        make_prompt(example("text", "It has four legs."), tokenizer, SIZES)
    with pytest.raises(PromptError, match="made:a: audio without codes"):
        make_prompt(example("asr", tasks.Recording(b"x", 1.0, 4), "four"), tokenizer, SIZES)
    whole = to_sequence(example("asr", HEARD, "four"), tokenizer, SIZES)
    nothing = np.zeros_like(whole.text_target_L)
    with pytest.raises(PromptError, match="no position is a target"):
        cut_prompt(type(whole)(whole.ids_L, whole.codes_LQ, nothing, nothing))
