"""The contract of a corpus source: items listed cheaply here, records made from them in workers.

The listing and the work are apart so that any source runs in local processes and as a Beam
pipeline on a cluster.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ba_jax.data.record import Record, dataset_directory

INFO = "dataset_info.json"
"""TFDS's description of a dataset; it is there once the dataset is complete."""


class SourceError(ValueError):
    """A corpus that is missing or not in the expected layout."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A small, picklable unit of work.

    The `repr` of all items is part of a dataset's fingerprint: renaming a class or a field that a
    payload holds makes finished datasets look changed.

    Attributes:
      id: unique in the dataset; each record's id equals it or begins with it.
      split: the dataset's split that it belongs to, "train".
      where: the file, with the line if it has one, for messages: "train.tsv:12".
      payload: input of `Source.records`; its `repr` is complete and holds no memory addresses.
      seconds: length of the speech, if known without opening audio files.
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
      where: as in `Item`; for a piece "talk.mp3 (12.5 to 20.0 s)".
      reason: a few words to count by, the same for all rejections of a kind: "empty transcript".
      detail: the value and what was expected.
      seconds: length of the speech lost, if known.
    """

    where: str
    reason: str
    detail: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Notice:
    """A remark about a listed item that is no loss; counted among the warnings."""

    where: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Aside:
    """A record for the dataset `name`, one of `Source.asides`."""

    name: str
    record: Record


class Rejected(Exception):  # noqa: N818 (not an error: it is counted)
    """Raised for an item, or a line of a listing, that becomes no record."""

    def __init__(self, reason: str, detail: str = "", seconds: float = 0.0):
        super().__init__(reason, detail, seconds)
        self.reason, self.detail, self.seconds = reason, detail, seconds

    def at(self, where: str) -> Rejection:
        """The `Rejection` at a place."""
        return Rejection(where, self.reason, self.detail, self.seconds)


class Source(Protocol):
    """A corpus in some layout. Instances are picklable; heavy tools are loaded on first use.

    The name of the dataset, [a-z0-9_]+, its description and its licence are stored with it.
    """

    name: str
    description: str
    licence: str
    asides: ClassVar[tuple[str, ...]] = ()
    """Names of further datasets that the records make, each in a folder of its name."""

    def items(self) -> Iterable[Item | Rejection | Notice]:
        """List the items, in the same order in every run."""
        ...

    def records(self, item: Item) -> Iterable[Record | Rejection | Aside]:
        """Make an item's records: none, one or more; or raise Rejected.

        A Rejection among them counts a piece of the item that is lost (a stretch of a long
        recording) while the rest is kept.
        """
        ...

    def finish(self, directory: Path) -> None:
        """Add files beside the shards, by default none; called once, when all are written."""


class DerivedSource(Source):
    """Base of sources that make a dataset from another `dataset`, a folder or "embedded"."""

    dataset: str

    @functools.cached_property
    def info(self) -> Mapping:
        """The input dataset's dataset_info.json."""
        path = dataset_directory(self.dataset) / INFO
        try:
            if not self.dataset:
                raise OSError("no source.dataset")
            info = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(info, dict) or not isinstance(info.get("splits"), list):
                raise ValueError("no object with a list 'splits'")
            return info
        except (OSError, ValueError) as error:
            raise SourceError(f"{path}: {error}, expected a dataset's {INFO}") from None

    def describe(self, change: str) -> str:
        """The input dataset's description, followed by the change made to it."""
        return f"{self.info.get('description', '')}\n{change}".strip()

    @property
    def licence(self) -> str:
        """The input dataset's licence: its LICENSE file, else the text in its dataset_info.json."""
        path = dataset_directory(self.dataset) / "LICENSE"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        return self.info.get("redistributionInfo", {}).get("license", "")
