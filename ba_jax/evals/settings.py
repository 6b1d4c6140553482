"""The `eval` section of a config."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from ba_jax.config import LocalPath, check_at_least, check_choices
from ba_jax.evals.conditions import CONDITIONS
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges.answers import AnswerJudgeSettings
from ba_jax.evals.judges.recogniser import SpeechJudgeSettings
from ba_jax.sampling.settings import SpeechModelSettings


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

    openaudiobench: LocalPath = ""
    voicebench: LocalPath = ""
    s2sbench: LocalPath = ""
    cmmlu: LocalPath = ""
    story_cloze: LocalPath = ""
    spoken_story_cloze: LocalPath = ""
    subsets: tuple[str, ...] = ()
    limit: int = 0
    style: str = "sft"

    def __post_init__(self):
        check_at_least(self, limit=0)
        check_choices(self, style=("sft", "aqa"))

    def folder(self, name: str) -> pathlib.Path:
        """Return a benchmark's folder or file; raises EvalError if it is not set or not there."""
        value = getattr(self, name)
        if not value:
            raise EvalError(f"benchmarks.{name} is not set, expected the benchmark's folder")
        path = pathlib.Path(value)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings(SpeechModelSettings):
    """Data, limits and judges of an evaluation, beside the settings of the speech model.

    Attributes:
      dataset: folder, or "embedded".
      sources: sources (`Record.source`) to evaluate on; () takes all.
      limit: most records of each kind and language; 0: all.
      condition: how recordings, but the assistant's, sound, see `ba_jax.evals.conditions`.
      transcribe_first: the model transcribes speech before it answers
        (`ExampleMaker.transcribe_first`); likelihoods of endings are then those below the
        transcript that it writes.
      hears: how speech reaches the language model: as "codes", by its embeddings; or as "features"
        of the bridge or "quantized" ones, by the projection of a run of the stage understanding or
        tokenizer, whose language model writes and does not speak.
      judge, verdict: settings of the recogniser, and of the judge of open answers.
      save_every: items between two writes of lines.
    """

    dataset: LocalPath
    split: str
    sources: tuple[str, ...]
    limit: int = 0
    condition: str = "clean"
    transcribe_first: bool = False
    hears: str = "codes"
    judge: SpeechJudgeSettings = SpeechJudgeSettings()
    save_every: int = 64
    benchmarks: Benchmarks = Benchmarks()
    verdict: AnswerJudgeSettings = AnswerJudgeSettings()

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, limit=0, save_every=1)
        check_choices(self, hears=("codes", "features", "quantized"), condition=CONDITIONS)
