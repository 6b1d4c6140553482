"""OpenAudioBench and VoiceBench: spoken questions answered in writing (s->t) or speech (s->s).

Spoken answers are heard by the recogniser (`Bench.judge`) and then judged as text, as the field
does. Who judges is `EvalSettings.verdict`; see `evals.verdict` for what each judge can say.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.data.record import Part, Record
from ba_jax.evals.base import Bench
from ba_jax.evals.benchmarks import openaudiobench, voicebench
from ba_jax.evals.benchmarks.folders import Benchmarks, spoken_part
from ba_jax.evals.benchmarks.question import Question
from ba_jax.evals.judges import answers as verdict
from ba_jax.evals.suite import EvalError, Item, Line, Suite
from ba_jax.evals.suites import spoken
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER


@dataclasses.dataclass(frozen=True)
class QuestionItem(Item):
    """A question as an item; its recording is read when it is asked."""

    source: Question | None = None


class SpokenQuestions(Suite):
    """Questions of a benchmark.

    Figures: of each subset, `verdict.figures`.

    Args:
      name: of the suite.
      load: the questions that the settings name.
      speaks: answers are spoken.
    """

    judged = True

    def __init__(
        self, name: str, load: Callable[[Benchmarks], Sequence[Question]], *, speaks: bool
    ):
        self.name, self.speaks, self._load = name, speaks, load
        parts = (*LANGUAGE_MODEL, *SPEECH_ENCODER, *(SPEECH_DECODER if speaks else ()))
        self.components = tuple(dict.fromkeys(parts))

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError, LayoutError: spoken answers asked for as "aqa", or as the loader."""
        settings = bench.settings.benchmarks
        if self.speaks and settings.style != "sft":
            raise EvalError(f"{self.name}: benchmarks.style {settings.style!r} writes, not speaks")
        return [
            QuestionItem(
                question.id,
                number,
                question.language,
                Record(question.id, "text", question.language, (Part(question.text),)),
                question.subset,
                source=question,
            )
            for number, question in enumerate(settings.limited(self._load(settings)))
        ]

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Text, or text and codes."""
        found: list[Any] = []
        for item in items:
            try:
                found.append(dataclasses.replace(item, record=self._record(bench, item.source)))
            except (AudioError, OSError) as error:
                found.append(Failure(f"recording: {error}"))
        usable = [i for i, one in enumerate(found) if not isinstance(one, Failure)]
        task, options = bench.settings.benchmarks.style, {}
        if task == "sft":
            options = {"questions": "spoken", "answers": "spoken" if self.speaks else "written"}
        asked = [found[i] for i in usable]
        made = bench.ask(asked, task, f"answering ({self.name})", **options) if asked else []
        for i, one in zip(usable, made, strict=True):
            found[i] = one
        return found

    def _record(self, bench: Bench, question: Question) -> Record:
        """A dialogue whose answer lies past the prompt's end and is never seen."""
        part = dataclasses.replace(spoken_part(question.audio, "user"), text=question.text)
        answer = Part("-", role="assistant")
        if self.speaks:
            codebooks = len(bench.model.config.audio_embed.codebook_sizes)
            codes_NQ = np.zeros((1, codebooks), np.int32)
            answer = dataclasses.replace(answer, codes_NQ=codes_NQ, seconds=0.08)
        parts = (part, answer)
        return Record(question.id, "dialogue", question.language, parts, question.subset)

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """A verdict's input; of a spoken answer its recording (`generated`), not yet its words."""
        inputs = []
        for item, line in zip(items, made, strict=True):
            question = item.source
            inputs.append(
                {
                    "language": question.language,
                    "rubric": question.rubric,
                    "question": question.text,
                    "references": list(question.references),
                    "answer": line["text"],
                }
            )
        if not self.speaks:
            return inputs
        said = spoken.present(bench, self.name, items, made, [""] * len(items))
        return [
            one if isinstance(one, Failure) else given | one
            for given, one in zip(inputs, said, strict=True)
        ]

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """A verdict each; of a spoken answer on what was `heard`."""
        answers: list[str | Failure] = [line["answer"] for line in given]
        if self.speaks:
            waves = [bench.load(line["generated"]) for line in given]
            languages = [line["language"] for line in given]
            answers = bench.hear(waves, languages, "listening to answers")
        usable = [i for i, answer in enumerate(answers) if not isinstance(answer, Failure)]
        inputs = [given[i] | {"answer": answers[i], "id": items[i].id} for i in usable]
        found: list[Line | Failure] = list(answers)
        verdicts = bench.grade(inputs, "judging answers") if inputs else []
        for i, said in zip(usable, verdicts, strict=True):
            found[i] = {key: value for key, value in said.items() if key != "id"}
            found[i]["heard"] = answers[i]
        return found

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed is wrong, or has the lowest score."""
        question = item.source
        row: Line = {
            "id": item.id,
            "language": item.language,
            "subset": question.subset,
            "question": question.text,
            "reference": " | ".join(question.references),
            "text": made["text"] if made else "",
            "audio": {"generated": given["generated"]} if given and self.speaks else {},
        }
        if judged is None:
            scale = question.rubric == "scale"
            said = {
                "verdict": "scored" if scale else "wrong",
                "score": float(verdict.LOWEST) if scale else None,
                "reason": "failed before it could be judged",
            }
        else:
            said = {key: judged[key] for key in ("verdict", "score", "reason")}
        heard = judged["heard"] if judged else ""
        return row | said | {"hypothesis": heard, "correct": said["verdict"] == "right"}

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """Of each subset."""
        groups: dict[str, list[Line]] = collections.defaultdict(list)
        for row in rows:
            if "verdict" in row:
                groups[row["subset"]].append(row)
        found: dict[str, Any] = {}
        for subset, own in groups.items():
            found |= verdict.figures(f"{self.name}_{subset}", own)
        found[f"{self.name}_judge"] = bench.verdicts.name
        if self.speaks:
            found[f"{self.name}_heard_by"] = bench.judge.names
        return found


def _openaudiobench(settings: Benchmarks) -> list[Question]:
    subsets = settings.subsets or tuple(openaudiobench.SUBSETS)
    return openaudiobench.load(settings.folder("openaudiobench"), subsets)


def _voicebench(settings: Benchmarks) -> list[Question]:
    return voicebench.load(settings.folder("voicebench"), settings.subsets or voicebench.DEFAULT)


def suites() -> tuple[Suite, ...]:
    """Both benchmarks, each answered in writing and in speech."""
    return tuple(
        SpokenQuestions(f"{name}_{way}", load, speaks=way == "s2s")
        for name, load in (("openaudiobench", _openaudiobench), ("voicebench", _voicebench))
        for way in ("s2t", "s2s")
    )
