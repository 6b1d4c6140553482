"""Speech recognition: statements and questions written down, greedily or as configured."""

from __future__ import annotations

from typing import Any

from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results, make_items
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import Suite
from ba_jax.speech.languages import language_pack
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER


class Recognition(Suite):
    """`asr_wer` pools English words and Mandarin characters over the corpus; then each alone."""

    name = "asr"
    components = (*LANGUAGE_MODEL, *SPEECH_ENCODER)

    def items(self, bench: Bench) -> list[EvalItem]:
        items = make_items(bench.records.statements, "statements")
        return items + make_items(bench.records.questions, "questions", len(items))

    def generate(self, bench: Bench, items: Items) -> Results:
        return bench.ask(items, "asr", "recognising")

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Count errors; a failed item has every unit wrong."""
        part, language = item.record.parts[0], item.language
        hypothesis = outputs.generated.get("text")
        return {
            "group": item.group,
            **text.score_text(part.text, hypothesis, language, language_pack(language).unit),
            "audio": {"heard": bench.recordings.save_reference(part, item.id)},
        }

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        figures = {**bootstrap.rate_figures("asr_wer", rows), "asr_items": len(rows)}
        figures |= bootstrap.language_figures(rows, {"en": "asr_wer_en", "zh": "asr_cer_zh"})
        for group in ("statements", "questions"):
            if selected := [row for row in rows if row.get("group") == group]:
                figures |= bootstrap.rate_figures(f"asr_wer_{group}", selected)
        figures["asr_scored"] = "words in English, characters in Mandarin, corpus level"
        figures["asr_normaliser"] = text.normalisers()
        return figures


SUITES = (Recognition(),)
