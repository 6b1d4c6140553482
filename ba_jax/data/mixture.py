"""Weighted mixtures: the item of each draw as a pure function of the draw's number.

Members are shuffled anew every epoch and interleaved evenly by weight. Any draw is computed at
once, so there is no state to save or to replay.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.config import ConfigError, LocalPath, from_mapping
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.record import RecordError, RecordSource, check_language

_PARTS = 1 << 32  # integer units of a whole: shares are exact to 2e-10
_CACHED_EPOCHS = 2  # orders kept of each member: batches built ahead may be in the next epoch


@dataclasses.dataclass(frozen=True)
class Selection:
    """One member of a mixture: a dataset, and the task that its records are used for.

    Attributes:
      dataset: folder, or "embedded".
      maker: makes examples from its records; the task is "audio" in batches of audio alone.
      weight: share of the mixture, relative to the other members.
      split: split of the dataset.
      languages: records in other languages are left out; () takes all.
    """

    dataset: LocalPath
    maker: ExampleMaker
    weight: float = 1.0
    split: str = "train"
    languages: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.name}: weight {self.weight}, expected a number above 0")
        for language in self.languages:
            check_language(language)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], path: str) -> Selection:
        """Build a member from one flat mapping of its own fields and its maker's."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"maker"}
        options = {key: value for key, value in values.items() if key not in fields}
        if "frames" in options:
            raise ConfigError(f"{path}: unknown key 'frames'")
        rest = {key: value for key, value in values.items() if key in fields}
        return from_mapping(cls, rest | {"maker": from_mapping(ExampleMaker, options, path)}, path)

    @property
    def name(self) -> str:
        """Name in messages and reports: "embedded/train/asr/user", ".../sft/spoken-written/zh"."""
        parts = [self.dataset, self.split, *self.maker.name_parts()]
        return "/".join([*parts, "+".join(self.languages)] if self.languages else parts)

    def key(self) -> dict[str, Any]:
        """Everything but the weight, as JSON: part of the names of cached counts.

        It is flat and has two fields under their former names, so that stored counts stay valid.
        """
        options = dataclasses.asdict(dataclasses.replace(self.maker, frames=None))
        del options["frames"]
        options["read_back"] = options.pop("transcribe_first")
        options["given"] = options.pop("fully_conditioned")
        rest = {"dataset": self.dataset, "split": self.split, "languages": self.languages}
        return options | rest | {"weight": 1}


def check_mixture(mixture: Sequence[Selection]) -> None:
    """Raise ValueError unless there are members, and none twice."""
    names = [selection.name for selection in mixture]
    if not names:
        raise ValueError("an empty mixture, expected at least 1 member")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name}: {names.count(name)} members of this name, expected 1")


def open_sources(mixture: Sequence[Selection]) -> list[RecordSource]:
    """Open the records of each member; members that share a split share its source."""
    opened = functools.cache(RecordSource)
    return [opened(selection.dataset, selection.split) for selection in mixture]


def check_rows(step: int, rows: Sequence[int] | None, count: int) -> Sequence[int]:
    """Return the requested rows of a global batch, all `count` if None, or raise IndexError."""
    if step < 0:
        raise IndexError(f"step {step}, expected 0 or more")
    rows = range(count) if rows is None else rows
    for row in rows:
        if not 0 <= row < count:
            raise IndexError(f"row {row} of step {step}, expected 0 to {count - 1}")
    return rows


def example_name(member: str, source: RecordSource, index: int) -> str:
    """ "member:record id" for messages; "member:record 7" for a record that cannot be read."""
    try:
        return f"{member}:{source[index].id}"
    except RecordError:
        return f"{member}:record {index}"


class Interleaved:
    """An endless sequence that interleaves streams evenly by weight, without randomness.

    `interleaved[place]` is (stream, number of earlier places of that stream). Among the first n
    places a stream has its share of n, up to an error below the number of streams.
    """

    def __init__(self, weights: Sequence[float]):
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights {list(weights)}, expected one or more numbers above 0")
        total = sum(weights)
        self._parts = [max(1, round(_PARTS * (weight / total))) for weight in weights]

    def __getitem__(self, place: int) -> tuple[int, int]:
        place = operator.index(place)
        if place < 0:
            raise IndexError(f"place {place}, expected 0 or more")
        whole = sum(self._parts)
        last = len(self._parts) - 1
        # The first stream takes its part of the places, the next one its part of the rest, ...
        for stream, part in enumerate(self._parts[:last]):
            rest = place * (whole - part) // whole
            if (place + 1) * (whole - part) // whole == rest:
                return stream, place - rest
            place, whole = rest, whole - part
        return last, place


class Draws:
    """The endless order in which the items of several members are drawn.

    `draws[j]` is (member, item). An epoch of a member draws each of its items once; any run of
    draws holds the members in proportion to their weights, see `Interleaved`.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        if len(sizes) != len(weights) or not sizes or min(sizes) < 1:
            raise ValueError(f"sizes {list(sizes)}: expected {len(weights)} of at least 1")
        self.sizes, self.weights, self.seed = tuple(sizes), tuple(weights), seed
        self._interleaved = Interleaved(weights)
        self._epochs: list[dict[int, np.ndarray]] = [{} for _ in sizes]

    def __getitem__(self, draw: int) -> tuple[int, int]:
        member, number = self._interleaved[draw]
        epoch, place = divmod(number, self.sizes[member])
        orders = self._epochs[member]
        order = orders.get(epoch)
        if order is None:
            # Each (seed, member, epoch) has its own generator.
            rng = np.random.default_rng([self.seed, member, epoch])
            order = rng.permutation(self.sizes[member]).astype(np.int32)
            while len(orders) >= _CACHED_EPOCHS:
                orders.pop(next(iter(orders)), None)
            orders[epoch] = order
        return member, int(order[place])

    def __getstate__(self):
        return self.__dict__ | {"_epochs": [{} for _ in self.sizes]}
