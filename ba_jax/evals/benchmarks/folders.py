"""Folders of public benchmarks, and their recordings."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from ba_jax.audio import read_audio
from ba_jax.config import check_at_least, check_choices
from ba_jax.data.record import Part
from ba_jax.evals.items import EvalError


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Folders of downloaded benchmarks, "" for none; `ba_jax.evals.benchmarks` has their layouts.

    Attributes:
      story_cloze: StoryCloze's CSV file.
      spoken_story_cloze: folder of pairs of recordings.
      subsets: subsets of a benchmark to load; () for all.
      limit: most items of a subset; 0 for all.
      style: layout of a question: "sft", a turn of a dialogue; "aqa", the base model's task.
    """

    openaudiobench: str = ""
    voicebench: str = ""
    s2sbench: str = ""
    cmmlu: str = ""
    story_cloze: str = ""
    spoken_story_cloze: str = ""
    subsets: tuple[str, ...] = ()
    limit: int = 0
    style: str = "sft"

    def __post_init__(self):
        check_at_least(self, limit=0)
        check_choices(self, style=("sft", "aqa"))

    def folder(self, name: str) -> pathlib.Path:
        """Return a benchmark's folder or file.

        Raises:
          EvalError: it is not set, or does not exist.
        """
        value = getattr(self, name)
        if not value:
            raise EvalError(f"benchmarks.{name} is not set, expected the benchmark's folder")
        path = pathlib.Path(value).expanduser()
        if not path.exists():
            raise EvalError(f"benchmarks.{name} = {value!r}: no such file or folder")
        return path

    def apply_limit(self, items: Sequence[Any]) -> list[Any]:
        """Return the first `limit` items of each subset."""
        counts: dict[str, int] = {}
        selected = []
        for item in items:
            counts[item.subset] = counts.get(item.subset, 0) + 1
            if not self.limit or counts[item.subset] <= self.limit:
                selected.append(item)
        return selected


def spoken_part(audio: pathlib.Path | bytes, role: str = "") -> Part:
    """Make a part of a benchmark's recording, a file or its bytes.

    Raises:
      AudioError, OSError: the recording cannot be read.
    """
    data = audio if isinstance(audio, bytes) else audio.read_bytes()
    wave_S, rate = read_audio(data)
    return Part(audio=data, seconds=len(wave_S) / rate, role=role)
