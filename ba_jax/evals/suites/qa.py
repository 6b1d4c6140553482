"""Closed questions: spoken or written questions, written or spoken answers.

A model that transcribes the question before it answers (`ExampleMaker.transcribe_first`) is scored
by the last line that it writes; the lines before are the item's `transcribe_first`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ba_jax.data.examples import TRANSCRIPT_END
from ba_jax.data.record import LANGUAGES
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results, make_items
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.speech.languages import language_pack
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER


class WrittenAnswers(Suite):
    """Exact match of written answers after normalisation.

    Args:
      name, components: attributes of the suite.
      task, options: arguments of `ExampleMaker`.
    """

    def __init__(self, name: str, components: tuple[str, ...], task: str, **options: str):
        self.name, self.components = name, components
        self._task, self._options = task, options

    def items(self, bench: Bench) -> list[EvalItem]:
        return make_items(bench.records.dialogues)

    def generate(self, bench: Bench, items: Items) -> Results:
        return bench.ask(items, self._task, f"answering ({self.name})", **self._options)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Compare the answer; a failed item is wrong."""
        question, answer = item.record.parts
        transcript, row = _score_written(item, answer.text, outputs)
        return {
            "question": question.text,
            **row,
            "transcribe_first": transcript,
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
        description = "answering in speech"
        return bench.ask(items, "sft", description, questions="spoken", answers="spoken")

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
        question, answer = item.record.parts[0], item.record.parts[1].text
        transcript, written = _score_written(item, answer, outputs)
        row = spoken.score(item, answer, outputs)
        is_right = text.is_answer(answer, row["hypothesis"], item.language)
        row |= {
            "question": question.text,
            "correct": bool(outputs.judged) and is_right,
            "exact": row["correct"],
            "text": written["hypothesis"],
            "transcribe_first": transcript,
            "text_correct": written["correct"],
        }
        if outputs.judged:
            heard = row["heard_on_reference"]
            row["correct_on_reference"] = text.is_answer(answer, heard, item.language)
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


def _score_written(item: EvalItem, answer: str, outputs: Outputs) -> tuple[str, Line]:
    """Return (the lines before the last one, the score of the last line)."""
    before, _, last = outputs.generated.get("text", "").rpartition(TRANSCRIPT_END)
    hypothesis = last.strip() if outputs.generated else None
    unit = language_pack(item.language).unit
    return before.strip(), text.score_text(answer, hypothesis, item.language, unit)


def _share_figures(name: str, rows: Sequence[Line]) -> dict[str, Any]:
    figures = bootstrap.share_figures(name, rows, "correct")
    figures[f"{name}_items"] = len(rows)
    names = {language: f"{name}_{language}" for language in LANGUAGES}
    return figures | bootstrap.language_figures(rows, names, bootstrap.share_figures, key="correct")


SUITES = (
    WrittenAnswers("qa_s2t", LANGUAGE_MODEL + SPEECH_ENCODER, "aqa"),
    # The text ability that training on speech has to keep.
    WrittenAnswers("qa_t2t", ("llm",), "sft", questions="written", answers="written"),
    SpokenAnswers(),
)
