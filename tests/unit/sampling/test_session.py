"""Conversations equal a single prompt, and streams equal the loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.sampling.alternate import Alternation, StopMasks, TextVocabulary
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.session import END, FRAME, SEGMENT, SEGMENT_END, TEXT, collect
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.vocab import CodeError, TokenIdError
from tests.unit.sampling.conftest import EOS, prompt

DRAWN = Sampling(1.0, 50, 0.95, 1.1)


@pytest.fixture(scope="module")
def make(config, biased, writable):
    ids = np.arange(config.llm.vocab_size)
    stops = StopMasks(ids % 7 == 0, ids % 2 == 1, ids % 3 == 1)

    def build(sampling, alternates=True, **options):
        alternation = Alternation(later_text=sampling, stretch=4, segment=5, segments=4)
        options = {
            "rows": 4,
            "lengths": (8, 16),
            "max_text": 20,
            "max_frames": 24,
        } | options
        return Generator(
            config,
            biased,
            TextVocabulary(EOS, writable, stops if alternates else None),
            GenerationSettings(text=sampling, audio=sampling, **options),
            alternation if alternates else None,
        )

    return build


@pytest.fixture(scope="module")
def drawn(make):
    return make(DRAWN)


@pytest.fixture(scope="module")
def talking(make):
    """Model with a cache for conversations."""
    return make(GREEDY, rows=2, capacity=160)


@pytest.fixture(scope="module")
def whole(make):
    """Model whose prompts hold a whole conversation."""
    return make(GREEDY, rows=2, lengths=(160,))


@pytest.fixture(scope="module")
def turning(make):
    """Model that reads and speaks texts piece by piece."""
    return make(GREEDY, rows=2, capacity=64, alternates=False)


def same(got, want):
    assert got.ids == want.ids and got.complete == want.complete
    np.testing.assert_array_equal(got.codes_NQ, want.codes_NQ)
    assert len(got.pieces) == len(want.pieces)
    for piece, wanted in zip(got.pieces, want.pieces, strict=True):
        assert piece.ids == wanted.ids and piece.complete == wanted.complete
        if piece.is_audio:
            np.testing.assert_array_equal(piece.codes_NQ, wanted.codes_NQ)


@pytest.mark.parametrize("chunk", [1, 4])
def test_stream_equals_the_loop(config, drawn, chunk):
    prompts = [prompt(config, 6 + i, i, wants_speech=i != 2, speaks=i == 3) for i in range(4)]
    seeds = [3, 1, 4, 1]
    whole = drawn(prompts, seeds=seeds)
    loops, shares = drawn.traces["loop"], []
    events = []
    for batch in drawn.stream(prompts, seeds=seeds, chunk=chunk):
        for row in range(4):
            kinds = [event.kind for event in batch if event.row == row]
            assert kinds.count(TEXT) + kinds.count(FRAME) <= chunk
        shares.append(len(batch))
        events += batch
    assert drawn.traces["loop"] == loops == 1  # the very same compiled loop
    outputs = collect(events, len(whole[0].codes_NQ.T))
    for row, want in enumerate(whole):
        same(outputs[row], want)
        kinds = [event.kind for event in events if event.row == row]
        assert kinds[-1] == END and kinds.count(END) == 1
        segments = sum(piece.is_audio for piece in want.pieces)
        assert kinds.count(SEGMENT) == kinds.count(SEGMENT_END) == segments
    assert len(shares) > 5 and min(shares) > 0


def test_no_recompilation(config, drawn):
    """Random lengths, one bucket after the other, batches, streams and conversations."""
    rng = np.random.default_rng(0)
    drawn([prompt(config, length, 0, wants_speech=True) for length in (6, 12)])
    next(drawn.stream([prompt(config, 7, 0)], chunk=4))
    before = dict(drawn.traces)
    for number in range(6):
        lengths = rng.integers(5, 17, rng.integers(1, 5))
        prompts = [prompt(config, n, n, wants_speech=rng.random() < 0.7) for n in lengths]
        seeds = rng.integers(0, 1000, len(prompts))
        if number % 2:
            list(drawn.stream(prompts, seeds=seeds, text_limit=int(rng.integers(1, 20))))
        else:
            drawn(prompts, seeds=seeds, frame_limit=int(rng.integers(1, 24)))
    assert drawn.traces == before
    assert before["loop"] == 1 and before["prefill"] == 2


def history(config, turns):
    """Join prompts and their outputs to one prompt, with the codes of all frames.

    A turn that the next prompt continues has no end token.
    """
    tokens, ids, codes = config.tokens, [], []

    def put(token_id, frame=None):
        ids.append(token_id)
        codes.append(np.zeros(3, np.int32) if frame is None else frame)

    for read, output in turns:
        if read.continues_turn:
            assert ids.pop() == EOS and not codes.pop().any()
        for token_id, frame in zip(read.ids_L, read.codes_LQ, strict=True):
            put(token_id, frame)
        if output is None:
            continue
        for number, piece in enumerate(output.pieces):
            if not piece.is_audio:
                for token_id in piece.ids:
                    put(token_id)
                continue
            if number or not read.speaks:
                put(tokens.audiogen_start)
            for frame in piece.codes_NQ:
                put(tokens.audio_pad, frame)
            put(tokens.audiogen_end)
        put(EOS)
    last = turns[-1][0]
    return dataclasses.replace(last, ids_L=np.asarray(ids, np.int32), codes_LQ=np.asarray(codes))


def test_conversation_equals_its_history_as_one_prompt(config, whole, talking):
    """Three turns of two rows with different lengths; a row is silent in the second turn."""
    session = talking.session([0, 1])
    turns = ([], [])
    for turn in range(3):
        prompts = [
            prompt(config, 6 + (5 * row + 3 * turn) % 11, 10 * turn + row, wants_speech=True)
            for row in range(2)
        ]
        if turn == 1:
            prompts[1] = None
        session.read(prompts)
        outputs = session.generate(text_limit=7, frame_limit=8)
        for row in range(2):
            if prompts[row] is None:
                assert outputs[row] is None
                continue
            turns[row].append((prompts[row], None))
            (want,) = whole([history(config, turns[row])], text_limit=7, frame_limit=8)
            same(outputs[row], want)
            turns[row][-1] = (prompts[row], outputs[row])
    earlier = [output for row_turns in turns for _, output in row_turns[:-1]]
    assert any(piece.is_audio for output in earlier for piece in output.pieces)
    # Turns that were cut are closed, too.
    assert not all(output.complete for row_turns in turns for _, output in row_turns)
    assert talking.traces["read"] <= 2 and talking.traces["loop"] == 1


def test_texts_in_turns(config, make, turning, talking):
    """Each piece follows all earlier text and speech, as if they were one prompt."""
    whole = make(GREEDY, rows=2, lengths=(160,), alternates=False)
    texts = [
        [
            prompt(config, 7 + number, 10 * row + number, speaks=True, continues_turn=number > 0)
            for number in range(pieces)
        ]
        for row, pieces in enumerate((3, 1, 2))
    ]
    limit, done = 20, []
    outputs = turning.in_turns(texts, frame_limit=limit, progress=done.append)
    assert done == [2, 3]
    for prompts, output in zip(texts, outputs, strict=True):
        turns, frames_left = [], limit
        for read, piece in zip(prompts, output.pieces, strict=False):
            (want,) = whole([history(config, [*turns, (read, None)])], frame_limit=frames_left)
            np.testing.assert_array_equal(piece.codes_NQ, want.codes_NQ)
            assert piece.complete == want.complete
            turns.append((read, want))
            frames_left -= len(piece.codes_NQ)
        assert output.ids == [] and len(output.codes_NQ) == limit - frames_left
        assert output.complete == (
            len(output.pieces) == len(prompts) and output.pieces[-1].complete
        )
    assert max(len(output.pieces) for output in outputs) > 1
    with pytest.raises(ValueError, match="a text without a piece"):
        turning.in_turns([texts[0], []])
    with pytest.raises(ValueError, match="with an alternation"):
        talking.in_turns(texts)


def test_feedback_codebooks_limit_the_frames_read_back(config, biased, make):
    """Later codebooks of generated frames are not embedded; frames of the prompt keep all."""
    plain = {"rows": 1, "alternates": False}
    spoken_prompt = prompt(config, 7, 3, speaks=True)
    (output,) = make(GREEDY, feedback_codebooks=1, **plain)([spoken_prompt])
    assert len(output.codes_NQ) > 2
    model = BaichuanAudio(config.only("llm", "audio_embed", "audio_head"))

    ids = np.append(spoken_prompt.ids_L, np.full(len(output.codes_NQ), config.tokens.audio_pad))
    ids, codes = ids[None], np.concatenate([spoken_prompt.codes_LQ, output.codes_NQ])[None]
    spoken = (np.arange(ids.shape[1]) >= len(spoken_prompt))[None, :, None]

    def first_codebook(model):
        """Its logits when generated frames show one codebook, and when they show all."""
        real = np.ones(ids.shape, bool)
        whole = model.embed(ids, codes, real)
        x = jnp.concatenate([jnp.where(spoken, model.embed(ids, codes, real, 1), whole), whole])
        hidden, _ = model.llm(x, None, np.ones(x.shape[:2], np.int32))
        hidden = hidden[:, len(spoken_prompt) - 1 : -1]
        frames = np.stack([output.codes_NQ] * 2)
        logits = model.audio_logits(hidden.reshape(-1, hidden.shape[-1]), frames.reshape(-1, 3))
        return logits[0].reshape(*hidden.shape[:2], -1)

    logits = jax.jit(lambda variables: model.apply(variables, method=first_codebook))(biased)
    chosen, others = np.asarray(logits).argmax(-1)
    np.testing.assert_array_equal(chosen, output.codes_NQ[:, 0])
    assert (others != chosen).any()
    with pytest.raises(ValueError, match="feedback_codebooks 4, expected 0 to 3"):
        make(GREEDY, feedback_codebooks=4)


def test_texts_in_turns_stop_at_the_limit_and_a_full_cache(config, turning):
    """The limit holds for all pieces together; a full cache ends a text too."""
    texts = [
        [prompt(config, 16, 10 * row + i, speaks=True, continues_turn=i > 0) for i in range(9)]
        for row in range(6)
    ]
    outputs = turning.in_turns(texts, frame_limit=24)
    for output in outputs:
        assert not output.complete and 0 < len(output.pieces) < 9 and len(output.codes_NQ) <= 24
    assert {len(output.codes_NQ) == 24 for output in outputs} == {True, False}


def test_prompt_after_an_interrupted_stream(config, whole, talking):
    """The pieces streamed so far are the history, and the turn ends there."""
    session = talking.session([0])
    first, second = (prompt(config, 9, seed, wants_speech=True) for seed in (4, 5))
    session.read([first])
    events = []
    for batch in session.stream(chunk=2):
        events += batch
        if sum(event.kind == FRAME for event in events) >= 3:
            break
    heard = collect(events, 3)[0]
    assert not heard.complete and heard.pieces[-1].is_audio
    session.read([second])
    (output,) = session.generate(text_limit=6, frame_limit=6)
    whole_prompt = history(config, [(first, heard), (second, None)])
    same(output, whole([whole_prompt], text_limit=6, frame_limit=6)[0])


def test_generate_continues_after_a_stream(config, talking):
    """`generate` returns the whole turn, from its beginning."""
    whole_prompt = prompt(config, 9, 4, wants_speech=True)
    session = talking.session([0])
    session.read([whole_prompt])
    next(session.stream(chunk=3))
    (output,) = session.generate()
    same(output, talking([whole_prompt], seeds=[0])[0])
    assert session.generate() == [None]


def test_long_prompts_are_read_in_parts(config, whole, talking):
    """Two prompts at once, or one longer than the longest shape: the same."""
    whole_prompt = prompt(config, 40, 0, wants_speech=True)
    (want,) = whole([whole_prompt], text_limit=5, frame_limit=5)
    session = talking.session([0])
    session.read([whole_prompt])
    same(session.generate(text_limit=5, frame_limit=5)[0], want)
    parts = [
        dataclasses.replace(
            whole_prompt, ids_L=whole_prompt.ids_L[part], codes_LQ=whole_prompt.codes_LQ[part]
        )
        for part in (slice(0, 7), slice(7, 40))
    ]
    session = talking.session([0])
    for part in parts:
        session.read([part])
    assert session.used == [40]
    same(session.generate(text_limit=5, frame_limit=5)[0], want)


def test_full_cache_cuts_the_turn(config, whole, talking):
    """The output up to then is returned; its last position has no slot in the cache."""
    cut = []
    for number in range(6):
        whole_prompt = prompt(config, 153, number, wants_speech=True, speaks=number % 2 == 1)
        session = talking.session([0])
        session.read([whole_prompt])
        (output,) = session.generate()
        (want,) = whole([whole_prompt])
        if output.complete:
            same(output, want)
            continue
        assert session.used == [160]
        assert output.ids == want.ids[: len(output.ids)]
        assert len(output.ids) + len(output.codes_NQ) > 4
        np.testing.assert_array_equal(output.codes_NQ, want.codes_NQ[: len(output.codes_NQ)])
        with pytest.raises(PromptError, match="prompt 0 takes .* slots, expected at most 0, .*160"):
            session.read([prompt(config, 6, 0)])
        cut.append(output)
    assert 1 < len(cut) < 6
    last_pieces = [output.pieces[-1] for output in cut]
    assert any(piece.is_audio and not piece.complete for piece in last_pieces)


def test_invalid_input(config, talking, make):
    good = prompt(config, 6, 0)
    for seeds in ([], range(3)):
        with pytest.raises(ValueError, match="seeds, expected 1 to 2"):
            talking.session(seeds)
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        talking([good], seeds=[1, 2])
    session = talking.session([0, 1])
    with pytest.raises(ValueError, match="nothing was read"):
        session.generate()
    for wrong in ([good], [None, None]):
        with pytest.raises(ValueError, match="expected one for each of 2 conversations"):
            session.read(wrong)
    bad = dataclasses.replace(good, codes_LQ=good.codes_LQ + 64)
    with pytest.raises(CodeError, match="prompt 1: codes"):
        session.read([good, bad])
    with pytest.raises(TokenIdError, match="prompt 0"):
        session.read([dataclasses.replace(good, ids_L=good.ids_L - 1000), good])
    empty = Prompt(np.zeros(0, np.int32), np.zeros((0, 3), np.int32))
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        session.read([good, empty])
    with pytest.raises(PromptError, match="takes 161 slots, expected at most 160"):
        session.read([prompt(config, 161, 0), None])
    assert session.used == [0, 0]  # nothing was read
    with pytest.raises(ValueError, match="chunk 0"):
        session.stream(chunk=0)
    with pytest.raises(ValueError, match="capacity 16, expected over 16"):
        make(GREEDY, capacity=16)
