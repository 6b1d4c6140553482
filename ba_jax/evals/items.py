"""Items of an evaluation, and the JSON line that each phase writes about one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ba_jax.data.record import Record
from ba_jax.types import Failure

Line = dict[str, Any]
"""A phase's result for one item, as JSON."""


class EvalError(ValueError):
    """An evaluation that lacks something it needs: items, a setting, a readable file."""


@dataclasses.dataclass(frozen=True)
class EvalItem:
    """One question to the model.

    Attributes:
      id: unique in the suite.
      number: position among all items of the suite; random draws for the item depend on it alone.
      language: language of the scored text.
      record: record of the dataset; None for a benchmark, or one that could not be read.
      group: part of the suite's figures that the item counts in.
      trouble: reason why the item cannot be used, or "".
      source: the benchmark's `Question` or `Choice`; None for an item of the dataset.
    """

    id: str
    number: int
    language: str
    record: Record | None
    group: str = ""
    trouble: str = ""
    source: Any = None


Items = Sequence[EvalItem]
Lines = Sequence[Line]
Results = list[Line | Failure]


class Outputs(NamedTuple):
    """An item's line of each phase; {} for a phase that failed or was not run."""

    generated: Line
    presented: Line
    judged: Line


def make_items(records: Sequence[Record], group: str = "", first: int = 0) -> list[EvalItem]:
    """Make an item of each record, numbered from `first`."""
    return [
        EvalItem(record.id, first + i, record.language, record, group)
        for i, record in enumerate(records)
    ]


def replace_usable(
    values: Sequence[Any], function: Callable[[list[int]], Sequence[Any]]
) -> list[Any]:
    """Replace the values that are not failures by `function(their positions)`.

    The function is not called if every value is a failure.
    """
    results = list(values)
    usable = [i for i, value in enumerate(values) if not isinstance(value, Failure)]
    if usable:
        for i, result in zip(usable, function(usable), strict=True):
            results[i] = result
    return results
