"""Closed questions of the data: the right written answer against another one of its category."""

from __future__ import annotations

import collections
import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence

from ba_jax.data.corpus import facts
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.record import Part, Record
from ba_jax.evals.bench import Bench
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.items import EvalError, EvalItem, replace_usable
from ba_jax.evals.suites.comparison import ChoiceItem, Comparison
from ba_jax.types import Example, Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER


class Cloze(Comparison):
    """A miniature of sStoryCloze.

    Args:
      name, components: attributes of the suite.
      task, options: arguments of `ExampleMaker`, which lays out the questions.
    """

    def __init__(
        self, name: str, components: tuple[str, ...], task: str, options: Mapping[str, str]
    ):
        self.name, self.components = name, components
        self._task, self._maker = task, ExampleMaker(task, **options)

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return dialogues.

        Raises:
          EvalError: an answer is of no closed fact.
        """
        items = []
        for number, dialogue in enumerate(bench.records.dialogues):
            question, answer = dialogue.parts
            endings = (answer.text, wrong_answer(dialogue))
            choice = Choice(dialogue.id, "closed", dialogue.language, endings, 0, question.text)
            items.append(
                ChoiceItem(dialogue.id, number, dialogue.language, dialogue, choice=choice)
            )
        return items

    def examples(self, bench: Bench, items: Sequence[ChoiceItem]) -> list[list[Example] | Failure]:
        """Make the task's training examples."""
        questions = [item.record.parts[0] for item in items]
        codes = bench.encode(questions) if self._task == "aqa" else [None] * len(items)

        def make(usable: list[int]) -> list[list[Example]]:
            examples = []
            for i in usable:
                question = questions[i]
                if codes[i] is not None:
                    question = dataclasses.replace(question, codes_NQ=codes[i])
                answers = [Part(text, role="assistant") for text in items[i].choice.endings]
                examples.append(
                    [
                        self._maker(dataclasses.replace(items[i].record, parts=(question, answer)))
                        for answer in answers
                    ]
                )
            return examples

        return replace_usable(codes, make)


def wrong_answer(dialogue: Record) -> str:
    """Choose another answer of the category of a closed question, the same in every process.

    Raises:
      EvalError: the answer is of no closed fact.
    """
    language, answer = dialogue.language, dialogue.parts[1].text
    answers = _other_answers(language).get(answer)
    if not answers:
        raise EvalError(f"{dialogue.id}: {answer!r} is no answer of the closed facts")
    return answers[zlib.crc32(dialogue.id.encode()) % len(answers)]


@functools.cache
def _other_answers(language: str) -> dict[str, tuple[str, ...]]:
    """Map an answer to the other ones of its category."""
    categories: dict[str, set[str]] = collections.defaultdict(set)
    for fact in facts.facts():
        categories[fact.category].add(fact.answers[language])
    return {
        answer: tuple(sorted(answers - {answer}))
        for answers in categories.values()
        for answer in answers
    }


SUITES = (
    Cloze("cloze_s2t", (*LANGUAGE_MODEL, *SPEECH_ENCODER), "aqa", {}),
    Cloze("cloze_t2t", ("llm",), "sft", {"questions": "written", "answers": "written"}),
)
