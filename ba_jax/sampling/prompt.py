"""Prompts: the beginning of a training sequence, up to the first thing the model is to produce."""

from __future__ import annotations

import dataclasses

import numpy as np

from ba_jax.data.sequence import Sequence, Tokenizer, to_sequence
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
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    speaks: bool = False
    wants_speech: bool = False

    def __len__(self) -> int:
        return len(self.ids_L)


def cut(sequence: Sequence, label: str = "sequence") -> Prompt:
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


def prompt_of(example: Example, tokenizer: Tokenizer, codebook_sizes) -> Prompt:
    """The prompt of a training example; its answer is not in it.

    Raises:
      PromptError: as `cut`.
      SequenceError: as `to_sequence`.
    """
    label = f"{example.source}:{example.id}"
    return cut(to_sequence(example, tokenizer, codebook_sizes), label)
