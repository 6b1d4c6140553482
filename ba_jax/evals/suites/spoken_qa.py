"""OpenAudioBench and VoiceBench: spoken questions answered in writing (s->t) or speech (s->s).

Spoken answers are recognised (`Bench.judge`) and then judged as text, as is usual in the field. The
judge is set by `EvalSettings.verdict`; `ba_jax.evals.judges.answers` lists its verdicts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.data.record import Part, Record
from ba_jax.evals.bench import Bench
from ba_jax.evals.benchmarks import openaudiobench, voicebench
from ba_jax.evals.benchmarks.folders import Benchmarks, spoken_part
from ba_jax.evals.benchmarks.question import Question
from ba_jax.evals.items import (
    EvalError,
    EvalItem,
    Items,
    Line,
    Lines,
    Outputs,
    Results,
    replace_usable,
)
from ba_jax.evals.judges import answers as answer_judge
from ba_jax.evals.scoring import verdicts
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER


@dataclasses.dataclass(frozen=True)
class QuestionItem(EvalItem):
    """An item with its question; the recording is read when it is asked."""

    source: Question | None = None


class SpokenQuestions(Suite):
    """Questions of a benchmark; the figures are `scoring.verdicts.figures` of each subset.

    Args:
      name: name of the suite.
      load: loads the questions that the settings name.
      speaks: answers are spoken.
    """

    judged = True

    def __init__(
        self, name: str, load: Callable[[Benchmarks], Sequence[Question]], *, speaks: bool
    ):
        self.name, self.speaks, self._load = name, speaks, load
        parts = (*LANGUAGE_MODEL, *SPEECH_ENCODER, *(SPEECH_DECODER if speaks else ()))
        self.components = tuple(dict.fromkeys(parts))

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return questions.

        Raises:
          EvalError, LayoutError: style "aqa" with spoken answers, or as the loader.
        """
        settings = bench.settings.benchmarks
        if self.speaks and settings.style != "sft":
            raise EvalError(
                f"{self.name}: benchmarks.style {settings.style!r} gives written answers, "
                "expected 'sft'"
            )
        items = []
        for number, question in enumerate(settings.apply_limit(self._load(settings))):
            record = Record(question.id, "text", question.language, (Part(question.text),))
            fields = (question.id, number, question.language, record, question.subset)
            items.append(QuestionItem(*fields, source=question))
        return items

    def generate(self, bench: Bench, items: Items) -> Results:
        records = [self._make_record(bench, item.source) for item in items]
        task, options = bench.settings.benchmarks.style, {}
        if task == "sft":
            options = {"questions": "spoken", "answers": "spoken" if self.speaks else "written"}

        def ask(usable: list[int]) -> list[Line | Failure]:
            asked = [dataclasses.replace(items[i], record=records[i]) for i in usable]
            return bench.ask(asked, task, f"answering ({self.name})", **options)

        return replace_usable(records, ask)

    def _make_record(self, bench: Bench, question: Question) -> Record | Failure:
        """Make a dialogue; its answer lies past the prompt's end and is never read."""
        try:
            part = spoken_part(question.audio, "user")
        except (AudioError, OSError) as error:
            return Failure(f"recording: {error}")
        part = dataclasses.replace(part, text=question.text)
        answer = Part("-", role="assistant")
        if self.speaks:
            codebooks = len(bench.model.config.audio_embed.codebook_sizes)
            codes_NQ = np.zeros((1, codebooks), np.int32)
            answer = dataclasses.replace(answer, codes_NQ=codes_NQ, seconds=0.08)
        parts = (part, answer)
        return Record(question.id, "dialogue", question.language, parts, question.subset)

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Make the judge's question; a spoken answer's recording is `generated`."""
        questions = []
        for item, line in zip(items, generated, strict=True):
            question = item.source
            questions.append(
                {
                    "language": question.language,
                    "rubric": question.rubric,
                    "question": question.text,
                    "references": list(question.references),
                    "answer": line["text"],
                }
            )
        if not self.speaks:
            return questions
        recordings = spoken.present(bench, self.name, items, generated, [""] * len(items))
        return [
            recording if isinstance(recording, Failure) else question | recording
            for question, recording in zip(questions, recordings, strict=True)
        ]

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        """Judge answers; a spoken answer by the words that are `heard`."""
        answers: list[str | Failure] = [line["answer"] for line in presented]
        if self.speaks:
            answers = spoken.hear(bench, items, presented, "generated", "listening to answers")

        def judge(usable: list[int]) -> list[Line]:
            questions = [presented[i] | {"answer": answers[i], "id": items[i].id} for i in usable]
            lines = []
            for i, verdict in zip(
                usable, bench.judge_answers(questions, "judging answers"), strict=True
            ):
                line = {key: value for key, value in verdict.items() if key != "id"}
                lines.append(line | {"heard": answers[i]})
            return lines

        return replace_usable(answers, judge)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Return the verdict; a failed item is wrong, or has the lowest score."""
        question = item.source
        is_scale = question.rubric == "scale"
        verdict = outputs.judged or {
            "verdict": "scored" if is_scale else "wrong",
            "score": float(answer_judge.LOWEST) if is_scale else None,
            "reason": "failed before it could be judged",
        }
        return {
            "subset": question.subset,
            "question": question.text,
            "reference": " | ".join(question.references),
            "text": outputs.generated.get("text", ""),
            "audio": {key: path for key, path in outputs.presented.items() if key == "generated"},
            **{key: verdict[key] for key in ("verdict", "score", "reason")},
            "hypothesis": outputs.judged.get("heard", ""),
            "correct": verdict["verdict"] == "right",
        }

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        groups: dict[str, list[Line]] = collections.defaultdict(list)
        for row in rows:
            if "verdict" in row:
                groups[row["subset"]].append(row)
        figures: dict[str, Any] = {}
        for subset, members in groups.items():
            figures |= verdicts.figures(f"{self.name}_{subset}", members)
        figures[f"{self.name}_judge"] = bench.answer_judge.name
        if self.speaks:
            figures[f"{self.name}_heard_by"] = bench.judge.names
        return figures


def _openaudiobench(settings: Benchmarks) -> list[Question]:
    subsets = settings.subsets or tuple(openaudiobench.SUBSETS)
    return openaudiobench.load(settings.folder("openaudiobench"), subsets)


def _voicebench(settings: Benchmarks) -> list[Question]:
    return voicebench.load(settings.folder("voicebench"), settings.subsets or voicebench.DEFAULT)


SUITES = tuple(
    SpokenQuestions(f"{name}_{way}", load, speaks=way == "s2s")
    for name, load in (("openaudiobench", _openaudiobench), ("voicebench", _voicebench))
    for way in ("s2t", "s2s")
)
