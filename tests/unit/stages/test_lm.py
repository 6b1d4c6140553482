"""Language-model stages: losses against NumPy, invariances, gradients, dropout and refusals."""

from __future__ import annotations

import dataclasses
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ba_jax.data.packed import AudioChunks, PackedBatch
from ba_jax.data.packing import to_rows
from ba_jax.data.sequence import to_sequence
from ba_jax.data.tasks import Recording, make_example
from ba_jax.metrics import flops
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.models.llm import LLM, LLMConfig
from ba_jax.models.vq_bridge import VQBridgeConfig
from ba_jax.stages.base import StageError
from ba_jax.stages.lm import (
    LMStage,
    TextLMStage,
    draw_shown_codebooks,
    embed_first_codebooks,
    split_key,
)
from ba_jax.stages.lm_batch import LMSettings
from ba_jax.tree import flatten, unflatten
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
    laid = to_rows(sequences, which, LENGTH, Q)
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
    """Chunks that do not divide the positions, a loss of every kind."""
    weights = {"text_weight": 0.7, "audio_weights": (0.5, 0.3, 0.2), "z_loss": 1e-3}
    return LMStage(CONFIG, LMSettings(**weights, chunk=10))


@pytest.fixture(scope="module")
def fresh():
    """Initial values, the tokenizer's components too."""
    return jax.jit(LMStage(CONFIG, LMSettings(audio="features")).init)(KEY)


@pytest.fixture(scope="module")
def variables(fresh):
    """Random values large enough that every prediction is far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32), fresh
    )


def forward(stage: LMStage):
    """(variables, arrays, key) to (loss, Aux)."""
    return jax.jit(lambda v, a, key: stage.loss(v, a, stage.totals(a), key, 0))


def jitted(stage: LMStage, trained: str = ".*"):
    """(variables, arrays, key) to ((loss, Aux), gradients in the parameters named so)."""

    @jax.jit
    def run(variables, arrays, key):
        params = flatten(variables["params"])

        def loss(changed):
            held = {**variables, "params": unflatten({**params, **changed})}
            return stage.loss(held, arrays, stage.totals(arrays), key, jnp.zeros((), jnp.int32))

        changed = {name: leaf for name, leaf in params.items() if re.fullmatch(trained, name)}
        result, gradients = jax.value_and_grad(loss, has_aux=True)(changed)
        return result, unflatten(gradients)

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
        # A fixed number of rows: one compilation.
        rows = packed(*((s,) for s in sequences), *[()] * (8 - len(sequences))).rows
        text, audio = apply(variables, rows.ids_BL, rows.codes_BLQ, rows.segments_BL)
        audio = [np.asarray(a).reshape(8, LENGTH - 1, -1) for a in audio]
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


@pytest.fixture(scope="module")
def done(stage, variables, run):
    """((loss, Aux), gradients) of the batch."""
    return run(variables, stage.arrays(BATCH), KEY)


def assert_same(got, want, **tolerance):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, **tolerance), got, want)


def test_losses_agree_with_numpy(stage, done, reference):
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
    (loss, aux), _ = done
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


def test_a_stride_of_the_audio_head(stage, variables, done):
    """The mean over all offsets is the loss; the first codebook's loss is the same at each."""
    settings = dataclasses.replace(stage.settings, full_head_every=3)
    strided, arrays = LMStage(CONFIG, settings), stage.arrays(BATCH)
    step, by_offset = forward(strided), {}
    for seed in range(40):
        key = jax.random.key(seed)
        begin = int(jax.random.randint(split_key(key).head_offset, (), 0, 3))
        if begin not in by_offset:
            loss, aux = step(variables, arrays, key)
            by_offset[begin] = {"loss": loss, **aux.metrics}
    assert sorted(by_offset) == [0, 1, 2]
    (whole, aux), _ = done
    want = {"loss": whole, **aux.metrics}
    for name in want:
        values = [float(by_offset[begin][name]) for begin in by_offset]
        assert np.mean(values) == pytest.approx(float(want[name]), rel=1e-5), name
        if name in ("text", "audio/0", "audio_accuracy/0"):
            assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    assert np.ptp([float(by_offset[begin]["audio/1"]) for begin in by_offset]) > 0.01


