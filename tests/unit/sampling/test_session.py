"""Conversations and streams: the same as one prompt, and as the loop."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.sampling.alternate import Alternation, Stops
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.session import END, FRAME, SEGMENT, SEGMENT_END, TEXT, collect
from ba_jax.vocab import CodeError, TokenIdError
from tests.unit.sampling.conftest import EOS, prompt

DRAWN = Sampling(1.0, 50, 0.95, 1.1)


@pytest.fixture(scope="module")
def make(config, biased, writable):
    ids = np.arange(config.llm.vocab_size)
    stops = Stops(ids % 7 == 0, ids % 2 == 1, ids % 3 == 1)

    def build(sampling, **options):
        alternation = Alternation(later_text=sampling, stretch=4, segment=5, segments=4)
        options = {
            "rows": 4,
            "lengths": (8, 16),
            "max_text": 20,
            "max_frames": 24,
            "alternation": alternation,
            "stops": stops,
        } | options
        return Generator(
            config,
            biased,
            eos_id=EOS,
            writable_V=writable,
            text=sampling,
            audio=sampling,
            **options,
        )

    return build


@pytest.fixture(scope="module")
def drawn(make):
    return make(DRAWN)


@pytest.fixture(scope="module")
def talking(make):
    """With room for conversations."""
    return make(GREEDY, rows=2, capacity=160)


@pytest.fixture(scope="module")
def whole(make):
    """Reads what a conversation amounts to as one prompt."""
    return make(GREEDY, rows=2, lengths=(160,))


def same(got, want):
    assert got.ids == want.ids and got.complete == want.complete
    np.testing.assert_array_equal(got.codes_NQ, want.codes_NQ)
    assert len(got.pieces) == len(want.pieces)
    for one, other in zip(got.pieces, want.pieces, strict=True):
        assert one.ids == other.ids and one.complete == other.complete
        if one.is_audio:
            np.testing.assert_array_equal(one.codes_NQ, other.codes_NQ)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_stream_is_what_the_loop_gives(config, drawn, chunk):
    prompts = [prompt(config, 6 + i, i, wants_speech=i != 2, speaks=i == 3) for i in range(4)]
    seeds = [3, 1, 4, 1]
    whole = drawn(prompts, seeds=seeds)
    loops, shares = drawn.traces["loop"], []
    events = []
    for some in drawn.stream(prompts, seeds=seeds, chunk=chunk):
        for row in range(4):
            kinds = [event.kind for event in some if event.row == row]
            assert kinds.count(TEXT) + kinds.count(FRAME) <= chunk
        shares.append(len(some))
        events += some
    assert drawn.traces["loop"] == loops == 1  # the very same compiled loop
    found = collect(events, len(whole[0].codes_NQ.T))
    for row, want in enumerate(whole):
        same(found[row], want)
        own = [event.kind for event in events if event.row == row]
        assert own[-1] == END and own.count(END) == 1
        assert own.count(SEGMENT) == own.count(SEGMENT_END) == sum(p.is_audio for p in want.pieces)
    assert len(shares) > 5 and min(shares) > 0


def test_nothing_is_compiled_again(config, drawn):
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
    """Prompts and what came of them, as one prompt: codes where frames were said or heard.

    A turn that the next prompt goes on with is not ended.
    """
    tokens, ids, codes = config.tokens, [], []

    def put(token_id, frame=None):
        ids.append(token_id)
        codes.append(np.zeros(3, np.int32) if frame is None else frame)

    for read, made in turns:
        if read.goes_on:
            assert ids.pop() == EOS and not codes.pop().any()
        for token_id, frame in zip(read.ids_L, read.codes_LQ, strict=True):
            put(token_id, frame)
        if made is None:
            continue
        for number, piece in enumerate(made.pieces):
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


def test_a_conversation_equals_its_history_as_one_prompt(config, whole, talking):
    """Three turns of two rows, lengths of their own, one row silent in the second turn."""
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
        made = session.generate(text_limit=7, frame_limit=8)
        for row in range(2):
            if prompts[row] is None:
                assert made[row] is None
                continue
            turns[row].append((prompts[row], None))
            (want,) = whole([history(config, turns[row])], text_limit=7, frame_limit=8)
            same(made[row], want)
            turns[row][-1] = (prompts[row], made[row])
    assert any(piece.is_audio for own in turns for _, made in own[:-1] for piece in made.pieces)
    assert not all(made.complete for own in turns for _, made in own)  # cut turns are closed too
    assert talking.traces["read"] <= 2 and talking.traces["loop"] == 1


def test_texts_in_turns(config, make, talking):
    """Each piece comes after all that was read and said, as if that were one prompt."""
    plain = {"rows": 2, "alternation": None, "stops": None}
    short, whole = make(GREEDY, capacity=160, **plain), make(GREEDY, lengths=(160,), **plain)
    texts = [
        [
            prompt(config, 7 + number, 10 * row + number, speaks=True, goes_on=number > 0)
            for number in range(pieces)
        ]
        for row, pieces in enumerate((3, 1, 2))
    ]
    limit, done = 20, []
    made = short.in_turns(texts, frame_limit=limit, progress=done.append)
    assert done == [2, 3]
    for own, one in zip(texts, made, strict=True):
        turns, left = [], limit
        for read, piece in zip(own, one.pieces, strict=False):
            (want,) = whole([history(config, [*turns, (read, None)])], frame_limit=left)
            np.testing.assert_array_equal(piece.codes_NQ, want.codes_NQ)
            assert piece.complete == want.complete
            turns.append((read, want))
            left -= len(piece.codes_NQ)
        assert one.ids == [] and len(one.codes_NQ) == limit - left
        assert one.complete == (len(one.pieces) == len(own) and one.pieces[-1].complete)
    assert max(len(one.pieces) for one in made) > 1
    with pytest.raises(ValueError, match="a text without a piece"):
        short.in_turns([texts[0], []])
    with pytest.raises(ValueError, match="with an alternation"):
        talking.in_turns(texts)


def test_own_frames_are_read_by_their_first_codebooks(config, biased, make):
    """As if the later codebooks' embeddings were none; of what was read all count."""
    plain = {"rows": 1, "alternation": None, "stops": None}
    one = prompt(config, 7, 3, speaks=True)
    (made,) = make(GREEDY, feedback_codebooks=1, **plain)([one])
    assert len(made.codes_NQ) > 2
    model = BaichuanAudio(config.only("llm", "audio_embed", "audio_head"))

    def after(count):
        """Hidden states at the frames, the first `count` codebooks shown of those said."""
        ids = np.append(one.ids_L, np.full(len(made.codes_NQ), config.tokens.audio_pad))[None]
        codes = np.concatenate([one.codes_LQ, made.codes_NQ])[None]
        said = (np.arange(ids.shape[1]) >= len(one))[None, :, None]

        def run(model):
            real = np.ones(ids.shape, bool)
            shown = model.embed(ids, codes, real, count)
            x = jnp.where(said, shown, model.embed(ids, codes, real))
            return model.llm(x, None, real.astype(np.int32))[0]

        hidden = model.apply(biased, method=run)[0, len(one) - 1 : -1]
        return model.apply(biased, hidden, made.codes_NQ, method="audio_logits")[0]

    chosen, others = (np.asarray(after(count)).argmax(-1) for count in (1, None))
    np.testing.assert_array_equal(chosen, made.codes_NQ[:, 0])
    assert (others != chosen).any()
    with pytest.raises(ValueError, match="feedback_codebooks 4, expected 0 to 3"):
        make(GREEDY, feedback_codebooks=4)


