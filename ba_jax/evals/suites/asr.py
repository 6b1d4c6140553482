"""Speech recognition: statements and questions written down, greedily or as configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import EvalError, Item, Line, Suite, items_of
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER

_GROUPS = ("statements", "questions")


class Recognition(Suite):
    """`asr_wer` pools English words and Mandarin characters over the corpus; then each alone."""

    name = "asr"
    components = (*LANGUAGE_MODEL, *SPEECH_ENCODER)

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no utterance to recognise."""
        found = items_of(bench.statements, "statements")
        found += items_of(bench.questions, "questions", len(found))
        if not found:
            raise EvalError("asr: no spoken statement or question in the data")
        return found

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Text."""
        return bench.ask(items, "asr", "recognising")

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed has written nothing: all its units are wrong."""
        part, hypothesis = item.record.parts[0], made["text"] if made else ""
        unit = text.WRITTEN[item.language]
        tally = text.tally(part.text, hypothesis, item.language, unit)
        return {
            "id": item.id,
            "language": item.language,
            "group": item.group,
            "reference": part.text,
            "hypothesis": hypothesis,
            "errors": tally.errors,
            "units": tally.units,
            "correct": made is not None and tally.errors == 0,
            "audio": {"heard": bench.recording(part, item.id)},
        }

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """The rates, and how they were made."""
        found = {**bootstrap.rate_figures("asr_wer", rows), "asr_items": len(rows)}
        found |= bootstrap.by_language(rows, {"en": "asr_wer_en", "zh": "asr_cer_zh"})
        for group in _GROUPS:
            own = [row for row in rows if row.get("group") == group]
            if own:
                found |= bootstrap.rate_figures(f"asr_wer_{group}", own)
        found["asr_scored"] = "words in English, characters in Mandarin, corpus level"
        found["asr_normaliser"] = dict(text.NORMALISERS)
        return found
