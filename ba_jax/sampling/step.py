"""A step of generation: every row that is not done gets its next id or frame.

The jitted loop and the streaming generators run the same function, `Stepper.run`, for as many
steps as they are given. Rows in different modes share a step: the text head runs only while some
row writes, the audio head (8 depth evaluations a frame) only while some row speaks, the language
model once for all. What a row does next is `ba_jax.sampling.alternate.move`'s to say.

Arrays have fixed sizes: the cache `capacity` slots, the log of a turn `max_text` ids, `max_frames`
frames and the beginnings of its segments.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax import sharding
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.models.llm import KVCache, init_cache
from ba_jax.sampling import alternate
from ba_jax.sampling import logits as logits_lib
from ba_jax.sampling.alternate import DONE, SPEAKING, WRITING, Alternation, Limits, Stops, Turn
from ba_jax.sampling.logits import Sampling
from ba_jax.vocab import LANGUAGE_MODEL, check_token_ids


class State(NamedTuple):
    """Everything that a step changes; G is the most segments of a turn.

    Attributes:
      cache: keys and values of all that was read.
      hidden_BD: normed hidden state of each row's last position.
      turn: where each row is.
      chosen_B: choices made since the row began, int32: the n-th has its own key.
      text_BL: ids of the turn, int32.
      codes_BNQ: its frames, int32.
      begins_BG2: for each segment the ids and frames of the turn before it, int32.
      cuts_BG: the segment was cut at a limit.
      seen_BV: ids that the penalty counts; of width 0 without one.
      seen_codes: the same of each codebook's codes in this segment.
    """

    cache: KVCache
    hidden_BD: jax.Array
    turn: Turn
    chosen_B: jax.Array
    text_BL: jax.Array
    codes_BNQ: jax.Array
    begins_BG2: jax.Array
    cuts_BG: jax.Array
    seen_BV: jax.Array
    seen_codes: tuple[jax.Array, ...]


class Stepper:
    """A model, how its outputs are chosen, and the compiled functions.

    Args:
      config, variables: a model with llm, audio_embed and audio_head; or with llm alone, which
        reads and writes text.
      eos_id: ends text.
      writable_V: which ids text may hold (bool), beside `eos_id` and `<audiogen_start>`.
      text, later_text, audio: how ids are chosen before and after a turn's first segment, and
        codes.
      alternation, stops: see `alternate.move`.
      rows: batch size.
      capacity: slots of the cache, a row.
      max_text, max_frames: the most that a row may produce in a turn.
      feedback_codebooks: of the frames that it says, the model reads the first so many; 0: all. For
        one
        that learnt to speak so (`LMSettings.speech_dropout`).
      dtype: compute type, and that of the cache.
      place: puts a batch's arrays (rows first) on the devices.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: dict[str, Any],
        *,
        eos_id: int,
        writable_V: np.ndarray,
        text: Sampling,
        later_text: Sampling,
        audio: Sampling,
        alternation: Alternation | None,
        stops: Stops | None,
        rows: int,
        capacity: int,
        max_text: int,
        max_frames: int,
        dtype: layers.Dtype,
        feedback_codebooks: int = 0,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        needed = tuple(name for name in LANGUAGE_MODEL if getattr(config, name) is not None)
        if needed not in (LANGUAGE_MODEL, ("llm",)):
            raise ValueError(f"model of {needed}: expected {LANGUAGE_MODEL}, or 'llm' alone")
        if alternation is not None and needed != LANGUAGE_MODEL:
            raise ValueError(
                f"model of {needed}: expected {LANGUAGE_MODEL}, to alternate text and speech"
            )
        self.config = config.only(*needed)
        self.sizes = config.audio_head.codebook_sizes if config.audio_head else ()
        if not 0 <= feedback_codebooks <= len(self.sizes):
            raise ValueError(
                f"feedback_codebooks {feedback_codebooks}, expected 0 to {len(self.sizes)}"
            )
        self.rows, self.capacity = rows, capacity
        self._feedback_codebooks = feedback_codebooks or None
        self.max_text, self.max_frames = max_text, max_frames
        self.segments = 1 if alternation is None else alternation.segments
        self.traces: collections.Counter = collections.Counter()
        self.eos_id = eos_id
        self._text, self._later_text, self._audio = text, later_text, audio
        self._alternation, self._dtype, self._place = alternation, dtype, place
        self._model = BaichuanAudio(self.config, dtype=dtype)
        self._variables = {
            collection: {name: tree[name] for name in needed if name in tree}
            for collection, tree in variables.items()
        }
        self._allowed = self._allowed_ids(np.asarray(writable_V, bool))
        self._stops = self._checked_stops(stops)
        mesh = sharding.mesh_of(self._variables)
        start, read, run = (
            sharding.under_mesh(mesh, function)
            for function in (self._start_in_jit, self._read_in_jit, self._run_in_jit)
        )
        self._start = jax.jit(start)
        self._read = jax.jit(read, donate_argnums=1)
        self._run = jax.jit(run, donate_argnums=1)
        self._window = jax.jit(self._window_in_jit, static_argnums=3)

    def _allowed_ids(self, writable_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids allowed to a row that writes, and to one whose text leads to speech."""
        vocab = self.config.llm.vocab_size
        if writable_V.shape != (vocab,):
            raise ValueError(f"writable_V of shape {writable_V.shape}, expected ({vocab},)")
        begin = self.config.tokens.audiogen_start
        check_token_ids([self.eos_id, begin], vocab)
        plain_V, leading_V = writable_V.copy(), writable_V.copy()
        for allowed_V in (plain_V, leading_V):
            allowed_V[[self.eos_id, begin]] = False
        plain_V[self.eos_id] = True
        # One stretch of text that leads to speech ends with <audiogen_start>; where text and speech
        # alternate, the last one ends with the end of text.
        leading_V[begin] = True
        leading_V[self.eos_id] = self._alternation is not None
        return plain_V, leading_V

    def _checked_stops(self, stops: Stops | None) -> Stops | None:
        vocab = self.config.llm.vocab_size
        if self._alternation is None:
            return None
        if stops is None:
            raise ValueError("alternation without stops, expected both")
        for name, mask_V in zip(Stops._fields, stops, strict=True):
            if mask_V.shape != (vocab,):
                raise ValueError(f"stops.{name} of shape {mask_V.shape}, expected ({vocab},)")
        return Stops(*(np.asarray(mask_V, bool) for mask_V in stops))

    # From the host

    def start(self, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        """Reads the first ids of every row, at the beginning of each; int32, int32, bool, int32."""
        arrays = self._place((ids_BL, codes_BLQ, real_BL, mode_B))
        return self._start(self._variables, *arrays)

    def read(self, state: State, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        """Reads on; rows with something to read begin a turn in `mode_B`. Donates `state`."""
        arrays = self._place((ids_BL, codes_BLQ, real_BL, mode_B))
        return self._read(self._variables, state, *arrays)

    def run(self, state: State, seeds_B, limits: Limits, steps: int) -> State:
        """At most so many steps, fewer once every row is done; uint32 seeds. Donates `state`."""
        seeds_B, limits = self._place((seeds_B, limits))
        return self._run(self._variables, state, seeds_B, limits, np.int32(steps))

    def window(self, state: State, counts: Sequence[np.ndarray], size: int):
        """The ids (B, size) and frames (B, size, Q) of the turn from (ids, frames) on."""
        return self._window(state, *self._place(tuple(counts)), size)

    def state_shapes(self) -> State:
        """Shapes and types of a state; nothing is allocated."""
        row = (self.rows, 1)
        arrays = (
            jax.ShapeDtypeStruct(row, jnp.int32),
            jax.ShapeDtypeStruct((*row, len(self.sizes)), jnp.int32),
            jax.ShapeDtypeStruct(row, bool),
            jax.ShapeDtypeStruct(row[:1], jnp.int32),
        )
        return jax.eval_shape(self._start_in_jit, self._variables, *arrays)

    # In jit

    def _start_in_jit(self, variables, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        self.traces["prefill"] += 1
        rows, vocab = self.rows, self.config.llm.vocab_size
        penalised = self._text.penalises or self._later_text.penalises
        sizes = self.sizes if self._audio.penalises else ()
        state = State(
            cache=init_cache(self.config.llm, rows, self.capacity, self._dtype),
            hidden_BD=jnp.zeros((rows, self.config.llm.width), self._dtype),
            turn=alternate.begin(mode_B),
            chosen_B=jnp.zeros((rows,), jnp.int32),
            text_BL=jnp.zeros((rows, self.max_text), jnp.int32),
            codes_BNQ=jnp.zeros((rows, self.max_frames, len(self.sizes)), jnp.int32),
            begins_BG2=jnp.zeros((rows, self.segments, 2), jnp.int32),
            cuts_BG=jnp.zeros((rows, self.segments), bool),
            seen_BV=jnp.zeros((rows, vocab if penalised else 0), bool),
            seen_codes=tuple(jnp.zeros((rows, size + 1), bool) for size in sizes),
        )
        return self._advance(variables, state, ids_BL, codes_BLQ, real_BL, fresh=True)

    def _read_in_jit(self, variables, state: State, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        self.traces["read"] += 1
        begins_B = jnp.any(real_BL, axis=1)

        def renew(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(begins_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        seen_BV = state.seen_BV
        if not self._counts_all:
            seen_BV = renew(jnp.zeros_like(seen_BV), seen_BV)
        state = state._replace(
            turn=jax.tree.map(renew, alternate.begin(mode_B), state.turn),
            begins_BG2=renew(jnp.zeros_like(state.begins_BG2), state.begins_BG2),
            cuts_BG=renew(jnp.zeros_like(state.cuts_BG), state.cuts_BG),
            seen_BV=seen_BV,
            seen_codes=tuple(renew(jnp.zeros_like(seen), seen) for seen in state.seen_codes),
        )
        return self._advance(variables, state, ids_BL, codes_BLQ, real_BL)

    @property
    def _counts_all(self) -> bool:
        """The penalty counts whatever was read."""
        return self._alternation is not None and self._alternation.overwrites

    def _advance(
        self, variables, state: State, ids_BL, codes_BLQ, real_BL, fresh=False, codebooks=None
    ) -> State:
        """Reads each row's real ids, which come first, if any."""
        hidden_BLD, cache = self._model.apply(
            variables,
            ids_BL,
            codes_BLQ if self.sizes else None,
            None,
            real_BL.astype(jnp.int32),
            state.cache,
            fresh=fresh,
            codebooks=codebooks,
            method="hidden",
        )
        last_B = jnp.maximum(jnp.sum(real_BL, axis=1) - 1, 0)
        hidden_BD = jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]
        seen_BV = state.seen_BV
        if self._counts_all and seen_BV.shape[1]:
            seen_BV = seen_BV.at[jnp.arange(self.rows)[:, None], ids_BL].max(real_BL)
        return state._replace(
            cache=cache,
            hidden_BD=jnp.where(jnp.any(real_BL, axis=1)[:, None], hidden_BD, state.hidden_BD),
            seen_BV=seen_BV,
        )

    def _run_in_jit(self, variables, state: State, seeds_B, limits: Limits, steps) -> State:
        self.traces["loop"] += 1
        keys_B = jax.vmap(jax.random.key)(seeds_B)

        def goes_on(carry) -> jax.Array:
            state, left = carry
            return jnp.any(state.turn.mode_B != DONE) & (left > 0)

        def body(carry):
            state, left = carry
            return self.step(variables, state, keys_B, limits), left - 1

        return jax.lax.while_loop(goes_on, body, (state, steps))[0]

    def step(self, variables, state: State, keys_B, limits: Limits) -> State:
        """The next id or frame of every row that is not done; jit-able on its own."""
        rows, turn = jnp.arange(self.rows), state.turn
        writes_B, speaks_B = turn.mode_B == WRITING, turn.mode_B == SPEAKING
        # A row's n-th choice has its own key, in whatever batch.
        keys_B = jax.vmap(jax.random.fold_in)(keys_B, state.chosen_B)
        ids_B = self._next_ids(variables, state, limits, keys_B)
        codes_BQ = jnp.zeros((self.rows, len(self.sizes)), jnp.int32)
        silent_B = jnp.zeros((self.rows,), bool)
        if self.sizes:
            codes_BQ = jax.lax.cond(
                jnp.any(speaks_B),
                lambda: self._next_frames(variables, state, keys_B),
                lambda: jnp.zeros_like(codes_BQ),
            )
            silent_B = codes_BQ[:, 0] == self.sizes[0]
        after, move = alternate.move(
            self._alternation,
            self._stops,
            self.config.tokens,
            self.eos_id,
            turn,
            limits,
            ids_B,
            silent_B,
            state.cache.lengths_B < self.capacity,
        )
        # Slots past the end are dropped: where nothing was produced.
        text_slot_B = jnp.where(move.wrote_B, turn.text_B, self.max_text)
        frame_slot_B = jnp.where(move.spoke_B, turn.frames_B, self.max_frames)
        segment_B = jnp.where(move.opens_B, turn.segments_B, self.segments)
        begins_B2 = jnp.stack([after.text_B, after.frames_B], axis=1)
        seen_BV = state.seen_BV
        if seen_BV.shape[1] and not self._counts_all:
            seen_BV = seen_BV.at[rows, ids_B].max(move.wrote_B)
        state = state._replace(
            turn=after,
            chosen_B=state.chosen_B + (writes_B | speaks_B),
            text_BL=state.text_BL.at[rows, text_slot_B].set(ids_B, mode="drop"),
            codes_BNQ=state.codes_BNQ.at[rows, frame_slot_B].set(codes_BQ, mode="drop"),
            begins_BG2=state.begins_BG2.at[rows, segment_B].set(begins_B2, mode="drop"),
            cuts_BG=state.cuts_BG.at[rows, jnp.maximum(turn.segments_B - 1, 0)].max(move.cuts_B),
            seen_BV=seen_BV,
            # The penalty is of the segment's own history.
            seen_codes=tuple(
                (seen & ~move.opens_B[:, None]).at[rows, codes_BQ[:, q]].max(move.spoke_B)
                for q, seen in enumerate(state.seen_codes)
            ),
        )
        ids_B1, reads_B1 = move.ids_B[:, None], move.reads_B[:, None]
        return self._advance(
            variables,
            state,
            ids_B1,
            codes_BQ[:, None],
            reads_B1,
            codebooks=self._feedback_codebooks,
        )

    def _next_ids(self, variables, state: State, limits: Limits, keys_B) -> jax.Array:
        """What the rows that write choose; 0 elsewhere, or anything."""
        writes_B = state.turn.mode_B == WRITING
        later_B = state.turn.segments_B > 0
        nothing_B = jnp.zeros((self.rows,), jnp.int32)
        plain_V, leading_V = (jnp.asarray(allowed)[None] for allowed in self._allowed)

        def choose(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
            allowed_BV = jnp.where(limits.wants_speech_B[:, None], leading_V, plain_V)
            return logits_lib.choose(
                keys_B, logits_BV, sampling, seen_BV=state.seen_BV, allowed_BV=allowed_BV
            )

        def ids() -> jax.Array:
            logits_BV = self._model.apply(variables, state.hidden_BD, method="text_logits")
            if self._text == self._later_text:
                return choose(self._text, logits_BV)
            first_B, second_B = (
                jax.lax.cond(
                    jnp.any(writes_B & here_B),
                    functools.partial(choose, sampling, logits_BV),
                    lambda: nothing_B,
                )
                for sampling, here_B in ((self._text, ~later_B), (self._later_text, later_B))
            )
            return jnp.where(later_B, second_B, first_B)

        return jax.lax.cond(jnp.any(writes_B), ids, lambda: nothing_B)

    def _next_frames(self, variables, state: State, keys_B) -> jax.Array:
        def choose(q: int, logits_BV: jax.Array) -> jax.Array:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, q + 1))(keys_B)
            allowed_BV = None
            if q > 0:  # the end of audio is codebook 0's alone
                allowed_BV = (jnp.arange(logits_BV.shape[-1]) < self.sizes[q])[None]
            seen_BV = state.seen_codes[q] if self._audio.penalises else None
            return logits_lib.choose(
                keys, logits_BV, self._audio, seen_BV=seen_BV, allowed_BV=allowed_BV
            )

        return self._model.apply(variables, state.hidden_BD, choose, method="generate_frame")

    def _window_in_jit(self, state: State, text_B, frames_B, size: int):
        self.traces["window"] += 1
        steps = jnp.arange(size)[None]
        text_BL = jnp.take_along_axis(
            state.text_BL, jnp.minimum(text_B[:, None] + steps, self.max_text - 1), axis=1
        )
        slots_BL = jnp.minimum(frames_B[:, None] + steps, self.max_frames - 1)
        return text_BL, jnp.take_along_axis(state.codes_BNQ, slots_BL[:, :, None], axis=1)