def test_positions_that_are_no_targets_change_nothing(stage, variables, done):
    """All positions at once.

    Gradients past the layers, which are alike: those of the last norm come from hidden states.
    """
    other = LMStage(CONFIG, dataclasses.replace(stage.settings, chunk=0))
    late = jitted(other, "llm/(norm/scale|lm_head)|audio_head/.*")
    got, grads = late(variables, other.arrays(BATCH), KEY)
    assert_same(got, done[0], rtol=1e-4, atol=1e-6)
    assert len(flatten(grads)) == 2 + len(flatten(done[1]["audio_head"]))
    want = flatten(done[1])
    assert_same(flatten(grads), {n: want[n] for n in flatten(grads)}, rtol=1e-4, atol=1e-6)


def test_microbatches_add_up(stage, variables, run, done):
    """Losses are divided by the totals of the whole batch, like in the training step."""
    arrays = stage.arrays(BATCH)
    totals = jax.jit(stage.totals)(arrays)
    part = jax.jit(lambda v, a: stage.loss(v, a, totals, KEY, 0))
    halves = [{name: a[i::2] for name, a in arrays.items()} for i in range(2)]
    got = jax.tree.map(np.add, *(part(variables, half) for half in halves))
    assert_same(got, done[0], rtol=1e-5)


def only(batch: PackedBatch, kind: str, row: int, place: int) -> PackedBatch:
    """The batch with a single target, of "text" or "audio"."""
    targets = {name: np.zeros_like(batch.rows.text_target_BL) for name in ("text", "audio")}
    targets[kind][row, place] = True
    return replaced(batch, **{f"{name}_target_BL": mask for name, mask in targets.items()})


def rows_with_gradient(table) -> set[int]:
    return set(np.flatnonzero(np.abs(np.asarray(table)).max(axis=1) > 0).tolist())


def test_text_depends_on_earlier_positions_of_its_example(stage, variables, run):
    """A letter of ITTS, after audio and another example: the gradient reaches what it may see."""
    start = len(TEXT)
    place = start + ITTS.ids_L.tolist().index(1000 + ord("d"))
    assert BATCH.rows.text_target_BL[1, place]
    _, grads = run(variables, stage.arrays(only(BATCH, "text", 1, place)), KEY)
    seen = BATCH.rows.ids_BL[1, start:place]
    codes = BATCH.rows.codes_BLQ[1, start:place][seen == TOKENS.audio_pad]
    assert len(codes) == 3
    text = seen[seen != TOKENS.audio_pad].tolist()
    assert rows_with_gradient(grads["llm"]["embedding"]) == set(text)
    for q in range(Q):
        table = grads["audio_embed"][f"embedding_{q}"]
        assert rows_with_gradient(table) == set(codes[:, q].tolist())
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads["audio_head"]))


@pytest.mark.parametrize("frame", [0, 2, 5])
def test_codes_depend_on_earlier_positions_of_their_example(stage, variables, run, frame):
    """A frame of TTS; the one after its last is the end of audio."""
    start = len(ASR)
    first = start + TTS.ids_L.tolist().index(TOKENS.audio_pad)
    place = first + frame
    _, grads = run(variables, stage.arrays(only(BATCH, "audio", 0, place)), KEY)
    assert rows_with_gradient(grads["llm"]["embedding"]) == set(
        BATCH.rows.ids_BL[0, start:first].tolist()
    )
    ends = frame == 5
    for q in range(Q):
        # The frames before, and within the frame all codes but the last: the head is fed them.
        until = place + (q < Q - 1 and not ends)
        codes = set(BATCH.rows.codes_BLQ[0, first:until, q].tolist())
        assert rows_with_gradient(grads["audio_embed"][f"embedding_{q}"]) == codes
        classifier = grads["audio_head"][f"classifiers_{q}"]["kernel"]
        assert np.asarray(classifier).any() == (q == 0 or not ends)


def test_unmasked_positions_are_never_read(stage, variables, run, done):
    rows = BATCH.rows
    padding = rows.segments_BL == 0
    frames = rows.ids_BL == TOKENS.audio_pad
    ends = rows.audio_target_BL & ~frames
    wild = replaced(
        BATCH,
        ids_BL=np.where(padding, -1, rows.ids_BL),
        codes_BLQ=np.where((frames | ends)[:, :, None], rows.codes_BLQ, 10**6),
        positions_BL=np.where(padding, 10**6, rows.positions_BL),
    )
    assert_same(run(variables, stage.arrays(wild), KEY), done, rtol=0)


