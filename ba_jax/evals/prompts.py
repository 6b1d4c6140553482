"""Prompts of records: the beginning of a task's training example, up to the model's answer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from ba_jax.data.examples import ExampleMaker, NotForTask
from ba_jax.data.record import Part, Record, RecordError
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.types import Example, Failure

Encode = Callable[[Sequence[Part]], list[np.ndarray | Failure]]
"""Spoken parts -> codes (N, Q)."""


def make_prompts(
    model: SpeechModel, encode: Encode, records: Sequence[Record], task: str, **options
) -> list[Prompt | Failure]:
    """Make the prompt of each record's example of a task.

    A record that the task cannot use, or whose recording cannot be encoded, fails. Recordings in
    the prompt are encoded; those of the answer are not.

    Args:
      model: the speech model.
      encode: encodes recordings.
      records: source records.
      task, options: arguments of `ExampleMaker`.
    """
    maker = ExampleMaker(task, **options)
    drafts = [_with_placeholder_codes(record, len(model.codebook_sizes)) for record in records]
    failed: dict[int, Failure] = {}
    in_prompt: list[tuple[int, int]] = []  # (record, part)
    for number, (record, draft) in enumerate(zip(records, drafts, strict=True)):
        try:
            prompt_codes = _codes_in_prompt(maker(draft))
        except (NotForTask, RecordError) as error:
            failed[number] = Failure(f"task {task}: {error}")
            continue
        for place, (part, draft_part) in enumerate(zip(record.parts, draft.parts, strict=True)):
            if part.codes_NQ is None and any(draft_part.codes_NQ is c for c in prompt_codes):
                in_prompt.append((number, place))
    encoded = encode([records[number].parts[place] for number, place in in_prompt])
    parts = [list(draft.parts) for draft in drafts]
    for (number, place), codes_NQ in zip(in_prompt, encoded, strict=True):
        if isinstance(codes_NQ, Failure):
            failed[number] = codes_NQ
        else:
            parts[number][place] = dataclasses.replace(parts[number][place], codes_NQ=codes_NQ)
    prompts: list[Prompt | Failure] = []
    for number, draft in enumerate(drafts):
        if number in failed:
            prompts.append(failed[number])
            continue
        try:
            example = maker(dataclasses.replace(draft, parts=tuple(parts[number])))
            prompts.append(model.prompt(example))
        except ValueError as error:  # of tasks, sequences, codes and prompts
            prompts.append(Failure(f"task {task}: {error}"))
    return prompts


def make_prompts_in_turns(
    model: SpeechModel, records: Sequence[Record]
) -> list[list[Prompt] | Failure]:
    """Make prompts of each record's first text, `tts_words_per_turn` words each."""
    prompts: list[list[Prompt] | Failure] = []
    for record in records:
        names = {"id": record.id, "language": record.language}
        try:
            prompts.append(model.prompts_in_turns(record.parts[0].text, **names))
        except ValueError as error:  # of tasks and sequences
            prompts.append(Failure(f"task tts: {error}"))
    return prompts


def _with_placeholder_codes(record: Record, codebooks: int) -> Record:
    """Give each recording without codes a frame of its own, told apart by identity.

    Placeholders that stay lie past the prompt's end, in the answer.
    """
    parts = tuple(
        dataclasses.replace(part, codes_NQ=np.zeros((1, codebooks), np.int32))
        if part.audio and part.codes_NQ is None
        else part
        for part in record.parts
    )
    return dataclasses.replace(record, parts=parts)


def _codes_in_prompt(example: Example) -> list[np.ndarray]:
    """Return the codes of the segments before the first one with loss."""
    prompt = itertools.takewhile(lambda segment: not segment.loss, example.segments)
    return [segment.codes_NQ for segment in prompt if segment.is_audio]
