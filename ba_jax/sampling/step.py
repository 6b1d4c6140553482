"""Decoding steps: every row that is not done gets its next text id or audio frame.

The decoding loop and the streams run the same function, `ModelRunner.run`, for the number of steps
that they ask for. Rows in different modes share a step: the text head runs only while a row writes,
the audio head (8 depth evaluations per frame) only while a row speaks, the language model once for
all rows. `ba_jax.sampling.alternate.advance_turn` decides what a row does next.

Arrays have fixed sizes: the cache `capacity` slots, a turn `max_text` ids, `max_frames` frames and
the starts of its segments.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax import sharding
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    select_variables,
)
from ba_jax.models.llm import KVCache, init_cache
from ba_jax.sampling import alternate
from ba_jax.sampling import logits as logits_lib
from ba_jax.sampling.alternate import (
    DONE,
    SPEAKING,
    WRITING,
    Alternation,
    StopMasks,
    TextVocabulary,
    TurnLimits,
    TurnState,
)
from ba_jax.sampling.logits import Sampling
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.vocab import LANGUAGE_MODEL, check_token_ids


class State(NamedTuple):
    """Everything that a step changes; G is the most segments of a turn.

    Attributes:
      cache: keys and values of all positions that were read.
      hidden_BD: normed hidden state of each row's last position.
      turn: progress of each row's turn.
      chosen_B: number of choices since the row began, int32; each choice has its own random key.
      text_BL: ids of the turn, int32.
      codes_BNQ: frames of the turn, int32.
      begins_BG2: numbers of ids and frames of the turn before each segment, int32.
      cuts_BG: segments that were cut at a limit.
      seen_BV: ids that the repetition penalty counts; of width 0 without a penalty.
      seen_codes: for each codebook, the codes of the current segment that the penalty counts.
    """

    cache: KVCache
    hidden_BD: jax.Array
    turn: TurnState
    chosen_B: jax.Array
    text_BL: jax.Array
    codes_BNQ: jax.Array
    begins_BG2: jax.Array
    cuts_BG: jax.Array
    seen_BV: jax.Array
    seen_codes: tuple[jax.Array, ...]


class ModelRunner:
    """A language model with its compiled functions: prefill, read, and the decoding loop.

    Args:
      config, variables: a model with llm, audio_embed and audio_head; without audio_head, which
        hears and writes; or with llm alone, which reads and writes text.
      vocabulary: roles of the text ids.
      settings: sampling and array sizes.
      alternation: how text and speech alternate; None: text, then at most one segment of speech.
      dtype: type of computation and of the cache.
      place: puts a batch's arrays (rows first) on the devices.

    Raises:
      ValueError: components, masks or settings that do not fit together.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        vocabulary: TextVocabulary,
        settings: GenerationSettings,
        alternation: Alternation | None = None,
        *,
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        needed = tuple(name for name in LANGUAGE_MODEL if getattr(config, name) is not None)
        if needed not in (LANGUAGE_MODEL, LANGUAGE_MODEL[:2], ("llm",)):
            raise ValueError(
                f"model of {needed}: expected {LANGUAGE_MODEL}, the first two, or 'llm' alone"
            )
        if alternation is not None and needed != LANGUAGE_MODEL:
            raise ValueError(
                f"model of {needed}: expected {LANGUAGE_MODEL}, to alternate text and speech"
            )
        self.config, self.settings = config.only(*needed), settings
        self.sizes = config.audio_embed.codebook_sizes if config.audio_embed else ()
        if self.sizes and not 0 <= settings.feedback_codebooks <= len(self.sizes):
            raise ValueError(
                f"feedback_codebooks {settings.feedback_codebooks}, expected 0 to {len(self.sizes)}"
            )
        self._feedback_codebooks = (settings.feedback_codebooks or None) if self.sizes else None
        self.rows, self.capacity = settings.rows, settings.cache_slots(alternation)
        self.segments = 1 if alternation is None else alternation.segments
        self.alternation = alternation
        self.eos_id = vocabulary.eos_id
        self.traces: collections.Counter = collections.Counter()
        self._later_text = settings.text if alternation is None else alternation.later_text
        self._dtype, self._place = dtype, place
        self._model = BaichuanAudio(self.config, dtype=dtype)
        self._variables = select_variables(self.config, variables, needed)
        self._allowed = self._allowed_ids(np.asarray(vocabulary.writable_V, bool))
        self._stops = self._check_stops(vocabulary.stops)
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
        """Masks of the ids allowed to a row that writes, and to one whose text leads to speech."""
        vocab = self.config.llm.vocab_size
        if writable_V.shape != (vocab,):
            raise ValueError(f"writable_V of shape {writable_V.shape}, expected ({vocab},)")
        speech_start = self.config.tokens.audiogen_start
        check_token_ids([self.eos_id, speech_start], vocab)
        plain_V, leading_V = writable_V.copy(), writable_V.copy()
        for allowed_V in (plain_V, leading_V):
            allowed_V[[self.eos_id, speech_start]] = False
        plain_V[self.eos_id] = True
        # A single stretch of text that leads to speech ends with <audiogen_start>; where text and
        # speech alternate, the last stretch ends with the end of text.
        leading_V[speech_start] = True
        leading_V[self.eos_id] = self.alternation is not None
        return plain_V, leading_V

    def _check_stops(self, stops: StopMasks | None) -> StopMasks | None:
        vocab = self.config.llm.vocab_size
        if self.alternation is None:
            return None
        if stops is None:
            raise ValueError("alternation with a vocabulary without stops, expected both")
        for name, mask_V in zip(StopMasks._fields, stops, strict=True):
            if mask_V.shape != (vocab,):
                raise ValueError(f"stops.{name} of shape {mask_V.shape}, expected ({vocab},)")
        return StopMasks(*(np.asarray(mask_V, bool) for mask_V in stops))

    # Called on the host

    def replace_params(self, params: Mapping[str, Any]) -> None:
        """Replace the parameters of some components by others of the same shapes."""
        old = self._variables
        self._variables = {**old, "params": {**old["params"], **params}}

    def start(self, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        """Prefill an empty cache and begin turns.

        Args:
          ids_BL, codes_BLQ: int32; a row's ids come first.
          real_BL: positions that hold an id, bool.
          mode_B: modes that the turns begin in, int32.
        """
        arrays = self._place((ids_BL, codes_BLQ, real_BL, mode_B))
        return self._start(self._variables, *arrays)

    def read(self, state: State, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        """Append ids; rows with at least one begin a turn in `mode_B`. Donates `state`."""
        arrays = self._place((ids_BL, codes_BLQ, real_BL, mode_B))
        return self._read(self._variables, state, *arrays)

    def run(self, state: State, seeds_B, limits: TurnLimits, steps: int) -> State:
        """Run up to `steps` steps, until all rows are done; uint32 seeds. Donates `state`."""
        seeds_B, limits = self._place((seeds_B, limits))
        return self._run(self._variables, state, seeds_B, limits, np.int32(steps))

    def window(self, state: State, counts: Sequence[np.ndarray], size: int):
        """Ids (B, size) and frames (B, size, Q) of the turn, from `counts` (ids, frames) on."""
        return self._window(state, *self._place(tuple(counts)), size)

    def state_shapes(self) -> State:
        """Shapes and types of a state; allocates nothing."""
        row = (self.rows, 1)
        arrays = (
            jax.ShapeDtypeStruct(row, jnp.int32),
            jax.ShapeDtypeStruct((*row, len(self.sizes)), jnp.int32),
            jax.ShapeDtypeStruct(row, bool),
            jax.ShapeDtypeStruct(row[:1], jnp.int32),
        )
        return jax.eval_shape(self._start_in_jit, self._variables, *arrays)

    # Traced

    def _start_in_jit(self, variables, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        self.traces["prefill"] += 1
        rows, vocab = self.rows, self.config.llm.vocab_size
        penalised = self.settings.text.penalises or self._later_text.penalises
        sizes = self.sizes if self.settings.audio.penalises else ()
        state = State(
            cache=init_cache(self.config.llm, rows, self.capacity, self._dtype),
            hidden_BD=jnp.zeros((rows, self.config.llm.width), self._dtype),
            turn=alternate.begin_turn(mode_B),
            chosen_B=jnp.zeros((rows,), jnp.int32),
            text_BL=jnp.zeros((rows, self.settings.max_text), jnp.int32),
            codes_BNQ=jnp.zeros((rows, self.settings.max_frames, len(self.sizes)), jnp.int32),
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

        def clear(array: jax.Array) -> jax.Array:
            return renew(jnp.zeros_like(array), array)

        state = state._replace(
            turn=jax.tree.map(renew, alternate.begin_turn(mode_B), state.turn),
            begins_BG2=clear(state.begins_BG2),
            cuts_BG=clear(state.cuts_BG),
            seen_BV=state.seen_BV if self._counts_all else clear(state.seen_BV),
            seen_codes=tuple(map(clear, state.seen_codes)),
        )
        return self._advance(variables, state, ids_BL, codes_BLQ, real_BL)

    @property
    def _counts_all(self) -> bool:
        """Whether the penalty counts all ids that were read."""
        return self.alternation is not None and self.alternation.overwrites

    def _advance(
        self, variables, state: State, ids_BL, codes_BLQ, real_BL, fresh=False, codebooks=None
    ) -> State:
        """Run the language model over each row's ids; `codebooks` limits the codes it embeds."""
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

    def _run_in_jit(self, variables, state: State, seeds_B, limits: TurnLimits, steps) -> State:
        self.traces["loop"] += 1
        keys_B = jax.vmap(jax.random.key)(seeds_B)

        def is_active(carry) -> jax.Array:
            state, steps_left = carry
            return jnp.any(state.turn.mode_B != DONE) & (steps_left > 0)

        def body(carry):
            state, steps_left = carry
            return self.step(variables, state, keys_B, limits), steps_left - 1

        return jax.lax.while_loop(is_active, body, (state, steps))[0]

    def step(self, variables, state: State, keys_B, limits: TurnLimits) -> State:
        """The next id or frame of every row that is not done; can be traced on its own."""
        rows, turn = jnp.arange(self.rows), state.turn
        writes_B, speaks_B = turn.mode_B == WRITING, turn.mode_B == SPEAKING
        # A key per row and choice, independent of the batch.
        keys_B = jax.vmap(jax.random.fold_in)(keys_B, state.chosen_B)
        ids_B = self._next_ids(variables, state, limits, keys_B)
        codes_BQ = jnp.zeros((self.rows, len(self.sizes)), jnp.int32)
        silent_B = jnp.zeros((self.rows,), bool)
        if self.config.audio_head:
            codes_BQ = jax.lax.cond(
                jnp.any(speaks_B),
                lambda: self._next_frames(variables, state, keys_B),
                lambda: jnp.zeros_like(codes_BQ),
            )
            silent_B = codes_BQ[:, 0] == self.sizes[0]
        after, actions = alternate.advance_turn(
            self.alternation,
            self._stops,
            self.config.tokens,
            self.eos_id,
            turn,
            limits,
            ids_B,
            silent_B,
            state.cache.lengths_B < self.capacity,
        )
        # Rows without a new id, frame or segment write to a slot past the end, which is dropped.
        text_slot_B = jnp.where(actions.wrote_B, turn.text_B, self.settings.max_text)
        frame_slot_B = jnp.where(actions.spoke_B, turn.frames_B, self.settings.max_frames)
        segment_B = jnp.where(actions.opens_B, turn.segments_B, self.segments)
        begins_B2 = jnp.stack([after.text_B, after.frames_B], axis=1)
        seen_BV = state.seen_BV
        if seen_BV.shape[1] and not self._counts_all:
            seen_BV = seen_BV.at[rows, ids_B].max(actions.wrote_B)
        state = state._replace(
            turn=after,
            chosen_B=state.chosen_B + (writes_B | speaks_B),
            text_BL=state.text_BL.at[rows, text_slot_B].set(ids_B, mode="drop"),
            codes_BNQ=state.codes_BNQ.at[rows, frame_slot_B].set(codes_BQ, mode="drop"),
            begins_BG2=state.begins_BG2.at[rows, segment_B].set(begins_B2, mode="drop"),
            cuts_BG=state.cuts_BG.at[rows, jnp.maximum(turn.segments_B - 1, 0)].max(actions.cuts_B),
            seen_BV=seen_BV,
            # The penalty counts the codes of the current segment alone.
            seen_codes=tuple(
                (seen & ~actions.opens_B[:, None]).at[rows, codes_BQ[:, q]].max(actions.spoke_B)
                for q, seen in enumerate(state.seen_codes)
            ),
        )
        ids_B1, reads_B1 = actions.ids_B[:, None], actions.reads_B[:, None]
        return self._advance(
            variables,
            state,
            ids_B1,
            codes_BQ[:, None],
            reads_B1,
            codebooks=self._feedback_codebooks,
        )

    def _next_ids(self, variables, state: State, limits: TurnLimits, keys_B) -> jax.Array:
        """Ids chosen by the rows that write; arbitrary for the other rows."""
        writes_B = state.turn.mode_B == WRITING
        later_B = state.turn.segments_B > 0
        zeros_B = jnp.zeros((self.rows,), jnp.int32)
        plain_V, leading_V = (jnp.asarray(allowed)[None] for allowed in self._allowed)

        def choose(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
            allowed_BV = jnp.where(limits.wants_speech_B[:, None], leading_V, plain_V)
            return logits_lib.choose(
                keys_B, logits_BV, sampling, seen_BV=state.seen_BV, allowed_BV=allowed_BV
            )

        def ids() -> jax.Array:
            logits_BV = self._model.apply(variables, state.hidden_BD, method="text_logits")
            if self.settings.text == self._later_text:
                return choose(self.settings.text, logits_BV)
            first_B, second_B = (
                jax.lax.cond(
                    jnp.any(writes_B & rows_B),
                    functools.partial(choose, sampling, logits_BV),
                    lambda: zeros_B,
                )
                for sampling, rows_B in (
                    (self.settings.text, ~later_B),
                    (self._later_text, later_B),
                )
            )
            return jnp.where(later_B, second_B, first_B)

        return jax.lax.cond(jnp.any(writes_B), ids, lambda: zeros_B)

    def _next_frames(self, variables, state: State, keys_B) -> jax.Array:
        """Frames (B, Q) chosen for all rows; the end class of codebook 0 ends a segment."""

        def choose(q: int, logits_BV: jax.Array) -> jax.Array:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, q + 1))(keys_B)
            allowed_BV = None
            if q > 0:  # codebook 0 alone has the end of audio
                allowed_BV = (jnp.arange(logits_BV.shape[-1]) < self.sizes[q])[None]
            seen_BV = state.seen_codes[q] if self.settings.audio.penalises else None
            return logits_lib.choose(
                keys, logits_BV, self.settings.audio, seen_BV=seen_BV, allowed_BV=allowed_BV
            )

        return self._model.apply(variables, state.hidden_BD, choose, method="generate_frame")

    def _window_in_jit(self, state: State, text_B, frames_B, size: int):
        self.traces["window"] += 1
        steps = jnp.arange(size)[None]
        text_BL = jnp.take_along_axis(
            state.text_BL, jnp.minimum(text_B[:, None] + steps, self.settings.max_text - 1), axis=1
        )
        slots_BL = jnp.minimum(frames_B[:, None] + steps, self.settings.max_frames - 1)
        return text_BL, jnp.take_along_axis(state.codes_BNQ, slots_BL[:, :, None], axis=1)
