"""Speech from text, as the judge hears it, beside the judge on recordings of the same texts."""

from __future__ import annotations

from typing import Any

from ba_jax.evals import text
from ba_jax.evals.asr import by_language
from ba_jax.evals.base import Bench, EvalError, Outcome


def run(bench: Bench) -> Outcome:
    """`tts_judge_wer` and `judge_wer_on_reference`: units said, pooled over the corpus.

    Raises:
      EvalError: no statement to say.
    """
    utterances = bench.statements
    if not utterances:
        raise EvalError("tts: no spoken statement in the data")
    prompts = bench.prompts([utterance.record for utterance in utterances], "tts")
    made = bench.generate(prompts, "speaking")
    waves = bench.speech_of([None if one is None else one.codes_NQ for one in made])
    real = [bench.wave(utterance.part) for utterance in utterances]
    languages = [utterance.language for utterance in utterances]
    heard = bench.hear(waves, languages, "listening to speech")
    heard_real = bench.hear(real, languages, "listening to the reference")
    items, tallies, real_tallies, characters = [], [], [], []
    for i, utterance in enumerate(utterances):
        said, language = utterance.part.text, utterance.language
        tallies.append(text.score(said, heard[i], language, text.SAID[language]))
        real_tallies.append(text.score(said, heard_real[i], language, text.SAID[language]))
        if language == "zh":
            characters.append(text.score(said, heard[i], language, "character"))
        items.append(
            {
                "id": utterance.id,
                "language": language,
                "reference": said,
                "hypothesis": heard[i],
                "errors": tallies[-1].errors,
                "units": tallies[-1].units,
                "correct": tallies[-1].errors == 0,
                "heard_on_reference": heard_real[i],
                "errors_on_reference": real_tallies[-1].errors,
                "frames": 0 if made[i] is None else len(made[i].codes_NQ),
                "complete": made[i] is not None and made[i].complete,
                "audio": {
                    "generated": bench.save("tts", utterance.id, waves[i]),
                    "reference": bench.save("reference", utterance.id, real[i]),
                },
            }
        )
    figures: dict[str, Any] = {
        "tts_judge_wer": text.total(tallies).rate,
        "judge_wer_on_reference": text.total(real_tallies).rate,
        "tts_items": len(items),
        "tts_complete": sum(item["complete"] for item in items) / len(items),
    }
    names = {"en": "tts_judge_wer_en", "zh": "tts_judge_syllable_error_rate_zh"}
    figures |= by_language(tallies, items, names)
    names = {"en": "judge_wer_on_reference_en", "zh": "judge_syllable_error_rate_on_reference_zh"}
    figures |= by_language(real_tallies, items, names)
    if characters:
        figures["tts_judge_cer_zh"] = text.total(characters).rate
    figures["tts_judge"] = bench.judge.names
    figures["tts_scored"] = "words in English, toneless syllables in Mandarin, corpus level"
    return Outcome(figures, items)