def test_overfits_one_batch(stage, fresh, run):
    """Text and codes are learned from initial values."""
    arrays = stage.arrays(BATCH)
    optimizer = optax.adam(3e-2)

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = fresh["params"]
    state = jax.jit(optimizer.init)(params)
    history = []
    for _ in range(150):
        (_, aux), grads = run({**fresh, "params": params}, arrays, KEY)
        history.append(aux.metrics)
        params, state = update(params, state, grads)
    first, last = history[0], history[-1]
    # ln(1200) and ln of the first codebook's classes, to begin with.
    np.testing.assert_allclose(first["text"], np.log(1200), rtol=0.02)
    np.testing.assert_allclose(first["audio/0"], np.log(65), rtol=0.2)
    assert last["text"] < 0.05 and last["text_accuracy"] == 1
    assert all(last[f"audio/{q}"] < 0.1 for q in range(Q)) and last["audio_accuracy/0"] == 1


@pytest.fixture(scope="module")
def waiting():
    """(batch of mels, its chunks: (bucket, place) -> first position and frames of codes).

    Two buckets, chunks out of order, a recording of two chunks, a row without audio.
    """
    heard = sequence_of("asr", Recording(b"x", 1.0, 5), "ab")
    spoken = sequence_of("tts", "cd", Recording(b"x", 1.0, 2))
    first, second = heard.spans[0].start, len(heard) + spoken.spans[0].start
    chunks = {(1, 0): (first, 4), (0, 1): (first + 4, 1), (0, 0): (second, 2)}
    audio = [
        AudioChunks(
            np.zeros((4, 2, 8 * longest, 8), np.float32),
            *(np.zeros((4, 2), np.int32) for _ in range(3)),
        )
        for longest in (3, 4)
    ]
    rng = np.random.default_rng(0)
    for (bucket, place), (start, frames) in chunks.items():
        mel_TM = rng.normal(size=(8 * frames, 8))
        audio[bucket].mel_BCTM[0, place, : 8 * frames] = mel_TM
        audio[bucket].mel_lengths_BC[0, place] = 8 * frames
        audio[bucket].starts_BC[0, place], audio[bucket].frames_BC[0, place] = start, frames
    return packed((heard, spoken), (TEXT,), (), (), audio=tuple(audio)), chunks


def test_codes_from_mels_equal_the_encoders_codes(stage, variables, run, waiting):
    batch, chunks = waiting
    model = BaichuanAudio(CONFIG)
    encode = jax.jit(lambda v, m, n: model.apply(v, m, n, method="encode")[0])
    codes_BLQ = batch.rows.codes_BLQ.copy()
    for (bucket, place), (start, frames) in chunks.items():
        mel_TM = batch.audio[bucket].mel_BCTM[0, place, : 8 * frames]
        padded = np.pad(mel_TM, ((0, 32 - len(mel_TM)), (0, 0)))[None]
        codes = encode(variables, padded, np.array([8 * frames], np.int32))
        codes_BLQ[0, start : start + frames] = codes[0, :frames]
    assert len(np.unique(codes_BLQ[0, :, 0])) > 3
    known = replaced(batch, codes_BLQ=codes_BLQ)._replace(audio=())
    want, _ = run(variables, stage.arrays(known), KEY)
    online = LMStage(CONFIG, dataclasses.replace(stage.settings, audio="features"))
    assert online.components == ("audio_encoder", "vq_bridge", "llm", "audio_embed", "audio_head")
    got = forward(online)(variables, online.arrays(batch), KEY)
    assert_same(got, want, rtol=1e-5)


def test_only_products_of_the_layers_are_quantized(variables, waiting):
    """None of the frozen tokenizer: its codes have to be those of the other tools."""
    batch, _ = waiting
    online = LMStage(CONFIG, LMSettings(audio="features"), quantization="int8")
    program = str(jax.make_jaxpr(forward(online))(variables, online.arrays(batch), KEY))
    head = CONFIG.audio_head
    assert program.count("preferred_element_type=int32") == 7 + head.layers * (4 + 2 * head.depth)
    assert program.count("= dot_general") > 2 * (7 + head.layers * (4 + 2 * head.depth))