def test_texts_in_turns_that_find_no_room(config, make):
    """The limit is all pieces' together; a full cache ends a text too."""
    texts = [[prompt(config, 7, i, speaks=True, goes_on=i > 0) for i in range(9)]]
    small = make(GREEDY, rows=1, lengths=(8,), alternation=None, stops=None, capacity=40)
    (made,) = small.in_turns(texts, frame_limit=24)
    assert not made.complete and 0 < len(made.pieces) < 9 and len(made.codes_NQ) <= 24


def test_breaking_in(config, whole, talking):
    """What was streamed by then is the history, and the turn ends there."""
    session = talking.session([0])
    first, second = (prompt(config, 9, seed, wants_speech=True) for seed in (4, 5))
    session.read([first])
    events = []
    for some in session.stream(chunk=2):
        events += some
        if sum(event.kind == FRAME for event in events) >= 3:
            break
    heard = collect(events, 3)[0]
    assert not heard.complete and heard.pieces[-1].is_audio
    session.read([second])
    (made,) = session.generate(text_limit=6, frame_limit=6)
    one = history(config, [(first, heard), (second, None)])
    same(made, whole([one], text_limit=6, frame_limit=6)[0])


def test_generate_goes_on_after_a_stream(config, talking):
    """And gives the turn from its beginning."""
    one = prompt(config, 9, 4, wants_speech=True)
    session = talking.session([0])
    session.read([one])
    next(session.stream(chunk=3))
    (made,) = session.generate()
    same(made, talking([one], seeds=[0])[0])
    assert session.generate() == [None]


def test_prompts_are_read_in_parts(config, whole, talking):
    """Two prompts at once, or one longer than the longest shape: the same."""
    one = prompt(config, 40, 0, wants_speech=True)
    (want,) = whole([one], text_limit=5, frame_limit=5)
    session = talking.session([0])
    session.read([one])
    same(session.generate(text_limit=5, frame_limit=5)[0], want)
    parts = [
        dataclasses.replace(one, ids_L=one.ids_L[part], codes_LQ=one.codes_LQ[part])
        for part in (slice(0, 7), slice(7, 40))
    ]
    session = talking.session([0])
    for part in parts:
        session.read([part])
    assert session.used == [40]
    same(session.generate(text_limit=5, frame_limit=5)[0], want)


def test_a_full_cache_cuts_the_turn(config, whole, talking):
    """With what was produced until then; the last of it has no slot."""
    cut = []
    for number in range(6):
        one = prompt(config, 153, number, wants_speech=True, speaks=number % 2 == 1)
        session = talking.session([0])
        session.read([one])
        (made,) = session.generate()
        (want,) = whole([one])
        if made.complete:
            same(made, want)
            continue
        assert session.used == [160]
        assert made.ids == want.ids[: len(made.ids)] and len(made.ids) + len(made.codes_NQ) > 4
        np.testing.assert_array_equal(made.codes_NQ, want.codes_NQ[: len(made.codes_NQ)])
        with pytest.raises(PromptError, match="prompt 0 takes .* slots, expected at most 0, .*160"):
            session.read([prompt(config, 6, 0)])
        cut.append(made)
    assert 1 < len(cut) < 6
    assert any(one.pieces[-1].is_audio and not one.pieces[-1].complete for one in cut)


def test_bad_input(config, talking, make):
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
