"""Closed questions answered: spoken or written questions, written or spoken answers.

A model that transcribes the question before it answers (`ExampleMaker.transcribe_first`) is scored
by the last line that it writes; the lines before are kept as the item's `transcribe_first`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ba_jax.data.examples import TRANSCRIPT_END
from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import EvalError, Item, Line, Suite, items_of
from ba_jax.evals.suites import spoken
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER


class Written(Suite):
    """Exact match of written answers after normalisation.

    Args:
      name: of the suite and its main figure.
      components: of the model.
      task, options: of `ExampleMaker`.
    """

    def __init__(
        self, name: str, components: tuple[str, ...], task: str, options: Mapping[str, str]
    ):
        self.name, self.components = name, components
        self._task, self._options = task, dict(options)

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no dialogue."""
        return items_of(_dialogues(bench))

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Text."""
        return bench.ask(items, self._task, f"answering ({self.name})", **self._options)

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed is wrong."""
        answer, language = item.record.parts[1].text, item.language
        transcribe_first, hypothesis = _lines(made["text"] if made else "")
        tally = text.tally(answer, hypothesis, language, text.WRITTEN[language])
        right = text.equal(answer, hypothesis, language, text.WRITTEN[language])
        return {
            "id": item.id,
            "language": language,
            "question": item.record.parts[0].text,
            "reference": answer,
            "hypothesis": hypothesis,
            "transcribe_first": transcribe_first,
            "errors": tally.errors,
            "units": tally.units,
            "correct": made is not None and right,
            "audio": {"heard": bench.recording(item.record.parts[0], f"{item.id}-question")},
        }

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """The share that is right, of all and of each language."""
        return _shares(self.name, rows)


class SpokenToSpoken(Suite):
    """`qa_s2s`: a spoken question, answered in text and then speech, as the judge hears it.

    Right as `text.answers` says. `qa_s2s_exact` asks for equality, `qa_s2s_text` scores the text
    that was written before the speech, and `qa_s2s_on_reference` the judge itself, on the real
    recordings of the answers.
    """

    name = "qa_s2s"
    components = tuple(dict.fromkeys((*LANGUAGE_MODEL, *SPEECH_ENCODER, *SPEECH_DECODER)))
    speaks = judged = True

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no dialogue with a spoken answer."""
        found = [d for d in _dialogues(bench) if d.parts[1].is_spoken]
        if not found:
            raise EvalError("qa_s2s: no spoken answer in the data")
        return items_of(found)

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Text and codes."""
        options = {"questions": "spoken", "answers": "spoken"}
        return bench.ask(items, "sft", "answering in speech", **options)

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """The waves, and the recordings of the answers."""
        references = [bench.recording(i.record.parts[1], f"{i.id}-answer") for i in items]
        return spoken.present(bench, self.name, items, made, references)

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """What is heard of both."""
        return spoken.judge(bench, items, given)

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed is wrong; the text of a failed judgement counts all the same."""
        question, answer = item.record.parts[0], item.record.parts[1].text
        language = item.language
        transcribe_first, written = _lines(made["text"] if made else "")
        row = spoken.row(item, answer, text.SAID[language], made, given, judged)
        heard = row["hypothesis"]
        is_same = text.equal(answer, heard, language, text.SAID[language])
        row |= {
            "question": question.text,
            "correct": judged is not None and text.answers(answer, heard, language),
            "exact": judged is not None and is_same,
            "text": written,
            "transcribe_first": transcribe_first,
            "text_correct": made is not None
            and text.equal(answer, written, language, text.WRITTEN[language]),
        }
        if judged:
            row["correct_on_reference"] = text.answers(answer, row["heard_on_reference"], language)
        heard_path = bench.recording(question, f"{item.id}-question")
        row["audio"] = {"heard": heard_path, **row["audio"]}
        return row

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """The shares that are right."""
        found = _shares(self.name, rows)
        found |= bootstrap.share_figures("qa_s2s_exact", rows, "exact")
        found |= bootstrap.share_figures("qa_s2s_text", rows, "text_correct")
        heard = [row for row in rows if "correct_on_reference" in row]
        found |= bootstrap.share_figures("qa_s2s_on_reference", heard, "correct_on_reference")
        found["qa_s2s_judge"] = bench.judge.names
        found["qa_s2s_scored"] = (
            "words in English, toneless syllables in Mandarin; equal, or the key right and at most "
            "a third of the units wrong"
        )
        return found


def suites() -> tuple[Suite, ...]:
    """A spoken question answered in writing (task aqa), a written one (the ability to keep), and a
    spoken one answered in speech."""
    written = {"questions": "written", "answers": "written"}
    return (
        Written("qa_s2t", LANGUAGE_MODEL + SPEECH_ENCODER, "aqa", {}),
        Written("qa_t2t", ("llm",), "sft", written),
        SpokenToSpoken(),
    )


def _lines(written: str) -> tuple[str, str]:
    """(what stands before the last line, the last line)."""
    before, _, last = written.rpartition(TRANSCRIPT_END)
    return before.strip(), last.strip()


def _dialogues(bench: Bench):
    if not bench.dialogues:
        raise EvalError("qa: no dialogue of a spoken question and an answer in the data")
    return bench.dialogues


def _shares(name: str, rows: Sequence[Line]) -> dict[str, Any]:
    found = bootstrap.share_figures(name, rows, "correct")
    found[f"{name}_items"] = len(rows)
    for language in ("en", "zh"):
        own = [row for row in rows if row["language"] == language]
        if own:
            found |= bootstrap.share_figures(f"{name}_{language}", own, "correct")
    return found
