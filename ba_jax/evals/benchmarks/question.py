"""A spoken question of a benchmark, and the rubric that its answers are judged by."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

RUBRICS = ("correct", "scale", "letter", "refusal", "instructions")
"""correct: the answer agrees with a reference. scale: a score from 1 to 10. letter: it names the
right choice. refusal: it declines to help. instructions: it obeys rules that a program checks
(IFEval)."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A spoken question.

    Attributes:
      id: unique in the benchmark.
      subset: subset of the benchmark.
      language: "en" or "zh".
      audio: the spoken question, a file or a file's bytes.
      text: the question in writing.
      references: right answers; for "letter" the letter; () if there is none.
      rubric: one of RUBRICS.
      metadata: other columns of the benchmark, JSON values.
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
