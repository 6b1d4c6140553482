"""Batched generation of text and audio frames with a cache of fixed capacity.

Each row is in one of three modes: it writes text, it speaks frames, or it is done. A step gives
every row that is not done its next token or frame and runs the language model over them once;
rows in different modes share it. A text row that chooses `<audiogen_start>` speaks from then on;
a speaking row ends where codebook 0 takes its end class. The text head runs only while some row
writes, the audio head (8 depth evaluations a frame) only while some row speaks.

Shapes are few: prompts are padded to one of `lengths`, batches to `rows`. Prefill compiles once a
length, the loop once.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models import layers
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.models.llm import KVCache, init_cache
from ba_jax.sampling import logits as logits_lib
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.vocab import check_token_ids

DONE, WRITING, SPEAKING = 0, 1, 2


class State(NamedTuple):
    """Everything that a step changes.

    Attributes:
      cache: keys and values of all that was read and produced.
      hidden_BD: normed hidden state of each row's last position.
      mode_B: DONE, WRITING or SPEAKING, int32.
      text_BL, text_lengths_B: ids written, int32.
      codes_BNQ, frames_B: frames spoken, int32.
      cut_B: the row ended at a limit.
      seen_BV: ids the row wrote; of width 0 without a penalty.
      seen_codes: the same of each codebook's codes in this segment.
    """

    cache: KVCache
    hidden_BD: jax.Array
    mode_B: jax.Array
    text_BL: jax.Array
    text_lengths_B: jax.Array
    codes_BNQ: jax.Array
    frames_B: jax.Array
    cut_B: jax.Array
    seen_BV: jax.Array
    seen_codes: tuple[jax.Array, ...]


class Request(NamedTuple):
    """What does not change: keys_B, limits (int32) and whether a row's text leads to speech."""

    keys_B: jax.Array
    text_limit_B: jax.Array
    frame_limit_B: jax.Array
    wants_speech_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a prompt gave.

    Attributes:
      ids: text, without the token that ended it.
      codes_NQ: int32, frames of audio without the end class; (0, Q) if it did not speak.
      complete: it ended by itself, not at a limit.
    """

    ids: list[int]
    codes_NQ: np.ndarray
    complete: bool


class Generator:
    """Generates for a model.

    Args:
      config, variables: a model with llm, audio_embed and audio_head; or with llm alone, which
        reads and writes text.
      eos_id: ends text.
      writable_V: which ids text may hold (bool), beside `eos_id` and `<audiogen_start>`.
      text, audio: how ids and codes are chosen.
      rows: batch size; fewer prompts are padded to it.
      lengths: what prompts are padded to.
      max_text, max_frames: the most that a row may produce.
      dtype: compute type, and that of the cache.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: dict[str, Any],
        *,
        eos_id: int,
        writable_V: np.ndarray,
        text: Sampling = GREEDY,
        audio: Sampling = GREEDY,
        rows: int = 32,
        lengths: Sequence[int] = (64, 128, 256),
        max_text: int = 64,
        max_frames: int = 128,
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        parts = ("llm", "audio_embed", "audio_head")
        needed = tuple(name for name in parts if getattr(config, name) is not None)
        if needed not in (parts, parts[:1]):
            raise ValueError(f"model of {needed}: expected {parts}, or 'llm' alone")
        if rows < 1 or not lengths or min(lengths) < 1 or max_text < 1 or max_frames < 1:
            raise ValueError(
                f"rows {rows}, lengths {lengths}, max_text {max_text}, max_frames {max_frames}: "
                "expected at least 1 of each"
            )
        self.config = config.only(*needed)
        self.sizes = config.audio_head.codebook_sizes if config.audio_head else ()
        self.rows, self.lengths = rows, tuple(sorted(lengths))
        self.max_text, self.max_frames = max_text, max_frames
        # <audiogen_start> is read too; the last token or frame of a row never is.
        self.capacity = self.lengths[-1] + max_text + max_frames
        self.traces: collections.Counter = collections.Counter()
        self._text, self._audio, self._dtype, self._eos = text, audio, dtype, eos_id
        self._place = place
        self._model = BaichuanAudio(self.config, dtype=dtype)
        self._variables = {
            collection: {name: tree[name] for name in needed if name in tree}
            for collection, tree in variables.items()
        }
        self._allowed = self._allowed_ids(np.asarray(writable_V, bool))
        self._prefill = jax.jit(self._start)
        self._loop = jax.jit(self._run, donate_argnums=1)

    def _allowed_ids(self, writable_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids allowed to a row that writes, and to one whose text leads to speech."""
        vocab = self.config.llm.vocab_size
        if writable_V.shape != (vocab,):
            raise ValueError(f"writable_V of shape {writable_V.shape}, expected ({vocab},)")
        begin = self.config.tokens.audiogen_start
        check_token_ids([self._eos, begin], vocab)
        pair = []
        # Text that leads to speech ends with <audiogen_start>, other text with the end of text.
        for end in (self._eos, begin):
            allowed_V = writable_V.copy()
            allowed_V[[self._eos, begin]] = False
            allowed_V[end] = True
            pair.append(allowed_V)
        return pair[0], pair[1]

    # One prompt after the other

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        text_limit: int | None = None,
        frame_limit: int | None = None,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generated]:
        """Continues all prompts, in batches of prompts of like lengths.

        Args:
          prompts: any number.
          text_limit, frame_limit: the most ids and frames of each; default what there is room for.
          seeds: one a prompt; default its number. A prompt and its seed decide what it gives.
          progress: called with the number of prompts done after each batch.

        Raises:
          PromptError: an empty prompt, or one longer than the last of `lengths`.
          TokenIdError: an id outside the vocabulary.
          ValueError: a limit over what there is room for.
        """
        text_limit = self.max_text if text_limit is None else text_limit
        frame_limit = self.max_frames if frame_limit is None else frame_limit
        if not 1 <= text_limit <= self.max_text or not 1 <= frame_limit <= self.max_frames:
            raise ValueError(
                f"limits of {text_limit} ids and {frame_limit} frames: expected 1 to "
                f"{self.max_text} and 1 to {self.max_frames}"
            )
        seeds = range(len(prompts)) if seeds is None else seeds
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.lengths[-1]:
                raise PromptError(
                    f"prompt {number} has {len(prompt)} positions, expected 1 to {self.lengths[-1]}"
                )
            check_token_ids(prompt.ids_L, self.config.llm.vocab_size, f"prompt {number}")
            if not self.sizes and (prompt.wants_speech or prompt.codes_LQ.any()):
                raise PromptError(f"prompt {number} has audio, and the model reads text alone")
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Generated] = {}
        for first in range(0, len(order), self.rows):
            some = order[first : first + self.rows]
            found = self._batch(
                [prompts[i] for i in some], [seeds[i] for i in some], text_limit, frame_limit
            )
            results.update(zip(some, found, strict=True))
            if progress is not None:
                progress(len(results))
        return [results[i] for i in range(len(prompts))]

    def _batch(self, prompts, seeds, text_limit: int, frame_limit: int) -> list[Generated]:
        longest = max(len(prompt) for prompt in prompts)
        length = next(n for n in self.lengths if n >= longest)
        ids_BL = np.zeros((self.rows, length), np.int32)
        codes_BLQ = np.zeros((self.rows, length, len(self.sizes)), np.int32)
        real_BL = np.zeros((self.rows, length), bool)
        mode_B = np.full(self.rows, DONE, np.int32)
        wants_B = np.zeros(self.rows, bool)
        for row, prompt in enumerate(prompts):
            ids_BL[row, : len(prompt)] = prompt.ids_L
            codes_BLQ[row, : len(prompt)] = prompt.codes_LQ[:, : len(self.sizes)]
            real_BL[row, : len(prompt)] = True
            mode_B[row] = SPEAKING if prompt.speaks else WRITING
            wants_B[row] = prompt.wants_speech
        seeds_B = np.zeros(self.rows, np.uint32)
        seeds_B[: len(prompts)] = seeds
        request = Request(
            jax.vmap(jax.random.key)(seeds_B),
            np.full(self.rows, text_limit, np.int32),
            np.full(self.rows, frame_limit, np.int32),
            wants_B,
        )
        arrays = self._place((ids_BL, codes_BLQ, real_BL, mode_B))
        state = self._prefill(self._variables, *arrays)
        state = self._loop(self._variables, state, self._place(request))
        text_BL, text_B, codes_BNQ, frames_B, cut_B = jax.device_get(
            (state.text_BL, state.text_lengths_B, state.codes_BNQ, state.frames_B, state.cut_B)
        )
        return [
            Generated(
                text_BL[row, : text_B[row]].tolist(),
                codes_BNQ[row, : frames_B[row]],
                not cut_B[row],
            )
            for row in range(len(prompts))
        ]

    # In jit

    def _start(self, variables, ids_BL, codes_BLQ, real_BL, mode_B) -> State:
        """Reads the prompts."""
        self.traces["prefill"] += 1
        rows, length = ids_BL.shape
        cache = init_cache(self.config.llm, rows, self.capacity, self._dtype)
        segments_BL = real_BL.astype(jnp.int32)
        codes_BLQ = codes_BLQ if self.sizes else None
        hidden_BLD, cache = self._model.apply(
            variables, ids_BL, codes_BLQ, None, segments_BL, cache, fresh=True, method="hidden"
        )
        last_B = jnp.max(jnp.where(real_BL, jnp.arange(length)[None], 0), axis=1)
        hidden_BD = jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]
        vocab = self.config.llm.vocab_size if self._text.penalises else 0
        sizes = self.sizes if self._audio.penalises else ()
        none_B = jnp.zeros((rows,), jnp.int32)
        return State(
            cache=cache,
            hidden_BD=hidden_BD,
            mode_B=mode_B,
            text_BL=jnp.zeros((rows, self.max_text), jnp.int32),
            text_lengths_B=none_B,
            codes_BNQ=jnp.zeros((rows, self.max_frames, len(self.sizes)), jnp.int32),
            frames_B=none_B,
            cut_B=none_B > 0,
            seen_BV=jnp.zeros((rows, vocab), bool),
            seen_codes=tuple(jnp.zeros((rows, size + 1), bool) for size in sizes),
        )

    def _run(self, variables, state: State, request: Request) -> State:
        """Steps until every row is done."""
        self.traces["loop"] += 1
        step = functools.partial(self.step, variables, request=request)
        return jax.lax.while_loop(lambda s: jnp.any(s.mode_B != DONE), step, state)

    def step(self, variables, state: State, request: Request) -> State:
        """The next id or frame of every row that is not done; jit-able on its own."""
        rows = jnp.arange(self.rows)
        writes_B, speaks_B = state.mode_B == WRITING, state.mode_B == SPEAKING
        # A row's n-th choice has its own key, in whatever batch.
        number_B = state.text_lengths_B + state.frames_B
        keys_B = jax.vmap(jax.random.fold_in)(request.keys_B, number_B)
        ids_B = jax.lax.cond(
            jnp.any(writes_B),
            lambda: self._next_ids(variables, state, request, keys_B),
            lambda: jnp.zeros((self.rows,), jnp.int32),
        )
        codes_BQ = jnp.zeros((self.rows, len(self.sizes)), jnp.int32)
        goes_on_B = speaks_B
        if self.sizes:
            codes_BQ = jax.lax.cond(
                jnp.any(speaks_B),
                lambda: self._next_frames(variables, state, keys_B),
                lambda: jnp.zeros_like(codes_BQ),
            )
            goes_on_B = codes_BQ[:, 0] != self.sizes[0]
        tokens = self.config.tokens
        begins_B = writes_B & (ids_B == tokens.audiogen_start)
        wrote_B = writes_B & ~begins_B & (ids_B != self._eos)
        spoke_B = speaks_B & goes_on_B

        # Slots past the end are dropped: where nothing was produced.
        text_slot_B = jnp.where(wrote_B, state.text_lengths_B, self.max_text)
        frame_slot_B = jnp.where(spoke_B, state.frames_B, self.max_frames)
        text_lengths_B = state.text_lengths_B + wrote_B
        frames_B = state.frames_B + spoke_B
        full_B = (wrote_B & (text_lengths_B >= request.text_limit_B)) | (
            spoke_B & (frames_B >= request.frame_limit_B)
        )
        mode_B = jnp.where(
            wrote_B & ~full_B, WRITING, jnp.where((begins_B | spoke_B) & ~full_B, SPEAKING, DONE)
        )
        alive_B1 = (mode_B != DONE)[:, None]
        next_B1 = jnp.where(spoke_B, tokens.audio_pad, ids_B)[:, None]
        hidden_B1D, cache = self._model.apply(
            variables,
            next_B1,
            codes_BQ[:, None] if self.sizes else None,
            None,
            alive_B1.astype(jnp.int32),
            state.cache,
            method="hidden",
        )
        seen_BV, seen_codes = state.seen_BV, state.seen_codes
        if self._text.penalises:
            seen_BV = seen_BV.at[rows, ids_B].max(wrote_B)
        if self._audio.penalises:
            seen_codes = tuple(
                seen.at[rows, codes_BQ[:, q]].max(spoke_B) for q, seen in enumerate(seen_codes)
            )
        return State(
            cache=cache,
            hidden_BD=jnp.where(alive_B1, hidden_B1D[:, 0], state.hidden_BD),
            mode_B=mode_B,
            text_BL=state.text_BL.at[rows, text_slot_B].set(ids_B, mode="drop"),
            text_lengths_B=text_lengths_B,
            codes_BNQ=state.codes_BNQ.at[rows, frame_slot_B].set(codes_BQ, mode="drop"),
            frames_B=frames_B,
            cut_B=state.cut_B | full_B,
            seen_BV=seen_BV,
            seen_codes=seen_codes,
        )

    def _next_ids(self, variables, state: State, request: Request, keys_B) -> jax.Array:
        logits_BV = self._model.apply(variables, state.hidden_BD, method="text_logits")
        plain_V, leading_V = (jnp.asarray(allowed)[None] for allowed in self._allowed)
        allowed_BV = jnp.where(request.wants_speech_B[:, None], leading_V, plain_V)
        return logits_lib.choose(
            keys_B, logits_BV, self._text, seen_BV=state.seen_BV, allowed_BV=allowed_BV
        )

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
