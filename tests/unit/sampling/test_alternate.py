"""Alternation of text and speech, against its rules step by step over uncached passes."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.data.record import dataset_directory
from ba_jax.data.text_tokenizer import load_text_tokenizer
from ba_jax.sampling import alternate
from ba_jax.sampling.alternate import (
    DONE,
    SPEAKING,
    WRITING,
    Alternation,
    StopMasks,
    TextVocabulary,
    TurnLimits,
    text_vocabulary,
)
from ba_jax.sampling.logits import Sampling
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.vocab import AudioTokens
from tests.unit.sampling.conftest import EOS, prompt

STRETCH, SEGMENT_FRAMES, SEGMENTS = 4, 5, 4
TEXT_PENALTY, LATER_PENALTY, AUDIO_PENALTY = 1.1, 1.05, 1.3


@pytest.fixture(scope="module")
def stops(config):
    ids = np.arange(config.llm.vocab_size)
    return StopMasks(ids % 7 == 0, ids % 2 == 1, ids % 3 == 1)


def make(config, variables, writable, stops, mode, **options):
    alternation = Alternation(
        mode,
        later_text=Sampling(repetition_penalty=LATER_PENALTY),
        stretch=STRETCH,
        segment=SEGMENT_FRAMES,
        segments=SEGMENTS,
    )
    options = {
        "rows": 8,
        "lengths": (16,),
        "max_text": 20,
        "max_frames": 24,
        "text": Sampling(repetition_penalty=TEXT_PENALTY),
        "audio": Sampling(repetition_penalty=AUDIO_PENALTY),
    } | options
    return Generator(
        config,
        variables,
        TextVocabulary(EOS, writable, stops),
        GenerationSettings(**options),
        alternation,
    )


class Oracle:
    """A turn by the rules without a cache; `pieces` are lists of ids and of frames in order."""

    def __init__(self, config, whole_pass, writable, stops, prompt):
        self.tokens, self.sizes = config.tokens, config.audio_head.codebook_sizes
        self.pass_, self.stops = whole_pass, stops
        self.allowed = writable.copy()
        self.allowed[[EOS, config.tokens.audiogen_start]] = True
        self.ids, self.codes = list(prompt.ids_L), list(prompt.codes_LQ)
        self.pieces = []
        self.how = set()

    def put(self, token_id, frame=None):
        self.ids.append(token_id)
        self.codes.append(np.zeros(len(self.sizes), np.int32) if frame is None else frame)

    def choose(self, penalty, counted):
        logits = self.pass_(self.ids, self.codes)[0].copy()
        for i in counted:
            logits[i] = logits[i] * penalty if logits[i] < 0 else logits[i] / penalty
        return int(np.where(self.allowed, logits, -np.inf).argmax())

    def frame(self, history):
        return self.pass_(self.ids, self.codes, AUDIO_PENALTY, history)[1]

    def paired(self, before, chosen):
        return bool(before and self.stops.first_V[before[-1]] and self.stops.second_V[chosen])

    def reference(self):
        """Follow the public demo: text and audio alternate, each replaces the last id."""
        for number in range(SEGMENTS):
            new = []
            while True:
                penalty = LATER_PENALTY if number else TEXT_PENALTY
                chosen = self.choose(penalty, set(self.ids))
                paired = self.paired(new, chosen)
                self.put(chosen)
                new.append(chosen)
                if chosen in (EOS, self.tokens.audiogen_start) or len(new) == STRETCH:
                    break
                if number and (self.stops.whole_V[chosen] or paired):
                    self.how.add("pair" if paired else "stop")
                    break
            shown = [i for i in new if i not in (EOS, self.tokens.audiogen_start)]
            if shown:
                self.pieces.append(shown)
            if new[-1] == EOS and len(new) == 1:
                self.how.add("end")
                return
            self.how.add("asked" if new[-1] == self.tokens.audiogen_start else "overwritten")
            self.ids[-1] = self.tokens.audiogen_start
            frames = []
            for _ in range(SEGMENT_FRAMES):
                frame = self.frame(frames)
                self.put(self.tokens.audio_pad, frame)
                if frame[0] == self.sizes[0]:
                    self.how.add("silence")
                    break
                frames.append(frame)
            self.pieces.append(np.reshape(frames, (-1, len(self.sizes))))
            if new[-1] == EOS:
                self.how.add("last words")
                return
            self.ids[-1] = self.tokens.audiogen_end

    def clean(self):
        written = []
        for _ in range(SEGMENTS):
            new, last = [], False
            while True:
                chosen = self.choose(LATER_PENALTY if self.spoke() else TEXT_PENALTY, set(written))
                if chosen == EOS:
                    last = True
                    break
                if chosen == self.tokens.audiogen_start:
                    self.how.add("asked")
                    break
                if self.paired(new, chosen):
                    self.how.add("pair")
                    break
                self.put(chosen)
                new.append(chosen)
                written.append(chosen)
                if self.stops.whole_V[chosen] or len(new) == STRETCH:
                    self.how.add("stop")
                    break
            if new:
                self.pieces.append(new)
            if last and not new:
                self.how.add("end")
                return
            self.put(self.tokens.audiogen_start)
            frames = []
            while len(frames) < SEGMENT_FRAMES:
                frame = self.frame(frames)
                if frame[0] == self.sizes[0]:
                    self.how.add("silence")
                    break
                frames.append(frame)
                self.put(self.tokens.audio_pad, frame)
            self.put(self.tokens.audiogen_end)
            self.pieces.append(np.reshape(frames, (-1, len(self.sizes))))
            if last:
                self.how.add("last words")
                return

    def spoke(self):
        return any(isinstance(piece, np.ndarray) for piece in self.pieces)


def agree(pieces, wanted):
    """Assert equality up to the oracle's end; it stops after the last segment."""
    assert len(pieces) >= len(wanted)
    for got, want in zip(pieces, wanted, strict=False):
        if isinstance(want, list):
            assert got.ids == want
        else:
            np.testing.assert_array_equal(got.codes_NQ, want)


