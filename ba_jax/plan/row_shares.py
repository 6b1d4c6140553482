"""Kinds of positions in the packed rows of a mixture, for a plan without its data."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import ONE_PART_TASKS, ExampleMaker, NotForTask
from ba_jax.data.features import Bucket, ModelFormat
from ba_jax.data.mixture import open_sources
from ba_jax.data.packed import ExampleBuilder, PackedSettings, open_builders
from ba_jax.data.record import RecordError, RecordSource, dataset_directory
from ba_jax.data.text_tokenizer import TokenizerError, load_text_tokenizer

_EXAMPLES = 100  # of each member
_STAND_IN = "embedded"


@dataclasses.dataclass(frozen=True)
class RowShares:
    """Shares of a full row's positions; the rest is text that is read.

    Attributes:
      heard: frames of audio without a loss.
      spoken: targets of the audio head.
      written: targets of the output layer.
      source: their origin in words.
    """

    heard: float
    spoken: float
    written: float
    source: str


@functools.cache
def measure_shares(settings: PackedSettings, model: ModelFormat) -> RowShares:
    """Measure the shares on the first examples of each member of a mixture.

    A pod's datasets are not where it is planned: without them, the members' tasks are measured on
    the embedded corpus, which has recordings of all of them.
    """
    try:
        builders, sources = open_builders(settings, model), open_sources(settings.mixture)
        source = "of the mixture"
    except (RecordError, TokenizerError, OSError):
        builders, sources = _stand_ins(settings, model)
        source = "of the mixture's tasks on the embedded corpus"
    total, weights, counts = np.zeros(3), 0.0, {}
    for builder, records in zip(builders, sources, strict=True):
        name, weight = builder.selection.name, builder.selection.weight
        if name not in counts:
            counts[name] = _count(builder, records)
        positions, *kinds = counts[name]
        if settings.unit == "hours":
            weight *= positions / (kinds[0] + kinds[1])  # positions a frame
        total += weight * np.array(kinds) / positions
        weights += weight
    heard, spoken, written = (float(share) for share in total / weights)
    return RowShares(heard, spoken, written, source)


def _stand_ins(
    settings: PackedSettings, model: ModelFormat
) -> tuple[list[ExampleBuilder], list[RecordSource]]:
    """Return the members' builders and records with the embedded corpus as their dataset.

    Its recordings have no codes: their numbers of frames follow from their lengths.
    """
    tokenizer = load_text_tokenizer(dataset_directory(_STAND_IN))
    builders = []
    for member in settings.mixture:
        maker = member.maker
        # Pieces of words need the times of the words, which it does not have.
        maker = ExampleMaker(
            maker.task,
            questions="spoken" if maker.questions == "mixed" else maker.questions,
            answers=maker.answers,
            turn="any" if maker.task in ONE_PART_TASKS else "",
            fully_conditioned=maker.fully_conditioned,
        )
        member = dataclasses.replace(member, dataset=_STAND_IN, split="train", maker=maker)
        sizes = (tokenizer, model.codebook_sizes, (Bucket(30.0, 1),), Augmentation())
        builders.append(ExampleBuilder(member, *sizes))
    opened = functools.cache(RecordSource)
    return builders, [opened(_STAND_IN, "train") for _ in builders]


def _count(builder: ExampleBuilder, records: RecordSource) -> tuple[int, int, int, int]:
    """Count positions, frames heard, and targets of either head in a member's first examples.

    Raises:
      RecordError: it has no example.
    """
    pad, total, examples = builder.tokenizer.audio_tokens.audio_pad, np.zeros(4, int), 0
    for record in records:
        try:
            sequence = builder(record)[1]
        except NotForTask:
            continue
        spoken_L = sequence.audio_target_L
        heard = np.sum((sequence.ids_L == pad) & ~spoken_L)
        total += [len(sequence), heard, spoken_L.sum(), sequence.text_target_L.sum()]
        examples += 1
        if examples == _EXAMPLES:
            break
    if not examples:
        raise RecordError(f"{builder.selection.name}: no example for its task")
    return tuple(map(int, total))
