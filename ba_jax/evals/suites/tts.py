"""Speech from text as the judge hears it, beside the judge on recordings of the same texts."""

from __future__ import annotations

from typing import Any

from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER

_ON_REFERENCE = {"errors": "errors_on_reference", "units": "units_on_reference"}
_CHARACTERS = {"errors": "character_errors", "units": "characters"}


class Synthesis(Suite):
    """`tts_judge_wer` and `judge_wer_on_reference`: error rates pooled over the corpus.

    `tts_judge_wer_macro` is the mean of the utterances' rates, as Seed-TTS-eval reports it.
    """

    name = "tts"
    components = (*LANGUAGE_MODEL, *SPEECH_DECODER)
    speaks = judged = True

    def generate(self, bench: Bench, items: Items) -> Results:
        return bench.say(items, "speaking")

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Save the waves, and the recordings of the same texts."""
        references = [
            bench.recordings.save_reference(item.record.parts[0], item.id) for item in items
        ]
        return spoken.present(bench, self.name, items, generated, references)

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        return spoken.judge(bench, items, presented)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Count errors; a failed item has every unit wrong."""
        reference = item.record.parts[0].text
        row = spoken.score(item, reference, outputs)
        if item.language == "zh":
            tally = text.tally(reference, row["hypothesis"], "zh", "character")
            row |= {"character_errors": tally.errors, "characters": tally.units}
        return row

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        """Compute the model's rates, at corpus level and macro, and the judge's on recordings."""
        figures = bootstrap.rate_figures("tts_judge_wer", rows)
        figures |= bootstrap.rate_figures("judge_wer_on_reference", rows, **_ON_REFERENCE)
        figures |= {"tts_items": len(rows)}
        figures |= bootstrap.share_figures("tts_complete", rows, "complete")
        names = {"en": "tts_judge_wer_en", "zh": "tts_judge_syllable_error_rate_zh"}
        figures |= bootstrap.language_figures(rows, names)
        names = {
            "en": "judge_wer_on_reference_en",
            "zh": "judge_syllable_error_rate_on_reference_zh",
        }
        figures |= bootstrap.language_figures(rows, names, **_ON_REFERENCE)
        figures |= bootstrap.language_figures(rows, {"zh": "tts_judge_cer_zh"}, **_CHARACTERS)
        macro = bootstrap.macro_figures
        figures |= macro("tts_judge_wer_macro", rows)
        figures |= bootstrap.language_figures(rows, {"en": "tts_judge_wer_macro_en"}, macro)
        names = {"zh": "tts_judge_cer_macro_zh"}
        figures |= bootstrap.language_figures(rows, names, macro, **_CHARACTERS)
        figures["tts_words_per_turn"] = bench.settings.tts_words_per_turn
        figures["tts_judge"] = bench.judge.names
        figures["tts_scored"] = "words in English, toneless syllables in Mandarin, corpus level"
        figures["tts_macro_scored"] = (
            "mean of each utterance's own rate, as Seed-TTS-eval: words in English, in Mandarin "
            "syllables (all), characters (cer)"
        )
        figures["tts_normaliser"] = text.normalisers()
        return figures


SUITES = (Synthesis(),)