def test_mels_that_do_not_fill_the_audio_positions_are_refused(stage, waiting):
    batch, _ = waiting
    online = LMStage(CONFIG, LMSettings(audio="features"))
    with pytest.raises(StageError, match="row 0, position 33: 0 mels .* expected 1: set stage"):
        online.arrays(batch._replace(audio=batch.audio[:1]))
    short = batch.audio[1]._replace(mel_lengths_BC=batch.audio[1].mel_lengths_BC // 2)
    with pytest.raises(StageError, match="row 0, chunk 0: 16 mel frames give 2 .* says 4"):
        online.arrays(batch._replace(audio=(batch.audio[0], short)))
    with pytest.raises(StageError, match="the batch holds mels, expected codes: set data.audio"):
        stage.arrays(batch)


def test_rules_of_the_first_stage_train_parameters_with_gradients(done):
    """Audio embeddings and head alone, every one of them with something to learn."""
    rules = ((r"(audio_embed|audio_head)/.*", 1.0), (r".*", None))
    grads = flatten(done[1])
    rates = {name: next(r for p, r in rules if re.fullmatch(p, name)) for name in grads}
    trained = {name: grad for name, grad in grads.items() if rates[name] is not None}
    assert {name.split("/")[0] for name in trained} == {"audio_embed", "audio_head"}
    assert any(name.startswith("llm/") for name in grads.keys() - trained.keys())
    for name, grad in trained.items():
        # A key's bias shifts all scores of a query alike; the last table feeds text alone.
        assert np.asarray(grad).any() or name.endswith("key/bias"), name


def test_text_alone(stage, variables, run, reference):
    """The language model without audio; and a batch without audio for the whole model."""
    batch = packed((TEXT, TEXT), (TEXT,), (), ())
    terms, _ = reference([TEXT])
    alone = TextLMStage(CONFIG, LMSettings(chunk=0, text_weight=0.7, z_loss=1e-3))
    assert alone.components == ("llm",) and set(jax.eval_shape(alone.init, KEY)) == {"params"}
    arrays = alone.arrays(batch)
    assert set(arrays) == {"ids_BL", "positions_BL", "segments_BL", "text_target_BL"}
    loss, aux = forward(alone)({"params": {"llm": variables["params"]["llm"]}}, arrays, KEY)
    assert set(aux.metrics) == {"text", "text_accuracy", "z_loss"}
    np.testing.assert_allclose(aux.metrics["text"], terms["text"] / 10, rtol=1e-4)
    (whole, other), grads = run(variables, stage.arrays(batch), KEY)
    np.testing.assert_allclose(other.metrics["text"], aux.metrics["text"], rtol=1e-5)
    np.testing.assert_allclose(other.metrics["text_plain_rows"], aux.metrics["text"], rtol=1e-5)
    assert other.metrics["text_audio_rows"] == other.metrics["audio/0"] == 0
    np.testing.assert_allclose(whole, loss, rtol=1e-5)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads["audio_head"]))
    with pytest.raises(StageError, match="text_lm: .* 4 frames .* 0 audio targets, .* no audio he"):
        alone.arrays(packed((ASR,)))


def test_a_dialogue_learns_the_assistants_turns(stage):
    """SFT: only the assistant's turns have targets."""
    ids = SFT.ids_L.tolist()
    assert [i for i in ids if i in ROLES.values()] == [
        ROLES[name] for name in ("system", "user", "assistant", "user", "assistant")
    ]
    answers = [i for i, token in enumerate(ids) if token == ROLES["assistant"]]
    # A spoken answer is asked for, a written one is not.
    assert ids[answers[0] - 1] == TOKENS.audiotext_start != ids[answers[1] - 1]
    question = len(ids) - 1 - ids[::-1].index(ROLES["user"])
    targets = np.flatnonzero(SFT.text_target_L | SFT.audio_target_L)
    turns = [*range(answers[0] + 1, question), *range(answers[1] + 1, len(ids))]
    assert set(targets) == set(turns)
    totals = jax.jit(stage.totals)(stage.arrays(packed((SFT,))))
    assert totals["text"] == 9 and totals["audio/0"] == 4 and totals["audio/2"] == 3


