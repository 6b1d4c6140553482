"""Likelihoods against a pass over each sequence alone with a log-softmax in NumPy."""

import functools

import jax
import numpy as np
import pytest

from ba_jax.data.sequence import to_sequence
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.sampling.batching import LengthError
from ba_jax.sampling.likelihood import Likelihood, Scored, Scorer
from ba_jax.types import Example, Segment
from ba_jax.vocab import AudioTokens


def item(config, rng, length, *, texts=(), frames=()):
    """Random text with `frames` of audio, of which the tokens of `texts` and all frames count."""
    tokens = config.tokens
    ids_L = rng.integers(0, tokens.audio_pad, length).astype(np.int32)
    ids_L[list(frames)] = tokens.audio_pad
    sizes = config.audio_head.codebook_sizes
    codes_LQ = np.stack([rng.integers(0, size, length) for size in sizes], 1).astype(np.int32)
    text_L, audio_L = np.zeros((2, length), bool)
    text_L[list(texts)] = True
    audio_L[list(frames)] = True
    return Scored(ids_L, codes_LQ, text_L, audio_L)


@functools.cache
def _jitted(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


def expected(config, variables, item):
    """Text and audio log-likelihoods of one sequence."""
    model = BaichuanAudio(config.only("llm", "audio_embed", "audio_head"))
    # Causal: later positions do not matter, so that one length serves all.
    ids_L, codes_LQ = (np.pad(x, ((0, 32 - len(x)),) + ((0, 0),) * (x.ndim - 1))
                       for x in (item.ids_L, item.codes_LQ))  # fmt: skip
    hidden_LD = np.asarray(_jitted(model, "hidden")(variables, ids_L[None], codes_LQ[None])[0])[0]

    def log_softmax(logits):
        logits = np.asarray(logits, np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    text_LV = log_softmax(_jitted(model, "text_logits")(variables, hidden_LD))
    text = sum(text_LV[i - 1, item.ids_L[i]] for i in np.flatnonzero(item.text_L))
    audio = 0.0
    at = np.flatnonzero(item.audio_L)
    if len(at):
        # Positions without a target fill up, so that one shape serves all.
        before = np.resize(at - 1, len(hidden_LD))
        codes_LQ = item.codes_LQ[np.resize(at, len(hidden_LD))]
        logits = _jitted(model, "audio_logits")(variables, hidden_LD[before], codes_LQ)
        for q, logprobs in enumerate(map(log_softmax, logits)):
            audio += logprobs[np.arange(len(at)), item.codes_LQ[at, q]].sum()
    return text, audio


@pytest.mark.slow
def test_likelihoods_equal_a_pass_over_each_sequence(config, variables):
    """Rows of different lengths, targets in both kinds, more targets than a chunk."""
    rng = np.random.default_rng(1)
    items = [
        item(config, rng, 9, texts=(3, 7)),
        item(config, rng, 15, frames=(2, 3, 4), texts=(6,)),
        item(config, rng, 16, frames=range(2, 8)),
        item(config, rng, 30, texts=range(20, 27), frames=(4, 5)),
        item(config, rng, 4, texts=(1,)),
    ]
    scorer = Scorer(config, variables, rows=2, lengths=(16, 32), chunk=3)
    done = []
    likelihoods = scorer(items, progress=done.append)
    assert done == [2, 4, 5]
    for sequence, likelihood in zip(items, likelihoods, strict=True):
        text, audio = expected(config, variables, sequence)
        np.testing.assert_allclose(likelihood.text, text, rtol=2e-4, atol=1e-4)
        np.testing.assert_allclose(likelihood.audio, audio, rtol=2e-4, atol=1e-4)
        assert (likelihood.tokens, likelihood.codes) == (
            sequence.text_L.sum(),
            3 * sequence.audio_L.sum(),
        )
        assert likelihood.mean == pytest.approx(
            (text + audio) / (likelihood.tokens + likelihood.codes), rel=2e-4
        )
    # 9 and 4 have text alone and room for 2; the others differ in room: nothing compiles twice.
    assert scorer.traces["score"] == 3
    again = Scorer(config, variables, rows=2, lengths=(32,), chunk=100)(items[2:4])
    np.testing.assert_allclose(
        [likelihood.total for likelihood in again],
        [likelihood.total for likelihood in likelihoods[2:4]],
        rtol=1e-5,
    )


def test_text_model_without_audio(config, variables):
    rng = np.random.default_rng(2)
    sequence = item(config, rng, 6, texts=(4, 5))
    alone = {"params": {"llm": variables["params"]["llm"]}}
    likelihoods = Scorer(config, alone, rows=1, lengths=(8,))([sequence])[0]
    assert likelihoods.text == pytest.approx(expected(config, variables, sequence)[0], rel=2e-4)
    with pytest.raises(ValueError, match="sequence 0 has audio, but the model has no audio_embed"):
        Scorer(config, alone)([item(config, rng, 6, texts=(4,), frames=(2,))])
    with pytest.raises(ValueError, match="expected a language model"):
        Scorer(config, {"params": {}})


def test_invalid_sequences(config, variables):
    rng = np.random.default_rng(3)
    scorer = Scorer(config, variables, rows=1, lengths=(8,))
    with pytest.raises(ValueError, match="sequence 1: no position is scored"):
        scorer([item(config, rng, 4, texts=(1,)), item(config, rng, 4)])
    with pytest.raises(ValueError, match="its first position is scored"):
        scorer([item(config, rng, 4, texts=(0,))])
    with pytest.raises(LengthError, match="sequence 0 is 9 long"):
        scorer([item(config, rng, 9, texts=(1,))])
    with pytest.raises(ValueError, match="mean log-likelihood of 0 tokens"):
        _ = Likelihood(0.0, 0, 0.0, 0).mean


class Letters:
    """Tokenizer with a token per letter."""

    audio_tokens = AudioTokens(**{n: 100 + i for i, n in enumerate(AudioTokens.__annotations__)})
    eos_id = 99

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def token_id(self, name):
        return {"user": 97, "assistant": 98}[name]


def test_scored_positions_of_a_training_sequence():
    """Text and frames of the answer are scored, their end tokens are not."""
    codes_NQ = np.ones((2, 3), np.int32)
    example = Example(
        "x", "sft", (Segment("ab"), Segment("cd", loss=True), Segment(codes_NQ=codes_NQ, loss=True,
        spoken=True)), "en",
    )  # fmt: skip
    tokens = Letters.audio_tokens
    sequence = to_sequence(example, Letters(), (64, 32, 16))
    scored = Scored.of(sequence, tokens, 99)
    begin, pad, end = tokens.audiogen_start, tokens.audio_pad, tokens.audiogen_end
    assert scored.ids_L.tolist() == [0, 1, 2, 3, begin, pad, pad, end, 99]
    assert np.flatnonzero(scored.text_L).tolist() == [2, 3]
    assert np.flatnonzero(scored.audio_L).tolist() == [5, 6]
    assert len(scored) == 9
