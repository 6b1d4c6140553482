"""Prompts are the beginnings of training sequences."""

import numpy as np
import pytest

from ba_jax.data import tasks
from ba_jax.data.record import dataset_directory
from ba_jax.data.sequence import to_sequence
from ba_jax.data.text_tokenizer import load_text_tokenizer
from ba_jax.sampling.prompt import PromptError, cut, prompt_of

SIZES = (64, 32, 16)
HEARD = np.arange(12).reshape(4, 3)
SAID = np.arange(15).reshape(5, 3)


@pytest.fixture(scope="module")
def tokenizer():
    return load_text_tokenizer(dataset_directory("embedded") / "tokenizer.model")


def example(task, *values, **options):
    return tasks.make_example(task, *values, id="a", language="en", source="made", **options)


def test_recognition(tokenizer):
    made = example("asr", HEARD, "It has four legs.")
    prompt = prompt_of(made, tokenizer, SIZES)
    tokens = tokenizer.audio_tokens
    words = tokenizer.encode(tasks.prompt("asr", "en"))
    want = [*words, tokens.audio_start, *[tokens.audio_pad] * 4, tokens.audio_end]
    assert prompt.ids_L.tolist() == want
    np.testing.assert_array_equal(prompt.codes_LQ[len(words) + 1 : -1], HEARD)
    assert not prompt.speaks and not prompt.wants_speech


def test_speech_from_text(tokenizer):
    prompt = prompt_of(example("tts", "It has four legs.", SAID), tokenizer, SIZES)
    want = [*tokenizer.encode("It has four legs."), tokenizer.audio_tokens.audiogen_start]
    assert prompt.ids_L.tolist() == want
    assert prompt.speaks and prompt.wants_speech


def test_spoken_answer(tokenizer):
    turns = [("user", [HEARD]), ("assistant", ["The answer is five.", SAID])]
    prompt = prompt_of(example("sft", turns), tokenizer, SIZES)
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


def test_refused(tokenizer):
    with pytest.raises(PromptError, match="made:a: its first position is a target"):
        prompt_of(example("text", "It has four legs."), tokenizer, SIZES)
    with pytest.raises(PromptError, match="made:a: audio without codes"):
        prompt_of(example("asr", tasks.Recording(b"x", 1.0, 4), "four"), tokenizer, SIZES)
    whole = to_sequence(example("asr", HEARD, "four"), tokenizer, SIZES)
    nothing = np.zeros_like(whole.text_target_L)
    with pytest.raises(PromptError, match="nothing in it is a target"):
        cut(type(whole)(whole.ids_L, whole.codes_LQ, nothing, nothing))
