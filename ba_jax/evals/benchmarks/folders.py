"""Where public benchmarks lie, and their recordings."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from ba_jax.audio import read_audio
from ba_jax.data.record import Part
from ba_jax.evals.benchmarks.tables import LayoutError

STYLES = ("sft", "aqa")


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Folders of downloaded benchmarks, "" for none; their layouts are in `evals.layouts`.

    Attributes:
      openaudiobench, voicebench, s2sbench, cmmlu: folders.
      story_cloze: StoryCloze's CSV file.
      spoken_story_cloze: folder of pairs of recordings.
      subsets: which of a benchmark's; () for all.
      limit: at most so many items of a subset; 0 for all.
      style: how a question is put: "sft", a turn of a dialogue; "aqa", the base model's task.
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
        if self.limit < 0:
            raise ValueError(f"limit {self.limit}: expected at least 0")
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}, expected one of {STYLES}")

    def folder(self, name: str) -> pathlib.Path:
        """Where a benchmark lies.

        Raises:
          LayoutError: the config does not say, or nothing is there.
        """
        given = getattr(self, name)
        if not given:
            raise LayoutError(f"benchmarks.{name} is not set, expected where it lies")
        path = pathlib.Path(given).expanduser()
        if not path.exists():
            raise LayoutError(f"benchmarks.{name} = {given!r}: no such file or folder")
        return path

    def limited(self, items: Sequence[Any]) -> list[Any]:
        """The first `limit` of each subset."""
        counts: dict[str, int] = {}
        found = []
        for item in items:
            counts[item.subset] = counts.get(item.subset, 0) + 1
            if not self.limit or counts[item.subset] <= self.limit:
                found.append(item)
        return found


def spoken_part(audio: pathlib.Path | bytes, role: str = "") -> Part:
    """A recording from outside, a file or its bytes, as a part.

    Raises:
      AudioError, OSError: one that cannot be read.
    """
    data = audio if isinstance(audio, bytes) else audio.read_bytes()
    wave_S, rate = read_audio(data)
    return Part(audio=data, seconds=len(wave_S) / rate, role=role)
