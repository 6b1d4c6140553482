"""Generation against uncached passes, row by row, with every way to end."""

import dataclasses

import numpy as np
import pytest

from ba_jax.sampling.alternate import TextVocabulary
from ba_jax.sampling.logits import Sampling
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import PromptError
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.vocab import CodeError, TokenIdError
from tests.unit.sampling.conftest import EOS, prompt


def make(config, variables, writable, **options):
    options = {"rows": 4, "lengths": (16, 24), "max_text": 8, "max_frames": 7} | options
    return Generator(
        config, variables, TextVocabulary(EOS, writable), GenerationSettings(**options)
    )


def reference(config, whole_pass, writable, prompt, text_limit, frame_limit):
    """Generate with an uncached pass for each step."""
    tokens, sizes = config.tokens, config.audio_embed.codebook_sizes
    ids, codes = list(prompt.ids_L), list(prompt.codes_LQ)
    text, frames = [], []
    speaking = prompt.speaks
    allowed = writable.copy()
    allowed[tokens.audiogen_start if prompt.wants_speech else EOS] = True
    while True:
        logits, frame = whole_pass(ids, codes)
        if speaking:
            if frame[0] == sizes[0]:
                return text, frames, True
            frames.append(frame)
            if len(frames) == frame_limit:
                return text, frames, False
            ids.append(tokens.audio_pad)
            codes.append(frame)
            continue
        chosen = int(np.where(allowed, logits, -np.inf).argmax())
        if chosen == EOS:
            return text, frames, True
        ids.append(chosen)
        codes.append(np.zeros(len(sizes), np.int32))
        if chosen == tokens.audiogen_start:
            speaking = True
            continue
        text.append(chosen)
        if len(text) == text_limit:
            return text, frames, False


def same(got, want):
    text, frames, complete = want
    assert got.ids == text
    np.testing.assert_array_equal(got.codes_NQ, np.reshape(frames, got.codes_NQ.shape))
    assert got.complete == complete


@pytest.fixture(scope="module")
def greedy(config, biased, writable):
    return make(config, biased, writable, rows=8)


def test_output_equals_uncached_passes(config, greedy, whole_pass, writable):
    """Text alone, text then speech, and speech; every way to end comes about."""
    prompts = [prompt(config, 6 + i % 10, i, wants_speech=i % 2 == 0) for i in range(24)]
    prompts += [prompt(config, 8, 50 + i, wants_speech=True, speaks=True) for i in range(8)]
    outputs = greedy(prompts)
    for request, got in zip(prompts, outputs, strict=True):
        same(got, reference(config, whole_pass, writable, request, 8, 7))
    written = [
        got for request, got in zip(prompts, outputs, strict=True) if not request.wants_speech
    ]
    spoken = [got for request, got in zip(prompts, outputs, strict=True) if request.wants_speech]
    assert {got.complete for got in written} == {True, False}  # end of text, and the limit
    assert {got.complete for got in spoken if len(got.codes_NQ)} == {True, False}
    assert all(not len(got.codes_NQ) for got in written)
    assert any(got.ids and len(got.codes_NQ) for got in spoken)  # text, then speech
    assert greedy.traces == {"prefill": 1, "loop": 1}


def test_rows_are_independent_and_nothing_recompiles(config, variables, writable):
    sampling = Sampling(1.0, 20, 0.95, 1.3)
    generator = make(config, variables, writable, text=sampling, audio=sampling)
    prompts = [prompt(config, 6 + i, i, wants_speech=True, speaks=i % 2 == 0) for i in range(7)]
    whole = generator(prompts, seeds=range(100, 107))
    assert generator.traces == {"prefill": 1, "loop": 1}
    for i in (0, 3, 6):
        (alone,) = generator([prompts[i]], seeds=[100 + i])
        assert alone.ids == whole[i].ids
        np.testing.assert_array_equal(alone.codes_NQ, whole[i].codes_NQ)
    assert generator.traces == {"prefill": 1, "loop": 1}
    # other limits and lengths of one bucket change no shape; another bucket only the prefill
    generator(prompts[:2], text_limit=3, frame_limit=2)
    generator([prompt(config, 20, 0)])
    assert generator.traces == {"prefill": 2, "loop": 1}
    other = generator([prompts[0]], seeds=[7])
    assert not np.array_equal(other[0].codes_NQ, whole[0].codes_NQ)


def test_penalty_applies_to_the_history_of_its_row(config, variables, writable):
    """The penalty is so high that no id and no code of a codebook is chosen twice."""
    once = Sampling(repetition_penalty=1e9)
    head = dict(variables["params"]["audio_head"])
    for q in range(3):  # logits above 0, which a penalty divides
        classifier = dict(head[f"classifiers_{q}"])
        classifier["bias"] = np.asarray(classifier["bias"]) + 50
        head[f"classifiers_{q}"] = classifier
    positive = {**variables, "params": {**variables["params"], "audio_head": head}}
    generator = make(config, positive, writable, text=once, audio=once)
    prompts = [prompt(config, 8, i, speaks=i > 1, wants_speech=i > 1) for i in range(4)]
    outputs = generator(prompts)
    assert any(got.ids for got in outputs) and any(len(got.codes_NQ) > 3 for got in outputs)
    for got in outputs:
        assert len(set(got.ids)) == len(got.ids)
        for column in got.codes_NQ.T:
            assert len(set(column)) == len(column)


def test_invalid_input(config, variables, writable):
    generator = make(config, variables, writable)
    good = prompt(config, 8, 0)
    with pytest.raises(PromptError, match="prompt 1 has 30 positions, expected 1 to 24"):
        generator([good, prompt(config, 30, 0)])
    bad = dataclasses.replace(good, codes_LQ=good.codes_LQ + 64)
    with pytest.raises(CodeError, match="prompt 1: codes"):
        generator([good, bad])
    bad = dataclasses.replace(good, ids_L=good.ids_L + 10_000)
    with pytest.raises(TokenIdError, match="prompt 0"):
        generator([bad])
    with pytest.raises(ValueError, match="limits of 9 ids"):
        generator([good], text_limit=9)
    with pytest.raises(ValueError, match="expected .*, or 'llm' alone"):
        make(config.only("llm", "audio_head"), variables, writable)
    alone = make(config.only("llm"), variables, writable)
    with pytest.raises(PromptError, match="prompt 0 has audio, and the model reads text alone"):
        alone([good])
    with pytest.raises(ValueError, match="writable_V"):
        make(config, variables, writable[:-1])


def test_text_model_without_audio_writes_the_same(config, biased, greedy, writable):
    """Before stage 1 there is nothing but the language model."""
    prompts = [prompt(config, 6 + i, i) for i in range(4)]
    for request in prompts:  # no audio
        request.ids_L[2:5] = 11
        request.codes_LQ[:] = 0
    alone = make(config.only("llm"), {"params": {"llm": biased["params"]["llm"]}}, writable)
    for request, want in zip(alone(prompts), greedy(prompts), strict=True):
        assert request.ids == want.ids and request.ids
        assert request.codes_NQ.shape == (0, 0)
