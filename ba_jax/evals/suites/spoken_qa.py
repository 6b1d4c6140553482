"""OpenAudioBench and VoiceBench: spoken questions answered in writing (s->t) or speech (s->s).

Spoken answers are judged twice: by their text, the pieces that the model writes between its speech
(as in the paper's Table 8), and by what a recogniser hears (`Bench.judge`). The judge is set by
`EvalSettings.verdict`; `ba_jax.evals.judges.answers` lists its verdicts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.data.record import Part, Record
from ba_jax.evals.bench import Bench
from ba_jax.evals.benchmarks.questions import Question, load_openaudiobench, load_voicebench
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
from ba_jax.evals.recordings import read_part
from ba_jax.evals.scoring import bootstrap
from ba_jax.evals.settings import Benchmarks
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER

_LOADERS: Mapping[str, Callable[[Benchmarks], list[Question]]] = {
    "openaudiobench": lambda b: load_openaudiobench(b.folder("openaudiobench"), b.subsets),
    "voicebench": lambda b: load_voicebench(b.folder("voicebench"), b.subsets),
}


class SpokenQuestions(Suite):
    """Questions of a benchmark (`item.source`); figures of each subset are `figures_of_verdicts`:
    of spoken answers NAME_SUBSET as heard, NAME_text_SUBSET of their text.

    Args:
      benchmark: a key of `_LOADERS`.
      speaks: answers are spoken.
    """

    judged = True

    def __init__(self, benchmark: str, *, speaks: bool):
        self.name = f"{benchmark}_{'s2s' if speaks else 's2t'}"
        self.speaks, self._load = speaks, _LOADERS[benchmark]
        parts = (*LANGUAGE_MODEL, *SPEECH_ENCODER, *(SPEECH_DECODER if speaks else ()))
        self.components = tuple(dict.fromkeys(parts))

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return questions; raises EvalError for style "aqa" with spoken answers."""
        settings = bench.settings.benchmarks
        if self.speaks and settings.style != "sft":
            raise EvalError(
                f"{self.name}: benchmarks.style {settings.style!r} gives written answers, "
                "expected 'sft'"
            )
        questions = settings.apply_limit(self._load(settings))
        return [
            EvalItem(question.id, number, question.language, None, question.subset, source=question)
            for number, question in enumerate(questions)
        ]

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
        part = read_part(question.audio, "user")
        if isinstance(part, Failure):
            return part
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
        questions = [
            {
                "language": item.source.language,
                "rubric": item.source.rubric,
                "question": item.source.text,
                "references": list(item.source.references),
                "answer": line["text"],
            }
            for item, line in zip(items, generated, strict=True)
        ]
        if not self.speaks:
            return questions
        recordings = spoken.present(bench, self.name, items, generated, [""] * len(items))
        return [
            recording if isinstance(recording, Failure) else question | recording
            for question, recording in zip(questions, recordings, strict=True)
        ]

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        """Judge answers; a spoken answer by its text, and by the words that are `heard`."""
        texts: list[str | Failure] = [line["answer"] for line in presented]
        answers = texts
        if self.speaks:
            answers = spoken.hear(bench, items, presented, "generated", "listening to answers")

        def judge(usable: list[int]) -> list[Line]:
            def verdicts(of: Sequence[str | Failure], task: str) -> list[Line]:
                questions = [presented[i] | {"answer": of[i], "id": items[i].id} for i in usable]
                lines = bench.judge_answers(questions, task)
                return [{key: line[key] for key in line if key != "id"} for line in lines]

            lines = verdicts(answers, "judging answers")
            lines = [line | {"heard": answers[i]} for i, line in zip(usable, lines, strict=True)]
            if self.speaks:
                judged = verdicts(texts, "judging the text of answers")
                lines = [line | {"of_text": own} for line, own in zip(lines, judged, strict=True)]
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
        of_text = {"of_text": (outputs.judged or {}).get("of_text", verdict)} if self.speaks else {}
        return {
            **of_text,
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
            figures |= figures_of_verdicts(f"{self.name}_{subset}", members)
            if self.speaks:
                texts = [row["of_text"] | {"id": row["id"]} for row in members]
                figures |= figures_of_verdicts(f"{self.name}_text_{subset}", texts)
        figures[f"{self.name}_judge"] = bench.answer_judge.name
        if self.speaks:
            figures[f"{self.name}_heard_by"] = bench.judge.names
        return figures


def figures_of_verdicts(name: str, verdicts: Sequence[Line]) -> dict[str, Any]:
    """Compute the figures of a subset's verdicts.

    `name` is the share of right answers, or the mean score from 1 to 10, of all that were judged;
    absent if none was. An invalid verdict counts as wrong and is left out of the mean; an item that
    failed earlier has the verdict "wrong" or the lowest score. `NAME_items`, `_judged`, `_invalid`
    and `_unjudged` count verdicts; `_invalid_ids` and `_unjudged_reasons` list them.
    """
    groups = collections.defaultdict(list)
    for verdict in verdicts:
        groups[verdict["verdict"]].append(verdict)
    invalid, unjudged = groups["invalid"], groups["unjudged"]
    results: dict[str, Any] = {}
    if groups["scored"]:
        results |= bootstrap.mean_figures(name, [v["score"] for v in groups["scored"]])
    elif groups["right"] or groups["wrong"]:
        judged = [v["verdict"] == "right" for v in verdicts if v["verdict"] != "unjudged"]
        results |= bootstrap.mean_figures(name, judged)
    results |= {
        f"{name}_items": len(verdicts),
        f"{name}_judged": len(verdicts) - len(unjudged),
        f"{name}_invalid": len(invalid),
        f"{name}_unjudged": len(unjudged),
    }
    if invalid:
        results[f"{name}_invalid_ids"] = [verdict["id"] for verdict in invalid]
    if unjudged:
        reasons = collections.Counter(verdict["reason"] for verdict in unjudged)
        results[f"{name}_unjudged_reasons"] = dict(reasons)
    return results


SUITES = tuple(SpokenQuestions(b, speaks=s) for b in _LOADERS for s in (False, True))
