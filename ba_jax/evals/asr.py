"""Speech recognition: closed statements and questions written down, greedily or as configured."""

from __future__ import annotations

from typing import Any

from ba_jax.evals import text
from ba_jax.evals.base import Bench, EvalError, Outcome
from ba_jax.evals.text import Tally


def run(bench: Bench) -> Outcome:
    """`asr_wer` pools English words and Mandarin characters over the corpus; then each alone.

    Raises:
      EvalError: no utterance to recognise.
    """
    groups = {"statements": bench.statements, "questions": bench.questions}
    utterances = [utterance for group in groups.values() for utterance in group]
    if not utterances:
        raise EvalError("asr: no spoken statement or question in the data")
    prompts = bench.prompts([utterance.record for utterance in utterances], "asr")
    written = bench.generate(prompts, "recognising")
    items, tallies = [], []
    for utterance, generated in zip(utterances, written, strict=True):
        hypothesis = bench.text_of(generated)
        tally = text.score(
            utterance.part.text, hypothesis, utterance.language, text.WRITTEN[utterance.language]
        )
        tallies.append(tally)
        items.append(
            {
                "id": utterance.id,
                "language": utterance.language,
                "reference": utterance.part.text,
                "hypothesis": hypothesis,
                "errors": tally.errors,
                "units": tally.units,
                "correct": tally.errors == 0,
                "audio": {
                    "heard": bench.save("reference", utterance.id, bench.wave(utterance.part))
                },
            }
        )
    figures: dict[str, Any] = {"asr_wer": text.total(tallies).rate, "asr_items": len(items)}
    figures |= by_language(tallies, items, {"en": "asr_wer_en", "zh": "asr_cer_zh"})
    count = len(groups["statements"])
    for name, part in (("statements", tallies[:count]), ("questions", tallies[count:])):
        if part:
            figures[f"asr_wer_{name}"] = text.total(part).rate
    figures["asr_scored"] = "words in English, characters in Mandarin, corpus level"
    return Outcome(figures, items)


def by_language(tallies: list[Tally], items: list[dict], names: dict[str, str]) -> dict[str, float]:
    """The rate of each language that there is, under its name."""
    found = {}
    for language, name in names.items():
        own = [
            tally
            for tally, item in zip(tallies, items, strict=True)
            if item["language"] == language
        ]
        if own:
            found[name] = text.total(own).rate
    return found
