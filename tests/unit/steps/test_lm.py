"""Language-model stages: every mask against NumPy, what must not matter, what trains, what fails."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ba_jax.data.packed import AudioChunks, PackedBatch
from ba_jax.data.packing import Packing, to_rows
from ba_jax.data.sequence import to_sequence
from ba_jax.data.tasks import Recording, make_example
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.llm import LLMConfig
from ba_jax.models.vq_bridge import VQBridgeConfig
from ba_jax.steps.base import StageError
from ba_jax.steps.lm import LMSettings, LMStage, TextLMStage
from ba_jax.vocab import CodeError, TokenIdError
from tests.unit.data.letters import ROLES, SIZES, TOKENS, Letters

LENGTH, Q = 64, len(SIZES)
CONFIG = BaichuanAudioConfig(
    audio_encoder=AudioEncoderConfig(mel_bins=8, width=16, layers=1, heads=2, ffn_width=16),
    vq_bridge=VQBridgeConfig(width=16, pooling=4, codebook_sizes=SIZES),
    llm=LLMConfig(1200, 16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn_width=24),
    audio_embed=AudioEmbedConfig(width=16, codebook_sizes=SIZES),
    audio_head=AudioHeadConfig(width=16, layers=1, codebook_sizes=SIZES, head_dim=8),
    tokens=TOKENS,
)
KEY = jax.random.key(0)


def codes_of(frames: int, first: int = 0) -> np.ndarray:
    """Codes that differ from frame to frame in every codebook."""
    return (first + np.arange(frames)[:, None] + np.arange(Q)[None]).astype(np.int32) % min(SIZES)


def sequence_of(task: str, *args):
    return to_sequence(make_example(task, *args, id="1", language="en"), Letters(), SIZES)


def packed(*rows, audio=()) -> PackedBatch:
    """A batch of rows of sequences."""
    sequences = [sequence for row in rows for sequence in row]
    ends = np.cumsum([len(row) for row in rows])
    which = tuple(tuple(range(end - len(row), end)) for row, end in zip(rows, ends, strict=True))
    laid = to_rows(sequences, Packing(which, (), ()), LENGTH, Q)
    return PackedBatch(laid, audio, np.zeros(len(rows), np.int32))


def replaced(batch: PackedBatch, **arrays) -> PackedBatch:
    return batch._replace(rows=batch.rows._replace(**arrays))


ASR = sequence_of("asr", codes_of(4), "abcd")
TTS = sequence_of("tts", "hello", codes_of(5, 4))
ITTS = sequence_of("itts", ["ab", codes_of(3, 9), "cd", codes_of(2, 12)])
TEXT = sequence_of("text", "plain text")
SFT = sequence_of(
    "sft",
    [
        ("system", ["be"]),
        ("user", ["ask", codes_of(2)]),
        ("assistant", ["say", codes_of(3, 2)]),
        ("user", ["more"]),
        ("assistant", ["end"]),
    ],
)
ROWS = ((ASR, TTS), (TEXT, ITTS), (TEXT,), (SFT,))
BATCH = packed(*ROWS)


@pytest.fixture(scope="module")
def stage() -> LMStage:
    """Chunks that do not divide the row, room for few audio targets, a loss of every kind."""
    settings = LMSettings(
        text_weight=0.7, audio_weights=(0.5, 0.3, 0.2), z_loss=1e-3, chunk=10, audio_capacity=0.25
    )
    return LMStage(CONFIG, settings)


@pytest.fixture(scope="module")
def variables():
    """Random values large enough that every prediction is far from uniform."""
    values = jax.jit(LMStage(CONFIG, LMSettings(audio="features")).init)(KEY)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), values)


def jitted(stage: LMStage):
    """(variables, arrays, key) to ((loss, Aux), gradients in the parameters)."""

    @jax.jit
    def run(variables, arrays, key):
        def loss(params):
            held = {**variables, "params": params}
            return stage.loss(held, arrays, stage.totals(arrays), key, jnp.zeros((), jnp.int32))

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return run


@pytest.fixture(scope="module")
def run(stage):
    return jitted(stage)


@pytest.fixture(scope="module")
def reference(stage, variables):
    """The loss of sequences, each alone in its row, position by position in NumPy.

    reference(sequences) is (terms, counts): sums and numbers of targets by name.
    """
    model = stage.model

    def all_logits(model, ids, codes, segments):
        hidden, _ = model.hidden(ids, codes, None, segments)
        before, after = hidden[:, :-1], codes[:, 1:]
        audio = model.audio_logits(before.reshape(-1, 16), after.reshape(-1, Q))
        return model.text_logits(hidden), audio

    apply = jax.jit(lambda v, *a: model.apply(v, *a, method=all_logits))

    def nll(logits, target) -> float:
        z = np.asarray(logits, np.float64)
        return np.log(np.exp(z).sum()) - z[target]

    def sums(sequences):
        rows = packed(*((s,) for s in sequences)).rows
        text, audio = apply(variables, rows.ids_BL, rows.codes_BLQ, rows.segments_BL)
        audio = [np.asarray(a).reshape(len(sequences), LENGTH - 1, -1) for a in audio]
        terms = {name: 0.0 for name in ("text", *(f"audio/{q}" for q in range(Q)))}
        counts = dict.fromkeys(terms, 0)
        for row, sequence in enumerate(sequences):
            for i in range(1, len(sequence)):
                if sequence.text_target_L[i]:
                    terms["text"] += nll(text[row, i - 1], sequence.ids_L[i])
                    counts["text"] += 1
                if sequence.audio_target_L[i]:
                    ends = sequence.ids_L[i] == TOKENS.audiogen_end
                    for q in range(1 if ends else Q):
                        terms[f"audio/{q}"] += nll(audio[q][row, i - 1], sequence.codes_LQ[i, q])
                        counts[f"audio/{q}"] += 1
        return terms, counts

    return sums


def test_losses_are_numpys(stage, variables, run, reference):
    """Packed, chunked and gathered, against every sequence alone."""
    terms, counts = reference([s for row in ROWS for s in row])
    arrays = stage.arrays(BATCH)
    totals = jax.jit(stage.totals)(arrays)
    # "abcd" and end; TTS's end; "plain text" twice, its first letter unpredicted, with ends; ITTS's
    # "cd", <audiogen_start> and end; SFT's "say", <audiogen_start>, end, and "end" and end.
    assert counts["text"] == 5 + 1 + 2 * 10 + 4 + 5 + 4
    # Frames and ends: TTS 5 + 1, ITTS 3 + 1 + 2 + 1, SFT 3 + 1.
    assert counts["audio/0"] == 6 + 7 + 4 and counts["audio/1"] == counts["audio/2"] == 5 + 5 + 3
    for name, count in counts.items():
        assert totals[name] == count, name
    (loss, aux), _ = run(variables, arrays, KEY)
    for name, term in terms.items():
        np.testing.assert_allclose(aux.metrics[name], term / counts[name], rtol=1e-4)
    weighted = sum(
        weight * aux.metrics[name] for weight, name in zip((0.7, 0.5, 0.3, 0.2), terms, strict=True)
    )
    assert aux.metrics["z_loss"] > 0
    np.testing.assert_allclose(loss, weighted + aux.metrics["z_loss"], rtol=1e-6)
    plain, _ = reference([TEXT])
    np.testing.assert_allclose(aux.metrics["text_plain_rows"], plain["text"] / 10, rtol=1e-4)
    with_audio = (terms["text"] - plain["text"]) / (counts["text"] - 10)
    np.testing.assert_allclose(aux.metrics["text_audio_rows"], with_audio, rtol=1e-4)
