"""Real speech through codes and back: mel error by the number of codebooks, and the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL, MelGeometry, log_mel
from ba_jax.data.features import decode
from ba_jax.data.record import Part
from ba_jax.evals import text
from ba_jax.evals.asr import by_language
from ba_jax.evals.base import Bench, EvalError, Outcome, Utterance
from ba_jax.evals.text import Tally


def run(bench: Bench) -> Outcome:
    """What `codec` gives; and through the flow, `mel_mae_flow` and `reconstruction_judge_wer`.

    Raises:
      EvalError: as `codec`.
    """
    outcome = codec(bench)
    utterances = bench.statements
    codes = bench.codes([utterance.part for utterance in utterances])
    mels = bench.synthesizer.flow_mels(codes, range(len(codes)))
    wanted = [_mel(utterance.part, FLOW_MEL) for utterance in utterances]
    errors = [_error(mel, want) for mel, want in zip(mels, wanted, strict=True)]
    waves = bench.synthesizer.waves_of_mels(mels, range(len(codes)))
    languages = [utterance.language for utterance in utterances]
    heard = bench.hear(waves, languages, "listening to reconstructions")
    tallies = _tallies(utterances, heard)
    for i, item in enumerate(outcome.items):
        item |= {
            "hypothesis": heard[i],
            "errors": tallies[i].errors,
            "units": tallies[i].units,
            "correct": tallies[i].errors == 0,
        }
        item["audio"] = {
            "generated": bench.save("reconstruction", item["id"], waves[i]),
            **item["audio"],
        }
    outcome.figures |= {
        "mel_mae_flow": _mean(errors),
        "reconstruction_judge_wer": text.total(tallies).rate,
    }
    names = {
        "en": "reconstruction_judge_wer_en",
        "zh": "reconstruction_judge_syllable_error_rate_zh",
    }
    outcome.figures |= by_language(tallies, outcome.items, names)
    return outcome


def codec(bench: Bench) -> Outcome:
    """The audio tokenizer and its decoder alone, before there is a flow.

    `mel_mae_by_codebooks` is of the refined mel with the first so many codebooks,
    `reconstruction_without_flow_judge_wer` what the judge makes of it, with all of them, by
    Griffin-Lim.

    Raises:
      EvalError: no recording, or one too short for a frame of codes.
    """
    utterances = bench.statements
    if not utterances:
        raise EvalError("reconstruction: no spoken statement in the data")
    codes = bench.codes([utterance.part for utterance in utterances])
    short = [u.id for u, own in zip(utterances, codes, strict=True) if not len(own)]
    if short:
        raise EvalError(f"reconstruction: {short[0]} is too short for a frame of codes")
    wanted = [_mel(utterance.part, HIFIGAN_MEL) for utterance in utterances]
    total = codes[0].shape[1]
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count < total] + [total]
    errors: dict[int, list[np.ndarray]] = {}
    for count in counts:
        decoded = bench.synthesizer.decode(codes, codebooks=count)
        errors[count] = [_error(d.mel_TM, w) for d, w in zip(decoded, wanted, strict=True)]
    languages = [utterance.language for utterance in utterances]
    plain = bench.synthesizer.invert([d.mel_TM for d in decoded], HIFIGAN_MEL)
    heard = bench.hear(plain, languages, "listening without the flow")
    tallies = _tallies(utterances, heard)
    items = []
    for i, utterance in enumerate(utterances):
        items.append(
            {
                "id": utterance.id,
                "language": utterance.language,
                "reference": utterance.part.text,
                "hypothesis": heard[i],
                "errors": tallies[i].errors,
                "units": tallies[i].units,
                "correct": tallies[i].errors == 0,
                "heard_without_flow": heard[i],
                "mel_mae": {str(count): _mean([errors[count][i]]) for count in counts},
                "audio": {
                    "without_flow": bench.save(
                        "reconstruction", f"{utterance.id}-without-flow", plain[i]
                    ),
                    "reference": bench.save("reference", utterance.id, bench.wave(utterance.part)),
                },
            }
        )
    figures: dict[str, Any] = {
        "mel_mae_by_codebooks": {str(count): _mean(own) for count, own in errors.items()},
        "reconstruction_without_flow_judge_wer": text.total(tallies).rate,
        "reconstruction_items": len(items),
        "reconstruction_judge": bench.judge.names,
    }
    return Outcome(figures, items)


def _tallies(utterances: Sequence[Utterance], heard: Sequence[str]) -> list[Tally]:
    return [
        text.score(u.part.text, said, u.language, text.SAID[u.language])
        for u, said in zip(utterances, heard, strict=True)
    ]


def _mel(part: Part, geometry: MelGeometry) -> np.ndarray:
    return log_mel(decode(part.audio, part.seconds, (geometry.sample_rate,))[0], geometry)


def _error(mel_TM: np.ndarray, wanted_TM: np.ndarray) -> np.ndarray:
    """Mean over the bins of each frame's |difference|; codes cover a little less than the audio."""
    frames = min(len(mel_TM), len(wanted_TM))
    return np.abs(mel_TM[:frames] - wanted_TM[:frames]).mean(axis=1)


def _mean(frames: list[np.ndarray]) -> float:
    return float(np.concatenate(frames).mean())
