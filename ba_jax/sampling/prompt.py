"""Prompts: training sequences up to the first position that the model is to generate.

Training alone decides the layout (`ba_jax.data.sequence`): a prompt is cut where the loss begins.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ba_jax.data.sequence import TokenizerLike, TokenSequence, to_sequence
from ba_jax.data.tasks import in_pieces, make_example
from ba_jax.types import Example


class PromptError(ValueError):
    """A sequence that cannot be a prompt, or a prompt too long for the generator."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Positions that the model reads before it generates.

    Attributes:
      ids_L: int32.
      codes_LQ: int32; read at `audio_pad` only.
      speaks: audio frames follow (the prompt ends with `<audiogen_start>`), else text.
      wants_speech: the text that follows leads to speech.
      continues_turn: the prompt belongs to the turn before it, which is not ended first.
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    speaks: bool = False
    wants_speech: bool = False
    continues_turn: bool = False

    def __len__(self) -> int:
        return len(self.ids_L)


def cut_prompt(sequence: TokenSequence, label: str = "sequence") -> Prompt:
    """The part of a training sequence before its first target.

    Raises:
      PromptError: no target, nothing before it, or audio without codes in the prompt.
    """
    target_L = sequence.text_target_L | sequence.audio_target_L
    if not target_L.any():
        raise PromptError(f"{label}: no position is a target, expected at least one")
    first = int(target_L.argmax())
    if first == 0:
        raise PromptError(f"{label}: its first position is a target, expected a prompt before it")
    if any(span.start < first for span in sequence.spans):
        raise PromptError(f"{label}: audio without codes in the prompt")
    return Prompt(
        sequence.ids_L[:first],
        sequence.codes_LQ[:first],
        speaks=bool(sequence.audio_target_L[first]),
        wants_speech=bool(sequence.audio_target_L[first:].any()),
    )


def cut_prompts_at_speech(sequence: TokenSequence, label: str = "sequence") -> list[Prompt]:
    """The parts of a sequence before each segment of speech that is a target.

    For sequences of `tasks.itts` whose text is read, not written. Positions after the last segment
    are left out.

    Raises:
      PromptError: no speech to generate, nothing before a segment, or audio without codes there.
    """
    target_L = sequence.audio_target_L
    edges = np.flatnonzero(np.diff(target_L.astype(np.int8), prepend=0))
    if not len(edges):
        raise PromptError(f"{label}: no audio is a target, expected speech to generate")
    prompts = []
    for number, start in enumerate(edges[::2]):
        before = edges[2 * number - 1] if number else 0
        if start == before:
            raise PromptError(f"{label}: nothing before segment {number} of speech")
        if any(before <= span.start < start for span in sequence.spans):
            raise PromptError(f"{label}: audio without codes before segment {number} of speech")
        prompts.append(
            Prompt(
                sequence.ids_L[before:start],
                sequence.codes_LQ[before:start],
                speaks=True,
                wants_speech=True,
                continues_turn=number > 0,
            )
        )
    return prompts


def make_prompt(
    example: Example, tokenizer: TokenizerLike, codebook_sizes: tuple[int, ...]
) -> Prompt:
    """The prompt of a training example, without its answer.

    Raises:
      PromptError: see `cut_prompt`.
      RecordError: see `to_sequence`.
    """
    label = f"{example.source}:{example.id}"
    return cut_prompt(to_sequence(example, tokenizer, codebook_sizes), label)


def make_prompts_in_turns(
    text: str,
    words: int,
    tokenizer: TokenizerLike,
    codebook_sizes: tuple[int, ...],
    *,
    id: str,
    language: str,
) -> list[Prompt]:
    """Prompts of a text in pieces of `words` words, each to be spoken before the next is read.

    Raises:
      RecordError: no text, an unknown language, or a piece that encodes to nothing.
      ValueError: fewer than one word.
    """
    frame = np.zeros((1, len(codebook_sizes)), np.int32)  # marks speech; not in any prompt
    parts = [part for piece in in_pieces(text, words) for part in (piece, frame)]
    example = make_example("itts", parts, id=id, language=language, fully_conditioned=True)
    return cut_prompts_at_speech(to_sequence(example, tokenizer, codebook_sizes), id)
