"""Batched generation of text and audio frames with a cache of fixed capacity.

A prompt gives text, or text and then speech, or, with an `Alternation`, text and speech in turns.
Shapes are few: prompts are padded to one of `lengths`, batches to `rows`. Prefill compiles once a
length, the loop once, whether it runs to the end or streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ba_jax.data.text_tokenizer import TextTokenizer
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling import alternate
from ba_jax.sampling.alternate import Alternation, Stops
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.session import Event, Generated, Session, check_prompt
from ba_jax.sampling.step import Stepper


class Generator:
    """Generates for a model.

    Args:
      config, variables: a model with llm, audio_embed and audio_head; or with llm alone, which
        reads and writes text.
      eos_id: ends text.
      writable_V: which ids text may hold (bool), beside `eos_id` and `<audiogen_start>`.
      text, audio: how ids and codes are chosen.
      alternation, stops: prompts that want speech give text and speech in turns; None: text and
        then one segment of speech. `stops` are `alternate.find_stops`'s.
      rows: batch size; fewer prompts are padded to it.
      lengths: what prompts are padded to.
      max_text, max_frames: the most that a row may produce in a turn.
      capacity: slots of the cache, a row; default what the longest prompt and one turn take.
        Conversations of several turns need more.
      feedback_codebooks: of the frames that it says, the model reads the first so many; 0: all.
      dtype: compute type, and that of the cache.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.

    Attributes:
      traces: how often each function was compiled.
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
        alternation: Alternation | None = None,
        stops: Stops | None = None,
        rows: int = 32,
        lengths: Sequence[int] = (64, 128, 256),
        max_text: int = 64,
        max_frames: int = 128,
        capacity: int | None = None,
        feedback_codebooks: int = 0,
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        if rows < 1 or not lengths or min(lengths) < 1 or max_text < 1 or max_frames < 1:
            raise ValueError(
                f"rows {rows}, lengths {lengths}, max_text {max_text}, max_frames {max_frames}: "
                "expected at least 1 of each"
            )
        self.rows, self.lengths = rows, tuple(sorted(lengths))
        self._alternates = alternation is not None
        if capacity is None:
            # A segment is read with its two delimiters, a turn with the end of text.
            segments = 1 if alternation is None else min(alternation.segments, max_text + 1)
            capacity = self.lengths[-1] + max_text + max_frames + 2 * segments + 1
        if capacity <= self.lengths[-1]:
            raise ValueError(
                f"capacity {capacity}, expected over {self.lengths[-1]}, the longest prompt"
            )
        self._stepper = Stepper(
            config,
            variables,
            eos_id=eos_id,
            writable_V=writable_V,
            text=text,
            later_text=text if alternation is None else alternation.later_text,
            audio=audio,
            alternation=alternation,
            stops=stops,
            rows=rows,
            capacity=capacity,
            max_text=max_text,
            max_frames=max_frames,
            feedback_codebooks=feedback_codebooks,
            dtype=dtype,
            place=place,
        )

    @classmethod
    def of(
        cls,
        config: BaichuanAudioConfig,
        variables: dict[str, Any],
        tokenizer: TextTokenizer,
        *,
        alternation: Alternation | None = None,
        **options,
    ) -> Generator:
        """A generator of a tokenizer's text; with an `alternation`, sampling as the reference's.

        Args:
          config, variables, alternation: as above.
          tokenizer: gives `eos_id`, `writable_V` and `stops`.
          options: the others above.

        Raises:
          TokenizerError: one that does not fit the model.
        """
        tokenizer.check_against(config.tokens, config.llm.vocab_size)
        vocab = config.llm.vocab_size
        if alternation is not None:
            stops = alternate.find_stops(alternation, tokenizer, vocab)
            sampling = {"text": alternate.FIRST_TEXT, "audio": alternate.AUDIO}
            options = {"stops": stops, "alternation": alternation} | sampling | options
        writable_V = alternate.writable_ids(tokenizer, vocab)
        return cls(config, variables, eos_id=tokenizer.eos_id, writable_V=writable_V, **options)

    @property
    def traces(self) -> Counter:
        return self._stepper.traces

    @property
    def capacity(self) -> int:
        """Slots of the cache, a row."""
        return self._stepper.capacity

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
          TokenIdError, CodeError: an id outside the vocabulary, a code outside its codebook.
          ValueError: a limit over what there is room for, or not one seed a prompt.
        """
        seeds = self._checked(prompts, seeds)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Generated] = {}
        for first in range(0, len(order), self.rows):
            some = order[first : first + self.rows]
            session = self.session([seeds[i] for i in some])
            session.read([prompts[i] for i in some])
            found = session.generate(text_limit=text_limit, frame_limit=frame_limit)
            results.update(zip(some, found, strict=True))
            if progress is not None:
                progress(len(results))
        return [results[i] for i in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        chunk: int = 4,
        text_limit: int | None = None,
        frame_limit: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[list[Event]]:
        """What `__call__` gives, as it comes: see `Session.stream`. `Event.row` is the prompt's.

        Args:
          prompts: at most `rows`.
          chunk: steps a dispatch.
          text_limit, frame_limit, seeds: as in `__call__`.

        Raises:
          as `__call__`; ValueError for more prompts than rows, or a chunk under 1.
        """
        session = self.session(self._checked(prompts, seeds))
        session.read(prompts)
        return session.stream(chunk=chunk, text_limit=text_limit, frame_limit=frame_limit)

    def in_turns(
        self,
        prompts: Sequence[Sequence[Prompt]],
        *,
        frame_limit: int | None = None,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generated]:
        """Says texts that are given in pieces: a piece is read and said, and then the next one.

        Args:
          prompts: of each text, as `prompt.cut_at_speech` makes them.
          frame_limit: the most frames of a text, all pieces together; default what there is room
            for.
          seeds, progress: as in `__call__`.

        Returns:
          One for each text, a segment of speech a piece. A text that comes to the limit, or to the
          end of the cache, is not complete, and what is left of it is not said.

        Raises:
          as `__call__`; ValueError for a text without a piece, or with an `alternation`, which has
            the model write what comes next.
        """
        if self._alternates:
            raise ValueError("texts in turns with an alternation, expected a generator without")
        if not all(prompts):
            raise ValueError("a text without a piece, expected at least one")
        firsts = [own[0] for own in prompts]
        seeds = self._checked(firsts, seeds)
        limit = self._stepper.max_frames if frame_limit is None else frame_limit
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Generated] = {}
        for first in range(0, len(order), self.rows):
            some = order[first : first + self.rows]
            session = self.session([seeds[i] for i in some])
            said: list[list[Generated]] = [[] for _ in some]
            for number in range(max(len(prompts[i]) for i in some)):
                left = [limit - sum(len(one.codes_NQ) for one in own) for own in said]
                used, now = session.used, []
                for row, i in enumerate(some):
                    # What ends a segment that was cut, the piece, a frame, and what ends those.
                    goes_on = len(said[row]) == number < len(prompts[i]) and left[row] > 0
                    fits = goes_on and len(prompts[i][number]) + 3 <= session.capacity - used[row]
                    now.append(prompts[i][number] if fits else None)
                if all(one is None for one in now):
                    break
                session.read(now)
                made = session.generate(frame_limit=[max(1, own) for own in left])
                for own, one in zip(said, made, strict=True):
                    own += [one] if one is not None else []
            for i, own in zip(some, said, strict=True):
                results[i] = _joined(own, len(prompts[i]))
            if progress is not None:
                progress(len(results))
        return [results[i] for i in range(len(prompts))]

    def session(self, seeds: Sequence[int]) -> Session:
        """Conversations, one a seed, at most `rows`: several turns over one cache."""
        return Session(self._stepper, self.lengths, seeds)

    def _checked(self, prompts: Sequence[Prompt], seeds: Sequence[int] | None) -> Sequence[int]:
        """The seeds."""
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.lengths[-1]:
                raise PromptError(
                    f"prompt {number} has {len(prompt)} positions, expected 1 to {self.lengths[-1]}"
                )
            check_prompt(self._stepper, prompt, f"prompt {number}")
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts, expected one each")
        return seeds


def _joined(said: Sequence[Generated], pieces: int) -> Generated:
    """What was said of a text of so many pieces, as one."""
    return Generated(
        ids=[token_id for one in said for token_id in one.ids],
        codes_NQ=np.concatenate([one.codes_NQ for one in said]),
        complete=len(said) == pieces and all(one.complete for one in said),
        pieces=tuple(piece for one in said for piece in one.pieces),
    )