@pytest.mark.parametrize("mode", alternate.MODES)
def test_output_equals_the_rules_step_by_step(config, biased, whole_pass, writable, stops, mode):
    """Greedy with penalties: both modes, several alternations, each way to stop."""
    generator = make(config, biased, writable, stops, mode)
    prompts = [prompt(config, 6 + i % 10, i, wants_speech=True) for i in range(16)]
    how, alternations = set(), []
    for request, got in zip(prompts, generator(prompts), strict=True):
        oracle = Oracle(config, whole_pass, writable, stops, request)
        getattr(oracle, mode)()
        agree(got.pieces, oracle.pieces)
        if got.complete:
            assert len(got.pieces) == len(oracle.pieces)
        alternations.append(sum(piece.is_audio for piece in got.pieces))
        assert got.ids == [i for piece in got.pieces if not piece.is_audio for i in piece.ids]
        assert len(got.codes_NQ) == sum(len(p.codes_NQ) for p in got.pieces if p.is_audio)
        how |= oracle.how
    assert how >= {"pair", "stop", "asked", "silence", "end", "last words"}
    assert max(alternations) == SEGMENTS
    assert generator.traces == {"prefill": 1, "loop": 1}


def test_rows_are_independent_of_the_batch(config, biased, writable, stops):
    """Drawn, rows in all modes at once; not compiled again for other prompts, seeds and limits."""
    sampling = Sampling(1.0, 50, 0.95, 1.1)
    generator = make(config, biased, writable, stops, "clean", text=sampling, audio=sampling)
    prompts = [prompt(config, 6 + i, i, wants_speech=i != 3, speaks=i == 5) for i in range(7)]
    whole = generator(prompts, seeds=range(100, 107))
    for i in (0, 3, 5, 6):
        (alone,) = generator([prompts[i]], seeds=[100 + i])
        assert alone.ids == whole[i].ids and alone.complete == whole[i].complete
        np.testing.assert_array_equal(alone.codes_NQ, whole[i].codes_NQ)
    assert not len(whole[3].codes_NQ) and whole[3].ids  # did not want to speak
    assert whole[5].pieces[0].is_audio
    other = generator(prompts, seeds=range(7), text_limit=9, frame_limit=11)
    assert [output.ids for output in other] != [output.ids for output in whole]
    for output in other:
        assert len(output.ids) <= 9 and len(output.codes_NQ) <= 11
        assert not output.complete or (len(output.ids) < 9 and len(output.codes_NQ) < 11)
    assert generator.traces == {"prefill": 1, "loop": 1}


