"""Which item is drawn when: a weighted mixture, as a pure function of the draw's number.

Each member is shuffled anew every epoch, the members are interleaved evenly by weight. Any draw is
found at once, so there is no state to save or to wind on.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np

from ba_jax.data.examples import ExampleMaker
from ba_jax.data.record import LANGUAGES, RecordError, RecordSource

_PARTS = 1 << 32  # a whole, divided by weights: shares are exact to 2e-10
_KEPT_EPOCHS = 2  # of each member's order: batches built ahead may be in the next one


@dataclasses.dataclass(frozen=True)
class Selection:
    """One member of a mixture.

    Attributes:
      dataset: its folder, or "embedded".
      task: see `ba_jax.data.tasks`; in batches of audio alone "audio".
      weight: its share of the mixture, relative to the others'.
      split: of the dataset.
      languages: records in other languages are left out; () takes all.
      questions, answers, turn, pieces, order, speakers, transcribe_first, given: see `ExampleMaker`.
    """

    dataset: str
    task: str
    weight: float = 1.0
    split: str = "train"
    languages: tuple[str, ...] = ()
    questions: str = "spoken"
    answers: str = "written"
    turn: str = ""
    pieces: int = 0
    order: int = 0
    speakers: tuple[str, ...] = ()
    transcribe_first: bool = False
    given: bool = False

    def __post_init__(self):
        self.maker()  # checks what it is given
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.name}: weight {self.weight}, expected a number above 0")
        unknown = set(self.languages) - set(LANGUAGES)
        if unknown:
            raise ValueError(f"{self.name}: languages {sorted(unknown)}, expected of {LANGUAGES}")

    @property
    def name(self) -> str:
        """For messages and reports: "embedded/train/asr/user", ".../sft/spoken-written/zh",
        ".../asr/written"."""
        more = [self.questions] if self.questions != "spoken" else []
        if self.task == "sft":
            more = [f"{self.questions}-{self.answers}"]
        more += [self.turn] if self.turn else []
        more += [f"{self.pieces}-words"] if self.pieces else []
        more += [f"order-{self.order}"] if self.order else []
        more += ["read-back"] if self.transcribe_first else []
        more += ["given"] if self.given else []
        more += [f"by-{'+'.join(self.speakers)}"] if self.speakers else []
        more += ["+".join(self.languages)] if self.languages else []
        return "/".join([self.dataset, self.split, self.task, *more])

    def maker(self, frames=None) -> ExampleMaker:
        """Makes this member's examples; `frames` as in `ExampleMaker`."""
        return ExampleMaker(
            self.task,
            frames,
            self.questions,
            self.answers,
            self.turn,
            self.pieces,
            self.order,
            self.speakers,
            self.transcribe_first,
            self.given,
        )


def check_mixture(mixture: Sequence[Selection]) -> None:
    """Checks that there are members, and none twice.

    Raises:
      ValueError: naming the member.
    """
    names = [selection.name for selection in mixture]
    if not names:
        raise ValueError("an empty mixture, expected at least 1 member")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name}: {names.count(name)} members of this name, expected 1")


def check_rows(step: int, rows: Sequence[int] | None, count: int) -> Sequence[int]:
    """Returns the rows asked for, all `count` if None.

    Raises:
      IndexError: a step below 0, or a row that the batch does not have.
    """
    if step < 0:
        raise IndexError(f"step {step}, expected 0 or more")
    rows = range(count) if rows is None else rows
    for row in rows:
        if not 0 <= row < count:
            raise IndexError(f"row {row} of step {step}, expected 0 to {count - 1}")
    return rows


def example_name(member: str, source: RecordSource, index: int) -> str:
    """ "member:record id", for messages; "member:record 7" of one that cannot be read."""
    try:
        return f"{member}:{source[index].id}"
    except RecordError:
        return f"{member}:record {index}"


class Interleaved:
    """Which of several streams each place takes, and how many that stream was given before.

    `interleaved[place]` is (stream, number); by weight, evenly, without randomness: of the first n
    places a stream has its share of n, give or take less than there are streams.

    Args:
      weights: of the streams, relative to each other.

    Raises:
      ValueError: no weights, or one that is not a number above 0.
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
        # The first stream takes its part of the places, the next one its part of those left, ...
        for stream, part in enumerate(self._parts[:last]):
            left = place * (whole - part) // whole
            if (place + 1) * (whole - part) // whole == left:
                return stream, place - left
            place, whole = left, whole - part
        return last, place


class Draws:
    """The order in which the items of several members are drawn, without end.

    `draws[j]` is (member, item). Over an epoch of a member each of its items is drawn once; any run
    of draws holds the members in proportion to their weights, see `Interleaved`.

    Args:
      sizes: items of each member, at least 1.
      weights: how often a member is drawn, relative to the others.
      seed: of the order, 0 or more.

    Raises:
      ValueError: no members, an empty one, or a weight that is not a number above 0.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        if len(sizes) != len(weights) or not sizes or min(sizes) < 1:
            raise ValueError(f"sizes {list(sizes)}: expected {len(weights)} of at least 1")
        self.sizes, self.weights, self.seed = tuple(sizes), tuple(weights), seed
        self._mixed = Interleaved(weights)
        self._epochs: list[dict[int, np.ndarray]] = [{} for _ in sizes]

    def __getitem__(self, draw: int) -> tuple[int, int]:
        which, number = self._mixed[draw]
        epoch, place = divmod(number, self.sizes[which])
        kept = self._epochs[which]
        order = kept.get(epoch)
        if order is None:
            # Every (seed, member, epoch) has a generator of its own.
            rng = np.random.default_rng([self.seed, which, epoch])
            order = rng.permutation(self.sizes[which]).astype(np.int32)
            while len(kept) >= _KEPT_EPOCHS:
                kept.pop(next(iter(kept)), None)
            kept[epoch] = order
        return which, int(order[place])

    def __getstate__(self):
        return self.__dict__ | {"_epochs": [{} for _ in self.sizes]}
