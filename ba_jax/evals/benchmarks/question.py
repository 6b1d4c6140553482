"""A spoken question of a benchmark, and how its answers are to be judged."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

RUBRICS = ("correct", "scale", "letter", "refusal", "instructions")
"""correct: says what a reference says. scale: a score from 1 to 10. letter: names the right one
of several choices. refusal: declines to help. instructions: obeys rules that a program checks
(IFEval)."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
      id: unique in the benchmark.
      subset: of the benchmark.
      language: "en" or "zh".
      audio: the spoken question, a file or a file's bytes.
      text: what is asked.
      references: answers that are right, any of them; for "letter" the letter; () if there is none.
      rubric: one of RUBRICS.
      metadata: what else the benchmark says, JSON values.
    """

    id: str
    subset: str
    language: str
    audio: pathlib.Path | bytes
    text: str
    references: tuple[str, ...]
    rubric: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.rubric not in RUBRICS:
            raise ValueError(f"{self.id}: rubric {self.rubric!r}, expected one of {RUBRICS}")
