"""Closed questions: spoken or written questions, written or spoken answers.

A model that transcribes the question before it answers (`ExampleMaker.transcribe_first`) is scored
by the last line that it writes; the lines before are the item's `transcribe_first`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ba_jax.data.examples import TRANSCRIPT_END
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results, make_items
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER


class WrittenAnswers(Suite):
    """Exact match of written answers after normalisation.

    Args:
      name: name of the suite and its main figure.
      components: components of the model.
      task, options: arguments of `ExampleMaker`.
    """

    def __init__(
        self, name: str, components: tuple[str, ...], task: str, options: Mapping[str, str]
    ):
        self.name, self.components = name, components
        self._task, self._options = task, dict(options)

    def items(self, bench: Bench) -> list[EvalItem]:
        return make_items(bench.records.dialogues)

    def generate(self, bench: Bench, items: Items) -> Results:
        return bench.ask(items, self._task, f"answering ({self.name})", **self._options)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Compare the answer; a failed item is wrong."""
        question, answer = item.record.parts
        unit = text.WRITTEN_UNIT[item.language]
        transcript, hypothesis = _split_answer(outputs.generated.get("text", ""))
        tally = text.tally(answer.text, hypothesis, item.language, unit)
        is_equal = text.is_equal(answer.text, hypothesis, item.language, unit)
        return {
            "question": question.text,
            "reference": answer.text,
            "hypothesis": hypothesis,
            "transcribe_first": transcript,
            "errors": tally.errors,
            "units": tally.units,
            "correct": bool(outputs.generated) and is_equal,
            "audio": {"heard": bench.recordings.save_reference(question, f"{item.id}-question")},
        }

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        return _share_figures(self.name, rows)


class SpokenAnswers(Suite):
    """`qa_s2s`: a spoken question, answered in text and then speech, as the judge hears it.

    `text.is_answer` decides. `qa_s2s_exact` asks for equality, `qa_s2s_text` scores the text
    written before the speech, and `qa_s2s_on_reference` the judge itself, on the recordings of the
    answers.
    """

    name = "qa_s2s"
    components = tuple(dict.fromkeys((*LANGUAGE_MODEL, *SPEECH_ENCODER, *SPEECH_DECODER)))
    speaks = judged = True

    def items(self, bench: Bench) -> list[EvalItem]:
        return make_items([d for d in bench.records.dialogues if d.parts[1].is_spoken])

    def generate(self, bench: Bench, items: Items) -> Results:
        options = {"questions": "spoken", "answers": "spoken"}
        return bench.ask(items, "sft", "answering in speech", **options)

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Save the waves, and the recordings of the answers."""
        references = [
            bench.recordings.save_reference(i.record.parts[1], f"{i.id}-answer") for i in items
        ]
        return spoken.present(bench, self.name, items, generated, references)

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        return spoken.judge(bench, items, presented)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Compare the answer; a failed item is wrong, but its text counts in `text_correct`."""
        question, answer, language = item.record.parts[0], item.record.parts[1].text, item.language
        transcript, written = _split_answer(outputs.generated.get("text", ""))
        row = spoken.score(item, answer, outputs)
        heard = row["hypothesis"]
        is_exact = text.is_equal(answer, heard, language, text.SPOKEN_UNIT[language])
        row |= {
            "question": question.text,
            "correct": bool(outputs.judged) and text.is_answer(answer, heard, language),
            "exact": bool(outputs.judged) and is_exact,
            "text": written,
            "transcribe_first": transcript,
            "text_correct": bool(outputs.generated)
            and text.is_equal(answer, written, language, text.WRITTEN_UNIT[language]),
        }
        if outputs.judged:
            on_reference = text.is_answer(answer, row["heard_on_reference"], language)
            row["correct_on_reference"] = on_reference
        path = bench.recordings.save_reference(question, f"{item.id}-question")
        row["audio"] = {"heard": path, **row["audio"]}
        return row

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        figures = _share_figures(self.name, rows)
        figures |= bootstrap.share_figures("qa_s2s_exact", rows, "exact")
        figures |= bootstrap.share_figures("qa_s2s_text", rows, "text_correct")
        heard = [row for row in rows if "correct_on_reference" in row]
        figures |= bootstrap.share_figures("qa_s2s_on_reference", heard, "correct_on_reference")
        figures["qa_s2s_judge"] = bench.judge.names
        figures["qa_s2s_scored"] = (
            "words in English, toneless syllables in Mandarin; equal, or the key right and at most "
            "a third of the units wrong"
        )
        return figures


def _split_answer(written: str) -> tuple[str, str]:
    """Return (the lines before the last one, the last line)."""
    before, _, last = written.rpartition(TRANSCRIPT_END)
    return before.strip(), last.strip()


def _share_figures(name: str, rows: Sequence[Line]) -> dict[str, Any]:
    figures = bootstrap.share_figures(name, rows, "correct")
    figures[f"{name}_items"] = len(rows)
    for language in ("en", "zh"):
        if selected := [row for row in rows if row["language"] == language]:
            figures |= bootstrap.share_figures(f"{name}_{language}", selected, "correct")
    return figures


SUITES = (
    WrittenAnswers("qa_s2t", LANGUAGE_MODEL + SPEECH_ENCODER, "aqa", {}),
    # The text ability that training on speech has to keep.
    WrittenAnswers("qa_t2t", ("llm",), "sft", {"questions": "written", "answers": "written"}),
    SpokenAnswers(),
)
