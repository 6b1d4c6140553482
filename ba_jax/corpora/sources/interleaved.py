"""Base of the sources of interleaved records: their common fields and their speech tools."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ba_jax.config import LocalPath, check_choices
from ba_jax.corpora.encode import CODINGS
from ba_jax.corpora.interleave.text import Lengths
from ba_jax.corpora.sources.base import Source
from ba_jax.speech import tools


@dataclasses.dataclass(frozen=True)
class InterleavedSource(Source):
    """Base of `Crawl` and `Synthetic`.

    A field named in `TOOLS` chooses a speech tool by its name. Tools are made on first use, in the
    worker that uses them, and are not pickled.

    Attributes:
      name, description, licence: metadata of the dataset.
      path: path of the input, see the subclass.
      split: split of inputs that name none.
      coding: "opus" or "flac".
      options: tool -> arguments of its class, {"recogniser": {"model": "/models/whisper"}}.
      max_seconds: longest length of a record.
      parts: seconds of a part.
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    path: LocalPath = ""
    split: str = "train"
    coding: str = "opus"
    options: dict = dataclasses.field(default_factory=dict)
    max_seconds: float = 300.0
    parts: Lengths = Lengths()

    TOOLS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_choices(self, coding=CODINGS)
        if unknown := sorted(set(self.options) - set(self.TOOLS)):
            raise ValueError(f"options {unknown}, expected some of {self.TOOLS}")
        if not 2 * self.parts.high < self.max_seconds <= 300:
            raise ValueError(
                f"max_seconds {self.max_seconds}, expected over twice the longest part, up to 300"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def tool(self, field: str) -> Any:
        """The tool that a field of the config chooses."""
        made = self.__dict__.setdefault("_tools", {})
        if field not in made:
            kind, options = field.removeprefix("second_"), self.options.get(field, {})
            made[field] = tools.make_tool(kind, getattr(self, field), **options)
        return made[field]
