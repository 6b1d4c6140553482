"""The cost of fewer flow steps and of streaming: real speech through codes and back.

For 2, 4, 6 and 10 Euler steps, and for 10 with a stream's blocks and norms (`for_streaming`, the
output of `StreamingSynthesizer`): the mel error and the judge's error rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ba_jax.audio.mel import FLOW_MEL
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results
from ba_jax.evals.scoring import bootstrap, mel
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.sampling.stream import for_streaming
from ba_jax.sampling.synthesize import SynthesisSettings
from ba_jax.types import Failure
from ba_jax.vocab import SPEECH_TOKENIZER

STEPS = (2, 4, 6, 10)
STREAMED = "10_streamed"
VARIANTS = (*map(str, STEPS), STREAMED)


class FlowSteps(Suite):
    """For each variant N: `flow_mel_mae_N` (nats, against the recording's mel, over all frames) and
    `flow_judge_wer_N`."""

    name = "flow_steps"
    components = (*SPEECH_TOKENIZER, "flow_prenet", "flow_unet")
    speaks = judged = True

    def generate(self, bench: Bench, items: Items) -> Results:
        encoded = bench.encode_segments([item.record.parts[0] for item in items])
        return [c if isinstance(c, Failure) else {"codes": c.tolist()} for c in encoded]

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Save each variant's waves, with its mel error."""
        codes, numbers = spoken.generated_codes(generated), [item.number for item in items]
        references = [mel.recorded_mel(item.record.parts[0], FLOW_MEL) for item in items]
        lines: list[Line] = [
            {
                "mel_error": {},
                "reference": bench.recordings.save_reference(item.record.parts[0], item.id),
            }
            for item in items
        ]
        for name, settings in variants(bench.settings.synthesis).items():
            synthesizer = bench.model.synthesizer_with(settings)
            mels = synthesizer.flow_mels(codes, numbers)
            waves = synthesizer.waves_of_mels(mels, numbers)
            for line, item, mel_TM, reference_TM, wave in zip(
                lines, items, mels, references, waves, strict=True
            ):
                line["mel_error"][name] = mel.mel_error(mel_TM, reference_TM)
                line[name] = bench.recordings.save(self.name, f"{item.id}-{name}", wave)
        return lines

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        descriptions = {name: f"listening to {name} steps" for name in VARIANTS}
        return spoken.hear_all(bench, items, presented, descriptions)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Return the row of the most steps, and each variant's errors."""
        reference = item.record.parts[0].text
        row = spoken.score_heard(item, reference, outputs.judged.get(str(STEPS[-1])))
        row["heard"] = {name: outputs.judged.get(name, "") for name in VARIANTS}
        for name, heard in row["heard"].items():
            row[f"errors_{name}"] = spoken.score_heard(item, reference, heard)["errors"]
        if outputs.presented:
            row |= mel.error_columns(outputs.presented["mel_error"])
        names = ("reference", *VARIANTS)
        row["audio"] = {name: outputs.presented.get(name, "") for name in names}
        return row

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        figures: dict[str, Any] = {"flow_steps_items": len(rows)}
        known = [row for row in rows if "mel_mae" in row]
        for name in VARIANTS:
            pairs = [(row["mel_mae"][name], row["mel_frames"][name]) for row in known]
            figures[f"flow_mel_mae_{name}"] = mel.pooled_error(pairs) if pairs else None
            figures |= bootstrap.rate_figures(f"flow_judge_wer_{name}", rows, f"errors_{name}")
        figures["flow_steps_judge"] = bench.judge.names
        return figures


def variants(settings: SynthesisSettings) -> Mapping[str, SynthesisSettings]:
    """Return each variant's settings by name."""
    settings = dataclasses.replace(settings, mel="flow")
    results = {str(steps): dataclasses.replace(settings, steps=steps) for steps in STEPS}
    return {**results, STREAMED: dataclasses.replace(for_streaming(settings), steps=STEPS[-1])}


SUITES = (FlowSteps(),)
