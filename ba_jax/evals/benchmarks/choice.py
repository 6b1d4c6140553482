"""A context and its possible endings."""

from __future__ import annotations

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Choice:
    """A context with n endings, of which one is right.

    Attributes:
      id: unique in the benchmark.
      subset: subset of the benchmark.
      language: "en" or "zh".
      endings: texts, or recordings (files).
      right: index of the right ending.
      text: the context in writing; "" if unknown.
      audio: the context as a recording; None if there is none.
    """

    id: str
    subset: str
    language: str
    endings: tuple[str, ...] | tuple[pathlib.Path, ...]
    right: int
    text: str = ""
    audio: pathlib.Path | bytes | None = None

    def __post_init__(self):
        if len(self.endings) < 2 or not 0 <= self.right < len(self.endings):
            raise ValueError(
                f"{self.id}: {len(self.endings)} endings, number {self.right} right: expected two "
                "or more, one of them right"
            )
        if len({isinstance(ending, str) for ending in self.endings}) > 1:
            raise ValueError(f"{self.id}: written and spoken endings, expected one kind")

    @property
    def is_spoken(self) -> bool:
        """The endings are recordings."""
        return not isinstance(self.endings[0], str)