def test_dropout_of_inputs(stage, variables, done):
    """Dropout depends on the key, applies in training alone, and keeps the targets; so does the
    stride of the audio head."""
    noisy = dataclasses.replace(
        stage.settings,
        codebook_dropout=0.5,
        frame_dropout=0.5,
        label_smoothing=0.1,
        full_head_every=3,
    )
    other = LMStage(CONFIG, noisy)
    arrays = other.arrays(BATCH)
    train = forward(other)
    first, again, another = (train(variables, arrays, jax.random.key(n))[0] for n in (1, 1, 2))
    assert first == again != another
    evaluate = jax.jit(lambda v: other.evaluate(v, arrays, other.totals(arrays), KEY))
    (loss, aux), _ = done
    assert_same(evaluate(variables), {"loss": loss, **aux.metrics}, rtol=1e-5)


def test_dropout_masks_are_independent():
    """A key shared by two masks once made speech_dropout depend on frame_dropout."""
    keys, all_BL = split_key(KEY), np.ones((200, 200), bool)

    def shown(**rates):
        draw = jax.jit(lambda keys: draw_shown_codebooks(LMSettings(**rates), keys, Q, all_BL))
        return np.asarray(draw(keys))

    speech_BL, frame_BL = shown(speech_dropout=0.5) == 1, shown(frame_dropout=0.3) == 0
    assert speech_BL.mean() == pytest.approx(0.5, abs=0.02)
    assert frame_BL.mean() == pytest.approx(0.3, abs=0.02)
    assert speech_BL[frame_BL].mean() == pytest.approx(0.5, abs=0.02)
    assert (shown(speech_dropout=0.5, frame_dropout=0.3)[~frame_BL] == 1).mean() == pytest.approx(
        0.5, abs=0.02
    )
    assert len(np.unique(jax.random.key_data(jnp.stack(keys)), axis=0)) == len(keys)


def test_word_dropout_hides_text_targets_alone(stage, variables):
    """Only text targets are hidden, `<audiogen_start>` never."""
    other = LMStage(CONFIG, dataclasses.replace(stage.settings, word_dropout=0.999999))
    arrays = other.arrays(packed((ASR,), (SFT,)))
    seen = []

    def hidden(x_BLD, *_):
        seen.append(x_BLD)
        return x_BLD, None

    with mock.patch.object(LLM, "__call__", lambda self, *a: hidden(*a)):
        other._hidden(variables, arrays, arrays["codes_BLQ"], split_key(KEY))
    zero_BL = np.all(np.asarray(seen[-1]) == 0, axis=-1)
    begin = arrays["ids_BL"] == TOKENS.audiogen_start
    want_BL = arrays["text_target_BL"] & ~begin
    real_BL = arrays["segments_BL"] > 0
    np.testing.assert_array_equal(zero_BL[real_BL], want_BL[real_BL])


def test_speech_dropout_shows_the_first_codebook_of_targets(stage, variables):
    """Only target frames lose codebooks; frames of the prompt keep all."""
    other = LMStage(CONFIG, dataclasses.replace(stage.settings, speech_dropout=1.0))
    arrays = other.arrays(packed((ASR,), (SFT,)))
    seen = []

    def hidden(x_BLD, *_):
        seen.append(np.asarray(x_BLD))
        return x_BLD, None

    with mock.patch.object(LLM, "__call__", lambda self, *a: hidden(*a)):
        for chosen, keys in ((stage, None), (other, split_key(KEY))):
            chosen._hidden(variables, arrays, arrays["codes_BLQ"], keys)
    own_BL = arrays["audio_target_BL"] & (arrays["ids_BL"] == TOKENS.audio_pad)
    assert own_BL.any() and (arrays["ids_BL"] == TOKENS.audio_pad).sum() > own_BL.sum()
    real_BL = arrays["segments_BL"] > 0
    np.testing.assert_array_equal(seen[0][real_BL & ~own_BL], seen[1][real_BL & ~own_BL])
    first = variables["params"]["audio_embed"]["embedding_0"][arrays["codes_BLQ"][own_BL][:, 0]]
    np.testing.assert_array_equal(seen[1][own_BL], first)


