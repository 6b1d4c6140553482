"""Which item is drawn when: a weighted mixture, as a pure function of the draw's number.

Grain's MapDatasets do the work: each member is shuffled anew every epoch, the members are
interleaved evenly by weight. Any draw is found at once, so there is no state to save or to wind on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from ba_jax.data.examples import ExampleMaker
from ba_jax.data.record import LANGUAGES

_MANY = 1 << 60


@dataclasses.dataclass(frozen=True)
class Selection:
    """One member of a mixture.

    Attributes:
      dataset: its folder, or "embedded".
      task: see `ba_jax.data.tasks`; in batches of audio alone "audio".
      weight: its share of the mixture, relative to the others'.
      split: of the dataset.
      languages: records in other languages are left out; () takes all.
      questions, answers: see `ExampleMaker`.
    """

    dataset: str
    task: str
    weight: float = 1.0
    split: str = "train"
    languages: tuple[str, ...] = ()
    questions: str = "spoken"
    answers: str = "written"

    def __post_init__(self):
        self.maker()  # checks what it is given
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.name}: weight {self.weight}, expected more than 0")
        unknown = set(self.languages) - set(LANGUAGES)
        if unknown:
            raise ValueError(f"{self.name}: languages {sorted(unknown)}, expected of {LANGUAGES}")

    @property
    def name(self) -> str:
        """For messages: "embedded/train/asr"."""
        return f"{self.dataset}/{self.split}/{self.task}"

    def maker(self, frames=None) -> ExampleMaker:
        """Makes this member's examples; `frames` as in `ExampleMaker`."""
        return ExampleMaker(self.task, frames, self.questions, self.answers)


@dataclasses.dataclass(frozen=True)
class _Members:
    """Numbers (which, 0), (which, 1), ... for Grain to shuffle and mix."""

    which: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.which, int(index)


class Draws:
    """The order in which the items of several members are drawn, without end.

    `draws[j]` is (member, item). Over an epoch of a member each of its items is drawn once; any run
    of draws holds the members in proportion to their weights, as nearly as whole numbers can.

    Args:
      sizes: items of each member, at least 1.
      weights: how often a member is drawn, relative to the others.
      seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        if not sizes or min(sizes) < 1 or min(weights) <= 0:
            raise ValueError(
                f"sizes {sizes}, weights {weights}: expected items and weights above 0"
            )
        self.sizes, self.weights, self.seed = tuple(sizes), tuple(weights), seed

    @functools.cached_property
    def _mixed(self):
        import grain

        members = []
        for which, size in enumerate(self.sizes):
            source = grain.MapDataset.source(_Members(which, size))
            # Not `seed + which`: neighbouring seeds must not share a member's order.
            source = source.seed((self.seed * 1_000_003 + which * 7_919) % (1 << 31))
            members.append(source.shuffle().repeat())
        return grain.MapDataset.mix(members, weights=self.weights)

    def __getitem__(self, draw: int) -> tuple[int, int]:
        return self._mixed[draw]

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_mixed"}


class Interleaved:
    """Which of several streams a step takes, and how many it took of that stream before.

    `interleaved[step]` is (stream, number); by weight, evenly, without randomness.
    """

    def __init__(self, weights: Sequence[float]):
        self.weights = tuple(weights)

    @functools.cached_property
    def _mixed(self):
        import grain

        streams = [grain.MapDataset.source(_Members(i, _MANY)) for i in range(len(self.weights))]
        return grain.MapDataset.mix(streams, weights=self.weights)

    def __getitem__(self, step: int) -> tuple[int, int]:
        return self._mixed[step]

    def __getstate__(self):
        return {"weights": self.weights}
