"""The `eval` section of a config."""

from __future__ import annotations

import dataclasses

from ba_jax.config import check_at_least
from ba_jax.evals.benchmarks.folders import Benchmarks
from ba_jax.evals.judges.answers import AnswerJudgeSettings
from ba_jax.evals.judges.recogniser import SpeechJudgeSettings
from ba_jax.sampling.settings import SpeechModelSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings(SpeechModelSettings):
    """Data, limits and judges of an evaluation, beside the settings of the speech model.

    Attributes:
      dataset: folder, or "embedded".
      split: split of the dataset.
      sources: sources (`Record.source`) to evaluate on; () takes all.
      limit: most records of each kind and language; 0: all.
      transcribe_first: the model transcribes speech before it answers
        (`ExampleMaker.transcribe_first`); likelihoods of endings are then those below the
        transcript that it writes.
      judge: settings of the recogniser.
      save_every: items between two writes of lines.
      benchmarks: folders of public benchmarks.
      verdict: settings of the judge of open answers.
    """

    dataset: str
    split: str
    sources: tuple[str, ...]
    limit: int = 0
    transcribe_first: bool = False
    judge: SpeechJudgeSettings = SpeechJudgeSettings()
    save_every: int = 64
    benchmarks: Benchmarks = Benchmarks()
    verdict: AnswerJudgeSettings = AnswerJudgeSettings()

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, limit=0, save_every=1)
