"""The contract of an evaluation: what each stage of a suite takes and gives.

    items -> generate -> present -> judge -> score -> figures

`generate` is what the model makes of an item, raw; `present` what of that the judge is given, with
recordings as files; `judge` what it answers. These three run in batches, and each line of theirs
is saved before the next batch (`ba_jax.evals.runner`); `score` and `figures` are functions of the
saved lines, so that a suite is scored again without a model and judged again without generating.

An item that a stage cannot use is a `Failure` with its reason: later stages do not see it, `score`
is given None in its place and counts it as wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ba_jax.data.record import Record
from ba_jax.types import Failure

if TYPE_CHECKING:
    from ba_jax.evals.base import Bench

Line = dict[str, Any]
"""What a stage says of an item: JSON."""


class EvalError(ValueError):
    """An evaluation without items, or without what it needs."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One question to the model.

    Attributes:
      id: unique in the suite.
      number: its place among all items of the suite; what is drawn for it depends on that alone.
      language: of what is scored.
      record: what it is made of.
      group: of which part of the suite's figures it is.
      trouble: why it cannot be used; "": it can.
    """

    id: str
    number: int
    language: str
    record: Record
    group: str = ""
    trouble: str = ""


def items_of(records: Sequence[Record], group: str = "", first: int = 0) -> list[Item]:
    """An item of each record, numbered from `first`."""
    return [
        Item(record.id, first + i, record.language, record, group)
        for i, record in enumerate(records)
    ]


class Suite:
    """An evaluation; subclasses say what is asked, and how what comes is scored.

    Attributes:
      name: of its files.
      components: of the model that it uses.
      speaks: it uses the vocoder too, where that is what codes become waves by.
      judged: it has the stages `present` and `judge`.
    """

    name: str = ""
    components: tuple[str, ...] = ()
    speaks: bool = False
    judged: bool = False

    def require(self) -> None:
        """Checks that what the suite needs is installed, before anything is generated.

        Raises:
          EvalError: it is not.
        """

    def items(self, bench: Bench) -> list[Item]:
        """What is asked; the same on every host.

        Raises:
          EvalError: none.
        """
        raise NotImplementedError

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """What the model makes of each item of a batch."""
        raise NotImplementedError

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """What the judge is given of each; waves are saved as files."""
        raise NotImplementedError

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """What the judge answers."""
        raise NotImplementedError

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """An item's result: id, language, reference, hypothesis, errors, units, correct, audio.

        Uses no model. None stands for what failed; the item then counts as wrong.
        """
        raise NotImplementedError

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """Name -> number, or a text that says how a number was made, of all `score`s in order."""
        raise NotImplementedError
