"""What fewer steps of the flow cost, and what streaming costs: real speech through codes and back.

For 2, 4, 6 and 10 Euler steps, and for 10 with a stream's blocks and norms (`for_streaming`: what
`StreamingSynthesizer` gives): mel error, the judge's, and seconds.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from ba_jax.audio.mel import FLOW_MEL, log_mel
from ba_jax.data.features import decode
from ba_jax.evals import text
from ba_jax.evals.base import Bench, EvalError, Outcome, Utterance
from ba_jax.sampling.stream import for_streaming
from ba_jax.sampling.synthesize import SynthesisSettings, Synthesizer

STEPS = (2, 4, 6, 10)
STREAMED = "10_streamed"


def run(bench: Bench) -> Outcome:
    """For each number of steps, and for `STREAMED`: `flow_mel_mae_N` (nats, against the recording's
    mel, pooled over frames), `flow_judge_wer_N`, and `flow_seconds_N` (from all codes to mels,
    the second time, as the first compiles).

    Raises:
      EvalError: no recording, or one too short for a frame of codes.
    """
    utterances = bench.statements
    if not utterances:
        raise EvalError("flow_steps: no spoken statement in the data")
    codes = bench.codes([utterance.part for utterance in utterances])
    short = [u.id for u, own in zip(utterances, codes, strict=True) if not len(own)]
    if short:
        raise EvalError(f"flow_steps: {short[0]} is too short for a frame of codes")
    wanted = [_mel(utterance) for utterance in utterances]
    items = [
        {
            "id": utterance.id,
            "language": utterance.language,
            "reference": utterance.part.text,
            "mel_mae": {},
            "heard": {},
            "audio": {
                "reference": bench.save("reference", utterance.id, bench.wave(utterance.part))
            },
        }
        for utterance in utterances
    ]
    figures: dict[str, Any] = {}
    for name, settings in _variants(bench.settings.synthesis).items():
        synthesizer = Synthesizer(bench.config, bench.variables, settings, run=bench.judge.map)
        seeds = range(len(codes))
        synthesizer.flow_mels(codes, seeds)
        started = time.perf_counter()
        mels = synthesizer.flow_mels(codes, seeds)
        seconds = time.perf_counter() - started
        waves = synthesizer.waves_of_mels(mels, seeds)
        languages = [utterance.language for utterance in utterances]
        heard = bench.hear(waves, languages, f"listening to {name} steps")
        tallies, errors = [], []
        for i, utterance in enumerate(utterances):
            said, language = utterance.part.text, utterance.language
            tallies.append(text.score(said, heard[i], language, text.SAID[language]))
            frames = min(len(mels[i]), len(wanted[i]))
            errors.append(np.abs(mels[i][:frames] - wanted[i][:frames]).mean(axis=1))
            # The last variant's are those of the table of items.
            items[i] |= {
                "hypothesis": heard[i],
                "errors": tallies[-1].errors,
                "units": tallies[-1].units,
                "correct": tallies[-1].errors == 0,
            }
            items[i]["mel_mae"][name] = float(errors[-1].mean())
            items[i]["heard"][name] = heard[i]
            items[i]["audio"][name] = bench.save("flow_steps", f"{utterance.id}-{name}", waves[i])
        figures[f"flow_mel_mae_{name}"] = float(np.concatenate(errors).mean())
        figures[f"flow_judge_wer_{name}"] = text.total(tallies).rate
        figures[f"flow_seconds_{name}"] = seconds
    figures["flow_steps_items"] = len(items)
    figures["flow_steps_judge"] = bench.judge.names
    return Outcome(figures, items)


def _variants(settings: SynthesisSettings) -> dict[str, SynthesisSettings]:
    own = dataclasses.replace(settings, mel="flow")
    found = {str(steps): dataclasses.replace(own, steps=steps) for steps in STEPS}
    return {STREAMED: dataclasses.replace(for_streaming(own), steps=STEPS[-1]), **found}


def _mel(utterance: Utterance) -> np.ndarray:
    part = utterance.part
    return log_mel(decode(part.audio, part.seconds, (FLOW_MEL.sample_rate,))[0], FLOW_MEL)
