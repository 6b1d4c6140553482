"""What fewer steps of the flow cost, and what streaming costs: real speech through codes and back.

For 2, 4, 6 and 10 Euler steps, and for 10 with a stream's blocks and norms (`for_streaming`: what
`StreamingSynthesizer` gives): mel error and the judge's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio.mel import FLOW_MEL
from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import EvalError, Item, Line, Suite, items_of
from ba_jax.evals.suites import reconstruction
from ba_jax.sampling.stream import for_streaming
from ba_jax.sampling.synthesize import SynthesisSettings
from ba_jax.types import Failure

STEPS = (2, 4, 6, 10)
STREAMED = "10_streamed"
VARIANTS = (*map(str, STEPS), STREAMED)


class FlowSteps(Suite):
    """For each number of steps, and for `STREAMED`: `flow_mel_mae_N` (nats, against the recording's
    mel, over all frames) and `flow_judge_wer_N`."""

    name = "flow_steps"
    components = ("audio_encoder", "vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")
    speaks = judged = True

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no recording."""
        if not bench.statements:
            raise EvalError("flow_steps: no spoken statement in the data")
        return items_of(bench.statements)

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Codes."""
        found = bench.segments([item.record.parts[0] for item in items])
        return [one if isinstance(one, Failure) else {"codes": one.tolist()} for one in found]

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """The paths of each variant's waves and its mel error."""
        codes = [np.asarray(line["codes"], np.int32) for line in made]
        numbers = [item.number for item in items]
        wanted = [reconstruction.mel_of(item.record.parts[0], FLOW_MEL) for item in items]
        lines: list[Line] = [
            {"mel_error": {}, "reference": bench.recording(item.record.parts[0], item.id)}
            for item in items
        ]
        for name, settings in variants(bench.settings.synthesis).items():
            synthesizer = bench.model.synthesizer_with(settings)
            mels = synthesizer.flow_mels(codes, numbers)
            waves = synthesizer.waves_of_mels(mels, numbers)
            for line, item, mel, want, wave in zip(lines, items, mels, wanted, waves, strict=True):
                line["mel_error"][name] = reconstruction.mel_error(mel, want)
                line[name] = bench.save(self.name, f"{item.id}-{name}", wave)
        return lines

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """What is heard of each variant."""
        found: list[Line | Failure] = [{} for _ in items]
        for name in VARIANTS:
            heard = reconstruction.heard(bench, items, given, name, f"listening to {name} steps")
            for i, one in enumerate(heard):
                if isinstance(one, Failure) or isinstance(found[i], Failure):
                    found[i] = one if isinstance(one, Failure) else found[i]
                else:
                    found[i] |= one
        return found

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """The row of the most steps; what failed was not heard, and has no mel error."""
        said, language = item.record.parts[0].text, item.language
        best = str(STEPS[-1])
        row = reconstruction.row_of(item, judged[best] if judged else "", judged is not None)
        row["heard"] = {name: judged[name] if judged else "" for name in VARIANTS}
        for name in VARIANTS:
            tally = text.tally(said, row["heard"][name], language, text.SAID[language])
            row[f"errors_{name}"] = tally.errors
        if given:
            errors = given["mel_error"]
            row["mel_mae"] = {name: above / below for name, (above, below) in errors.items()}
            row["mel_frames"] = {name: below for name, (_, below) in errors.items()}
        names = ("reference", *VARIANTS)
        row["audio"] = {name: given[name] if given else "" for name in names}
        return row

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """Mel errors over all frames, and the rates of what was heard."""
        found: dict[str, Any] = {"flow_steps_items": len(rows)}
        own = [row for row in rows if "mel_mae" in row]
        for name in VARIANTS:
            pairs = [(row["mel_mae"][name], row["mel_frames"][name]) for row in own]
            found[f"flow_mel_mae_{name}"] = reconstruction.mean_of(pairs) if pairs else None
            found |= bootstrap.rate_figures(f"flow_judge_wer_{name}", rows, f"errors_{name}")
        found["flow_steps_judge"] = bench.judge.names
        return found


def variants(settings: SynthesisSettings) -> Mapping[str, SynthesisSettings]:
    """Name -> how codes become waves."""
    own = dataclasses.replace(settings, mel="flow")
    found = {str(steps): dataclasses.replace(own, steps=steps) for steps in STEPS}
    return {**found, STREAMED: dataclasses.replace(for_streaming(own), steps=STEPS[-1])}
