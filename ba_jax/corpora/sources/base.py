"""What `prepare` makes datasets from: the interface that every source has.

A source lists small items in the main process and makes records of them in workers, so that any
source runs over processes here and as a Beam pipeline on a cluster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from ba_jax.data.record import Record


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to make records of: small, and picklable.

    Attributes:
      id: unique in the dataset; a record's id is this, or begins with it.
      split: the dataset's split that it goes to, "train".
      where: the file, with the line if it has one, for messages: "train.tsv:12".
      payload: what `Source.records` needs; its repr tells all of it, and no memory addresses.
      seconds: of speech, if known without opening audio files.
    """

    id: str
    split: str
    where: str
    payload: Any = None
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An item, or a piece of one, that becomes no record.

    Attributes:
      where: as in `Item`; of a piece "talk.mp3 (12.5 to 20.0 s)".
      reason: a few words, the same for all of a kind, to count by: "empty transcript".
      detail: the value and what was expected.
      seconds: of speech lost, if known.
    """

    where: str
    reason: str
    detail: str = ""
    seconds: float = 0.0


class Rejected(Exception):  # noqa: N818 (not an error: it is counted)
    """Raised by `Source.records` for an item that becomes no record."""

    def __init__(self, reason: str, detail: str = "", seconds: float = 0.0):
        super().__init__(reason, detail, seconds)
        self.reason, self.detail, self.seconds = reason, detail, seconds


class Source(Protocol):
    """A corpus in some layout. Instances are picklable; heavy tools are loaded on first use.

    Attributes:
      name: of the dataset, [a-z0-9_]+.
      description, licence: stored with the dataset.
    """

    name: str
    description: str
    licence: str

    def items(self) -> Iterable[Item | Rejection]:
        """Lists the items, in an order that does not change between runs."""
        ...

    def records(self, item: Item) -> Iterable[Record | Rejection]:
        """Makes an item's records: none, one or more.

        A Rejection among them stands for a piece of the item that is lost while the rest is kept
        (a stretch of a long recording); it is counted like an item's, its `where` says which.

        Raises:
          Rejected: it becomes no record.
        """
        ...

    def finish(self, directory: Path) -> None:
        """Called once, when all shards are written: to add files beside them."""
        ...
