"""Speech from text, as the judge hears it, beside the judge on recordings of the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import EvalError, Item, Line, Suite, items_of
from ba_jax.evals.suites import spoken
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER


class Speaking(Suite):
    """`tts_judge_wer` and `judge_wer_on_reference`: units said, pooled over the corpus.

    `tts_judge_wer_macro` is the mean of each utterance's own rate, as Seed-TTS-eval reports it.
    """

    name = "tts"
    components = (*LANGUAGE_MODEL, *SPEECH_DECODER)
    speaks = judged = True

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no statement to say."""
        if not bench.statements:
            raise EvalError("tts: no spoken statement in the data")
        return items_of(bench.statements)

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Codes."""
        return bench.say(items, "speaking")

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """The waves, and the recordings of the same texts."""
        references = [bench.recording(item.record.parts[0], item.id) for item in items]
        return spoken.present(bench, self.name, items, made, references)

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """What is heard of both."""
        return spoken.judge(bench, items, given)

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed was not heard: all its units are wrong."""
        said, language = item.record.parts[0].text, item.language
        row = spoken.row(item, said, text.SAID[language], made, given, judged)
        if language == "zh":
            own = text.tally(said, row["hypothesis"], language, "character")
            row |= {"character_errors": own.errors, "characters": own.units}
        return row

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """Corpus level and macro, each language alone, and the judge on recordings."""
        on_reference = {"errors": "errors_on_reference", "units": "units_on_reference"}
        found = bootstrap.rate_figures("tts_judge_wer", rows)
        found |= bootstrap.rate_figures("judge_wer_on_reference", rows, **on_reference)
        found |= {"tts_items": len(rows)}
        found |= bootstrap.share_figures("tts_complete", rows, "complete")
        names = {"en": "tts_judge_wer_en", "zh": "tts_judge_syllable_error_rate_zh"}
        found |= bootstrap.by_language(rows, names)
        names = {
            "en": "judge_wer_on_reference_en",
            "zh": "judge_syllable_error_rate_on_reference_zh",
        }
        found |= bootstrap.by_language(rows, names, **on_reference)
        characters = {"errors": "character_errors", "units": "characters"}
        found |= bootstrap.by_language(rows, {"zh": "tts_judge_cer_zh"}, **characters)
        found |= bootstrap.macro_figures("tts_judge_wer_macro", rows)
        for language, name, keys in (
            ("en", "tts_judge_wer_macro_en", {}),
            ("zh", "tts_judge_cer_macro_zh", characters),
        ):
            own = [row for row in rows if row["language"] == language]
            if own:
                found |= bootstrap.macro_figures(name, own, **keys)
        found["tts_words_per_turn"] = bench.settings.tts_words_per_turn
        found["tts_judge"] = bench.judge.names
        found["tts_scored"] = "words in English, toneless syllables in Mandarin, corpus level"
        found["tts_macro_scored"] = (
            "mean of each utterance's own rate, as Seed-TTS-eval: words in English, in Mandarin "
            "syllables (all), characters (cer)"
        )
        found["tts_normaliser"] = dict(text.NORMALISERS)
        return found
