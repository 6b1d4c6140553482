"""Prompts: the beginning of a training sequence, up to the first thing the model is to produce."""

from __future__ import annotations

import dataclasses

import numpy as np

from ba_jax.data.sequence import TokenizerLike, TokenSequence, to_sequence
from ba_jax.data.tasks import in_pieces, make_example
from ba_jax.types import Example


class PromptError(ValueError):
    """A sequence that cannot be a prompt, or one too long for the generator."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the model reads before it goes on.

    Attributes:
      ids_L: int32.
      codes_LQ: int32; codes at `audio_pad`, anything elsewhere.
      speaks: it goes on with frames of audio (the prompt ends with `<audiogen_start>`), else with
        text.
      wants_speech: its text is followed by speech.
      goes_on: it is part of the turn before it, which is not ended first.
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    speaks: bool = False
    wants_speech: bool = False
    goes_on: bool = False

    def __len__(self) -> int:
        return len(self.ids_L)


def cut(sequence: TokenSequence, label: str = "sequence") -> Prompt:
    """The sequence before its first target.

    What follows the cut is what training teaches there, so the layout of prompts lives in
    `ba_jax.data.sequence` alone.

    Raises:
      PromptError: nothing to produce, nothing before it, or audio in the prompt without codes.
    """
    target_L = sequence.text_target_L | sequence.audio_target_L
    if not target_L.any():
        raise PromptError(f"{label}: nothing in it is a target, expected something to produce")
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


def cut_at_speech(sequence: TokenSequence, label: str = "sequence") -> list[Prompt]:
    """What lies before each segment of speech that is to be produced: text that is given in pieces.

    For sequences as of `tasks.itts`, whose text is read, not written; what is behind the last
    segment is left out.

    Raises:
      PromptError: no speech to produce, nothing before a segment, or audio without codes there.
    """
    target_L = sequence.audio_target_L
    edges = np.flatnonzero(np.diff(target_L.astype(np.int8), prepend=0))
    if not len(edges):
        raise PromptError(f"{label}: no audio in it is a target, expected speech to produce")
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
                goes_on=number > 0,
            )
        )
    return prompts


def prompt_of(example: Example, tokenizer: TokenizerLike, codebook_sizes) -> Prompt:
    """The prompt of a training example; its answer is not in it.

    Raises:
      PromptError: as `cut`.
      SequenceError: as `to_sequence`.
    """
    label = f"{example.source}:{example.id}"
    return cut(to_sequence(example, tokenizer, codebook_sizes), label)


def text_in_turns(
    text: str, words: int, tokenizer: TokenizerLike, codebook_sizes, *, id: str, language: str
) -> list[Prompt]:
    """Prompts that have a text said piece by piece, so many words each (`Generator.in_turns`).

    Raises:
      TaskError: no text, or an unknown language.
      SequenceError: a piece that encodes to nothing.
      ValueError: fewer than one word.
    """
    nothing = np.zeros((1, len(codebook_sizes)), np.int32)  # it is cut out again
    parts = [part for piece in in_pieces(text, words) for part in (piece, nothing)]
    example = make_example("itts", parts, id=id, language=language, fully_conditioned=True)
    return cut_at_speech(to_sequence(example, tokenizer, codebook_sizes), id)