def test_a_dropped_frame_shows_its_first_codebooks(stage, variables):
    settings = LMSettings(codebook_dropout=0.4)
    draw = jax.jit(
        lambda: draw_shown_codebooks(settings, split_key(KEY), Q, jnp.ones((64, 64), bool))
    )
    shown = draw()
    shares = np.bincount(np.asarray(shown).ravel(), minlength=Q + 1) / shown.size
    np.testing.assert_allclose(shares, [0, 0.2, 0.2, 0.6], atol=0.03)
    rows = packed((ASR,)).rows
    real = rows.segments_BL > 0
    (frames,) = np.nonzero(rows.ids_BL[0] == TOKENS.audio_pad)
    kept = np.full(rows.ids_BL.shape, Q)
    kept[0, frames[:2]] = 1, 0

    def both(model):
        arguments = rows.ids_BL, rows.codes_BLQ
        return embed_first_codebooks(model, *arguments, kept, real), model.embed(*arguments, real)

    embed = jax.jit(lambda v: stage.model.apply(v, method=both))
    got, want = (np.asarray(x)[0] for x in embed(variables))
    code = rows.codes_BLQ[0, frames[0], 0]
    want = want.copy()
    want[frames[0]] = variables["params"]["audio_embed"]["embedding_0"][code]
    want[frames[1]] = 0
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_amounts_and_flops(stage, variables):
    arrays = stage.arrays(packed((ASR, TTS), (TEXT,)))
    tokens = len(ASR) + len(TTS) + len(TEXT)
    assert stage.amounts(arrays) == {
        "tokens": tokens,
        "audio_seconds": pytest.approx(9 * 0.08),
        "examples": 3,
    }
    # A layer's matrices: q and out 16 x 16, k and v 16 x 8, three of 16 x 24; 2 layers.
    products = tokens * 2 * (2 * 256 + 2 * 128 + 3 * 384) + (5 + 1 + 10) * 16 * 1200
    pairs = sum(n * (n + 1) // 2 for n in map(len, (ASR, TTS, TEXT)))
    head = flops.audio_head(CONFIG.audio_head, 6)
    llm = 2 * products + 2 * 4 * pairs * 16
    trained = ("llm", "audio_head")
    assert stage.flops(arrays, trained) == 3 * (llm + head)
    assert stage.flops(arrays, ("audio_head",)) == 2 * llm + 3 * head
    strided = LMStage(CONFIG, dataclasses.replace(stage.settings, full_head_every=3))
    head = flops.audio_head(CONFIG.audio_head, 2) + flops.audio_head(CONFIG.audio_head, 6, 1)
    assert strided.flops(arrays, trained) == 3 * (llm + head)


BAD = {
    "no loss positions: none of the .* in 1 rows .* .3 examples were skipped": (
        lambda r: {"text_target_BL": r.text_target_BL & False},
        StageError,
    ),
    "row 0, position 0 is a target, but it is padding or its example's first": (
        lambda r: {"text_target_BL": r.positions_BL == 0},
        StageError,
    ),
    "row 0, position 63 is a target, but it is padding": (
        lambda r: {"audio_target_BL": np.arange(LENGTH)[None] == LENGTH - 1},
        StageError,
    ),
    r"ids\[0, 3\] is 1200, expected 0..1199": (
        lambda r: {"ids_BL": np.where(np.arange(LENGTH)[None] == 3, 1200, r.ids_BL)},
        TokenIdError,
    ),
    r"codes\[0, 33, 0\] is 64, expected 0..63 for codebook 0": (
        lambda r: {"codes_BLQ": r.codes_BLQ + 64},
        CodeError,
    ),
    r"position 20 is an audio target with id 1\d+ and code 0: expected a frame .id 12.": (
        lambda r: {"audio_target_BL": np.arange(LENGTH)[None] == 20},
        StageError,
    ),
    "the batch has 2 codebooks, expected 3": (
        lambda r: {"codes_BLQ": r.codes_BLQ[:, :, :2]},
        StageError,
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_batches(stage, message):
    change, error = BAD[message]
    batch = packed((ASR,))._replace(skipped_B=np.array([3], np.int32))
    with pytest.raises(error, match=message):
        stage.arrays(replaced(batch, **change(batch.rows)))


@pytest.mark.parametrize(
    "settings",
    [
        {"audio": "mels"},
        {"full_head_every": 0},
        {"chunk": -1},
        {"codebook_dropout": 1.0},
        {"speech_dropout": 1.1},
        {"audio_weights": (1.0, -1.0)},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LMSettings(**settings)


def test_audio_weights_need_a_value_per_codebook():
    with pytest.raises(StageError, match="lm: 2 audio_weights, expected 3, one a codebook"):
        LMStage(CONFIG, LMSettings(audio_weights=(1.0, 1.0)))
