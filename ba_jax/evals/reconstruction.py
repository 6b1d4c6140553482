"""Real speech through codes and back: mel error by the number of codebooks, and the judge."""

from __future__ import annotations

from typing import Any

import numpy as np

from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL, MelGeometry, log_mel
from ba_jax.data.features import decode
from ba_jax.data.record import Part
from ba_jax.evals import text
from ba_jax.evals.asr import by_language
from ba_jax.evals.base import Bench, EvalError, Outcome


def run(bench: Bench) -> Outcome:
    """`mel_mae_by_codebooks`, of the refined mel; `reconstruction_judge_wer`, through all codes.

    Also of the flow's mel (`mel_mae_flow`), and the judge on the refined mel alone
    (`reconstruction_without_flow_judge_wer`, by Griffin-Lim).

    Raises:
      EvalError: no recording.
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
    by_codebooks = {str(count): _mean(own) for count, own in errors.items()}

    languages = [utterance.language for utterance in utterances]
    plain = bench.synthesizer.invert([d.mel_TM for d in decoded], HIFIGAN_MEL)
    heard_plain = bench.hear(plain, languages, "listening without the flow")
    mels = bench.synthesizer.flow_mels(codes, range(len(codes)))
    flow = [_error(m, _mel(u.part, FLOW_MEL)) for m, u in zip(mels, utterances, strict=True)]
    waves = bench.synthesizer.waves_of_mels(mels, range(len(codes)))
    heard = bench.hear(waves, languages, "listening to reconstructions")
    items, tallies, plain_tallies = [], [], []
    for i, utterance in enumerate(utterances):
        said, language = utterance.part.text, utterance.language
        tallies.append(text.score(said, heard[i], language, text.SAID[language]))
        plain_tallies.append(text.score(said, heard_plain[i], language, text.SAID[language]))
        items.append(
            {
                "id": utterance.id,
                "language": language,
                "reference": said,
                "hypothesis": heard[i],
                "errors": tallies[-1].errors,
                "units": tallies[-1].units,
                "correct": tallies[-1].errors == 0,
                "heard_without_flow": heard_plain[i],
                "mel_mae": {str(count): _mean([errors[count][i]]) for count in counts},
                "audio": {
                    "generated": bench.save("reconstruction", utterance.id, waves[i]),
                    "without_flow": bench.save(
                        "reconstruction", f"{utterance.id}-without-flow", plain[i]
                    ),
                    "reference": bench.save("reference", utterance.id, bench.wave(utterance.part)),
                },
            }
        )
    figures: dict[str, Any] = {
        "mel_mae_by_codebooks": by_codebooks,
        "mel_mae_flow": _mean(flow),
        "reconstruction_judge_wer": text.total(tallies).rate,
        "reconstruction_without_flow_judge_wer": text.total(plain_tallies).rate,
        "reconstruction_items": len(items),
        "reconstruction_judge": bench.judge.names,
    }
    names = {
        "en": "reconstruction_judge_wer_en",
        "zh": "reconstruction_judge_syllable_error_rate_zh",
    }
    figures |= by_language(tallies, items, names)
    return Outcome(figures, items)


def _mel(part: Part, geometry: MelGeometry) -> np.ndarray:
    return log_mel(decode(part.audio, part.seconds, (geometry.sample_rate,))[0], geometry)


def _error(mel_TM: np.ndarray, wanted_TM: np.ndarray) -> np.ndarray:
    """Mean over the bins of each frame's |difference|; codes cover a little less than the audio."""
    frames = min(len(mel_TM), len(wanted_TM))
    return np.abs(mel_TM[:frames] - wanted_TM[:frames]).mean(axis=1)


def _mean(frames: list[np.ndarray]) -> float:
    return float(np.concatenate(frames).mean())