# --- the state machine without a model ----------------------------------------------------------

TOKENS = AudioTokens(audiogen_start=4, audiogen_end=5, audio_pad=6)
END = 3
MASKS = StopMasks(np.arange(12) == 7, np.arange(12) == 8, np.arange(12) == 9)
ROWS = 4


@functools.cache
def machine(mode):
    alternation = mode and Alternation(mode, stretch=4, segment=3, segments=3)
    return jax.jit(
        functools.partial(alternate.advance_turn, alternation, MASKS if mode else None, TOKENS, END)
    )


@hypothesis.given(
    mode=st.sampled_from((None, *alternate.MODES)),
    seed=st.integers(0, 2**32 - 1),
    text_limit=st.integers(1, 12),
    frame_limit=st.integers(1, 8),
    room=st.integers(1, 40),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_turns_are_well_formed_for_any_choices(mode, seed, text_limit, frame_limit, room):
    """The output is well formed and within the limits, and every turn ends."""
    rng = np.random.default_rng(seed)
    wants = rng.random(ROWS) < 0.8
    speaks = wants & (rng.random(ROWS) < 0.2)
    turn = alternate.begin_turn(jnp.asarray(np.where(speaks, SPEAKING, WRITING), jnp.int32))
    limits = TurnLimits(np.full(ROWS, text_limit), np.full(ROWS, frame_limit), wants)
    read = [[TOKENS.audiogen_start] if row_speaks else [] for row_speaks in speaks]
    wrote, frames = [[] for _ in range(ROWS)], [0] * ROWS
    for _ in range(60):
        before = jax.device_get(turn)
        ids = rng.choice([END, TOKENS.audiogen_start, 7, 8, 8, 9, 9, 10, 11], ROWS)
        if mode is None:  # the masks of `ModelRunner`
            ids = np.where(wants & (ids == END), 4, np.where(~wants & (ids == 4), END, ids))
        silent = rng.random(ROWS) < 0.2
        has_room = np.asarray([len(read[row]) - speaks[row] < room for row in range(ROWS)])
        turn, move = jax.device_get(machine(mode)(turn, limits, ids, silent, has_room))
        for row in range(ROWS):
            assert not (move.reads_B[row] and before.mode_B[row] == DONE)
            if move.reads_B[row]:
                read[row].append(int(move.ids_B[row]))
            if move.wrote_B[row]:
                wrote[row].append(int(ids[row]))
            frames[row] += bool(move.spoke_B[row])
    assert (turn.mode_B == DONE).all()
    for row in range(ROWS):
        row_ids = read[row]
        assert len(row_ids) <= room + speaks[row]
        assert len(wrote[row]) == turn.text_B[row] <= text_limit
        assert frames[row] == turn.frames_B[row] <= frame_limit
        assert row_ids.count(TOKENS.audiogen_start) == turn.segments_B[row]
        assert turn.segments_B[row] <= (3 if mode else 1)
        # <audiogen_start> frames <audiogen_end>, and text outside
        inside = False
        for token_id in row_ids:
            if token_id in (TOKENS.audiogen_start, TOKENS.audiogen_end):
                assert inside == (token_id == TOKENS.audiogen_end)
                inside = not inside
            else:
                assert (token_id == TOKENS.audio_pad) == inside
        assert turn.open_B[row] == inside
        assert turn.ended_B[row] == (END in row_ids)
        assert turn.cut_B[row] or turn.ended_B[row] or not inside
        text = [i for i in row_ids if i > TOKENS.audio_pad]
        full = len(row_ids) == room + speaks[row]
        if mode != "reference":
            # The last id, or frame, has no slot where the cache is full.
            assert text == wrote[row] or (full and text == wrote[row][:-1])
            assert row_ids.count(TOKENS.audio_pad) in (frames[row], frames[row] - full)


def test_two_character_stop():
    """Clean: "." and then " The" gives way; reference: " The" is shown, and lost."""

    def play(mode, chosen):
        turn = alternate.begin_turn(jnp.full(ROWS, WRITING))
        limits = TurnLimits(np.full(ROWS, 99), np.full(ROWS, 99), np.ones(ROWS, bool))
        read, wrote = [], []
        for token_id, silent in chosen:
            arguments = (np.full(ROWS, token_id), np.full(ROWS, silent), np.ones(ROWS, bool))
            turn, move = jax.device_get(machine(mode)(turn, limits, *arguments))
            read.append(int(move.ids_B[0]))
            wrote += [token_id] * bool(move.wrote_B[0])
        return read, wrote

    # speech first: the reference heeds stops from the second stretch on
    opening = [(4, False), (0, True)]
    read, wrote = play("clean", [*opening, (8, False), (9, False), (0, False)])
    assert (read, wrote) == ([4, 5, 8, 4, 6], [8])
    read, wrote = play("reference", [*opening, (8, False), (9, False), (0, False)])
    assert (read, wrote) == ([4, 5, 8, 4, 6], [8, 9])
    # a stop of one character: appended, or in its place
    read, wrote = play("clean", [*opening, (10, False), (7, False), (0, False), (0, False)])
    assert (read, wrote) == ([4, 5, 10, 7, 4, 6], [10, 7])
    read, wrote = play("reference", [*opening, (10, False), (7, False), (0, False)])
    assert (read, wrote) == ([4, 5, 10, 4, 6], [10, 7])


# --- stops and settings -------------------------------------------------------------------------


def test_stop_masks_of_a_tokenizer():
    tokenizer = load_text_tokenizer(dataset_directory("embedded") / "tokenizer.model")
    vocab = tokenizer.vocab_size + 5
    (comma,) = tokenizer.encode(",")
    clean = alternate.find_stops(Alternation(), tokenizer, vocab)
    reference = alternate.find_stops(Alternation("reference"), tokenizer, vocab)
    assert clean.whole_V[comma] and reference.whole_V[comma]
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.decode([token_id])
        assert clean.whole_V[token_id] == any(text.endswith(stop) for stop in alternate.STOPS)
        assert reference.whole_V[token_id] == any(stop in text for stop in alternate.STOPS)
        assert clean.first_V[token_id] == text.endswith(".")
        assert clean.second_V[token_id] == text.startswith(" ")
    assert clean.first_V.any() and clean.second_V.any() and "，" in alternate.STOPS
    assert not any(mask[tokenizer.vocab_size :].any() for mask in clean)
    nothing = alternate.find_stops(Alternation(stops=()), tokenizer, vocab)
    assert not any(mask.any() for mask in nothing)
    writable = alternate.writable_ids(tokenizer, vocab)
    assert writable[comma] and not writable[tokenizer.eos_id]
    assert writable.sum() == tokenizer.vocab_size - len(tokenizer.special_tokens)


def test_vocabulary_of_a_tokenizer():
    tokenizer = load_text_tokenizer(dataset_directory("embedded") / "tokenizer.model")
    vocab = tokenizer.vocab_size + 5
    vocabulary = text_vocabulary(tokenizer, vocab)
    assert vocabulary.eos_id == tokenizer.eos_id and vocabulary.stops is None
    assert vocabulary.writable_V.shape == (vocab,)
    stops = text_vocabulary(tokenizer, vocab, Alternation()).stops
    expected = alternate.find_stops(Alternation(), tokenizer, vocab)
    assert all(map(np.array_equal, stops, expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "dirty"}, "mode 'dirty', expected one of"),
        ({"stretch": 0}, "expected at least 1 of each"),
        ({"segments": 0}, "expected at least 1 of each"),
        ({"stops": ("...",)}, "expected strings of one character"),
        ({"stops": (". ", "! ")}, "at most one of two"),
    ],
)
def test_invalid_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Alternation(**options)


def test_alternation_needs_stops_and_audio(config, variables, writable, stops):
    with pytest.raises(ValueError, match="alternation with a vocabulary without stops"):
        make(config, variables, writable, None, "clean")
    with pytest.raises(ValueError, match="stops.whole_V of shape"):
        make(config, variables, writable, StopMasks(*(mask[1:] for mask in stops)), "clean")
    with pytest.raises(ValueError, match="to alternate text and speech"):
        make(config.only("llm"), variables, writable, stops, "clean")
