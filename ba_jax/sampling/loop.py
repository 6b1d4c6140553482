"""Batched generation of text and audio frames, from prompts to their outputs.

A prompt gives text, or text and then speech, or, with an `Alternation`, text and speech by turns.
Shapes are few: prompts are padded to one of `lengths`, batches to `rows`. The prefill compiles once
per length, the decoding loop once, whether it runs to the end or streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ba_jax.models import layers
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.alternate import Alternation, TextVocabulary
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.session import Event, Generated, Session, check_prompt
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.sampling.step import ModelRunner


class Generator:
    """Generates text and speech from prompts, in batches.

    Args:
      config, variables, vocabulary, settings, alternation, dtype, place: see `ModelRunner`. With an
        `alternation`, prompts that want speech give text and speech by turns.
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
        self._runner = ModelRunner(
            config, variables, vocabulary, settings, alternation, dtype=dtype, place=place
        )
        self.settings = settings

    @property
    def traces(self) -> Counter:
        """Number of compilations of each function."""
        return self._runner.traces

    @property
    def capacity(self) -> int:
        """Cache slots of a row."""
        return self._runner.capacity

    def replace_params(self, params: Mapping[str, Any]) -> None:
        """Replace the parameters of some components by others of the same shapes."""
        self._runner.replace_params(params)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        text_limit: int | None = None,
        frame_limit: int | None = None,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generated]:
        """Continue prompts, in batches of similar lengths.

        Args:
          prompts: any number.
          text_limit, frame_limit: most ids and frames of each; see `Session.generate`.
          seeds: one per prompt; by default its number. The output depends on the prompt and its
            seed alone.
          progress: called with the number of prompts done after each batch.

        Raises:
          PromptError: an empty prompt, or one longer than the last of `lengths`.
          TokenIdError, CodeError: an id outside the vocabulary, a code outside its codebook.
          ValueError: a limit that is too high, or not one seed per prompt.
        """
        seeds = self._check(prompts, seeds)
        outputs: dict[int, Generated] = {}
        for batch in self._batches(prompts):
            session = self.session([seeds[i] for i in batch])
            session.read([prompts[i] for i in batch])
            generated = session.generate(text_limit=text_limit, frame_limit=frame_limit)
            outputs.update(zip(batch, generated, strict=True))
            if progress is not None:
                progress(len(outputs))
        return [outputs[i] for i in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        chunk: int = 4,
        text_limit: int | None = None,
        frame_limit: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[list[Event]]:
        """Continue prompts and yield events as they come; `Event.row` is the prompt's number.

        Args:
          prompts: at most `rows`.
          chunk: steps per dispatch.
          text_limit, frame_limit, seeds: as in `__call__`.

        Raises:
          the errors of `__call__`; ValueError for more prompts than rows, or a chunk under 1.
        """
        session = self.session(self._check(prompts, seeds))
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
        """Speak texts piece by piece: a piece is read and spoken, and then the next one.

        Args:
          prompts: prompts of each text, as `prompt.make_prompts_in_turns` makes them.
          frame_limit: most frames of a text, all pieces together.
          seeds, progress: as in `__call__`.

        Returns:
          An output per text, with a segment of speech per piece. A text that reaches the limit or
          the end of the cache is not complete; its other pieces are not spoken.

        Raises:
          the errors of `__call__`; ValueError for a text without pieces, or a generator with an
          `alternation`, which would have the model write the next text itself.
        """
        if self._runner.alternation is not None:
            raise ValueError("texts in turns with an alternation, expected a generator without")
        if not all(prompts):
            raise ValueError("a text without a piece, expected at least one")
        seeds = self._check([pieces[0] for pieces in prompts], seeds)
        limit = self.settings.max_frames if frame_limit is None else frame_limit
        outputs: dict[int, Generated] = {}
        for batch in self._batches(prompts):
            session = self.session([seeds[i] for i in batch])
            texts = [prompts[i] for i in batch]
            for i, generated, pieces in zip(
                batch, _speak_in_turns(session, texts, limit), texts, strict=True
            ):
                outputs[i] = _join(generated, len(pieces))
            if progress is not None:
                progress(len(outputs))
        return [outputs[i] for i in range(len(prompts))]

    def session(self, seeds: Sequence[int]) -> Session:
        """Conversations of several turns over one cache, one per seed, at most `rows`."""
        return Session(self._runner, seeds)

    def _batches(self, items: Sequence[Sequence | Prompt]) -> list[list[int]]:
        """Indices of items in batches of similar lengths."""
        order = sorted(range(len(items)), key=lambda i: len(items[i]))
        rows = self.settings.rows
        return [order[start : start + rows] for start in range(0, len(order), rows)]

    def _check(self, prompts: Sequence[Prompt], seeds: Sequence[int] | None) -> Sequence[int]:
        """Check prompts and return their seeds."""
        longest = max(self.settings.lengths)
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= longest:
                raise PromptError(
                    f"prompt {number} has {len(prompt)} positions, expected 1 to {longest}"
                )
            check_prompt(self._runner, prompt, f"prompt {number}")
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts, expected one each")
        return seeds


def _speak_in_turns(
    session: Session, texts: Sequence[Sequence[Prompt]], limit: int
) -> list[list[Generated]]:
    """The outputs of each text's pieces, until its frames reach the limit or its cache is full."""
    outputs: list[list[Generated]] = [[] for _ in texts]
    for number in range(max(len(pieces) for pieces in texts)):
        frames_left = [limit - sum(len(output.codes_NQ) for output in spoken) for spoken in outputs]
        used = session.used
        prompts: list[Prompt | None] = []
        for row, pieces in enumerate(texts):
            has_piece = len(outputs[row]) == number < len(pieces) and frames_left[row] > 0
            # The end of a segment that was cut, the piece, a frame, and the end of its segment.
            fits = has_piece and len(pieces[number]) + 3 <= session.capacity - used[row]
            prompts.append(pieces[number] if fits else None)
        if all(prompt is None for prompt in prompts):
            break
        session.read(prompts)
        generated = session.generate(frame_limit=[max(1, count) for count in frames_left])
        for spoken, output in zip(outputs, generated, strict=True):
            spoken += [] if output is None else [output]
    return outputs


def _join(outputs: Sequence[Generated], pieces: int) -> Generated:
    """Join the outputs of a text of `pieces` pieces."""
    return Generated(
        ids=[token_id for output in outputs for token_id in output.ids],
        codes_NQ=np.concatenate([output.codes_NQ for output in outputs]),
        complete=len(outputs) == pieces and all(output.complete for output in outputs),
        pieces=tuple(piece for output in outputs for piece in output.pieces),
    )
