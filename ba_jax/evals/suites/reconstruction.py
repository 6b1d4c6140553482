"""Real speech through codes and back: mel errors, the judge, and measures of the sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import (
    EvalItem,
    Items,
    Line,
    Lines,
    Outputs,
    Results,
    replace_usable,
)
from ba_jax.evals.scoring import bootstrap, mel, sound, text
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import spoken
from ba_jax.types import Failure
from ba_jax.vocab import SPEECH_TOKENIZER

_COUNTS = (1, 2, 4, 8, 16, 32)
_WITHOUT_FLOW = "reconstruction_without_flow_judge_wer"


class Codec(Suite):
    """The audio tokenizer and its decoder alone, before a flow is trained.

    `mel_mae_by_codebooks` is the error of the refined mel from the first 1, 2, 4, ... codebooks,
    `reconstruction_without_flow_judge_wer` the judge's error rate on its wave by Griffin-Lim, with
    all codebooks.
    """

    name = "codec"
    components = SPEECH_TOKENIZER
    judged = True
    # Key of a wave that the judge hears -> name of the work, for the progress.
    descriptions: Mapping[str, str] = {"without_flow": "listening without the flow"}

    def generate(self, bench: Bench, items: Items) -> Results:
        """Encode; `mel_error` maps a number of codebooks to [sum over frames, frames]."""
        encoded = bench.encode_segments([item.record.parts[0] for item in items])

        def decode(usable: list[int]) -> list[Line]:
            codes = [encoded[i] for i in usable]
            references = [mel.recorded_mel(items[i].record.parts[0], HIFIGAN_MEL) for i in usable]
            lines = [{"codes": codes_NQ.tolist(), "mel_error": {}} for codes_NQ in codes]
            total = codes[0].shape[1]
            for count in [count for count in _COUNTS if count < total] + [total]:
                decoded = bench.model.synthesizer.decode(codes, codebooks=count)
                for line, output, reference_TM in zip(lines, decoded, references, strict=True):
                    line["mel_error"][str(count)] = mel.mel_error(output.mel_TM, reference_TM)
            return lines

        return replace_usable(encoded, decode)

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Save the refined mel's wave: the path `without_flow`, beside `reference`."""
        waves = bench.model.synthesizer.waves_without_flow(spoken.generated_codes(generated))
        return [
            {
                "without_flow": bench.recordings.save(
                    "reconstruction", f"{item.id}-without-flow", wave
                ),
                "reference": bench.recordings.save_reference(item.record.parts[0], item.id),
            }
            for item, wave in zip(items, waves, strict=True)
        ]

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        return spoken.hear_all(bench, items, presented, self.descriptions)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Count errors; a failed item has every unit wrong, and no mel error without a mel."""
        reference = item.record.parts[0].text
        row = spoken.score_heard(item, reference, outputs.judged.get("without_flow"))
        row["heard_without_flow"] = row["hypothesis"]
        row["errors_without_flow"] = row["errors"]
        if outputs.generated:
            row |= mel.error_columns(outputs.generated["mel_error"])
        keys = ("without_flow", "reference")
        row["audio"] = {key: outputs.presented.get(key, "") for key in keys}
        return row

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        known = [row for row in rows if "mel_mae" in row]
        counts = list(known[0]["mel_mae"]) if known else []
        pairs = {
            count: [(row["mel_mae"][count], row["mel_frames"][count]) for row in known]
            for count in counts
        }
        figures: dict[str, Any] = {
            "mel_mae_by_codebooks": {count: mel.pooled_error(pairs[count]) for count in counts}
        }
        if counts:
            figures["mel_mae" + bootstrap.SUFFIX] = mel.pooled_interval(pairs[counts[-1]])
        figures["mel_mae_scored"] = "nats, mean over bins and frames of the items that gave a mel"
        figures |= bootstrap.rate_figures(_WITHOUT_FLOW, rows, "errors_without_flow")
        figures["reconstruction_items"] = len(rows)
        figures["reconstruction_judge"] = bench.judge.names
        figures["reconstruction_normaliser"] = text.normalisers()
        return figures


class Reconstruction(Codec):
    """`Codec`, and speech through the flow (or as `synthesis` is set): `mel_mae_flow`,
    `reconstruction_judge_wer`, and the measures of `ba_jax.evals.scoring.sound`."""

    name = "reconstruction"
    components = (*SPEECH_TOKENIZER, "flow_prenet", "flow_unet")
    speaks = True
    descriptions = {**Codec.descriptions, "generated": "listening to reconstructions"}

    def require(self) -> None:
        """Raise EvalError if a package that measures sound is not installed."""
        sound.require()

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Save the flow's wave as well: `generated`, with its mel error."""
        lines = super().present(bench, items, generated)
        codes, numbers = spoken.generated_codes(generated), [item.number for item in items]
        mels = bench.model.synthesizer.flow_mels(codes, numbers)
        waves = bench.model.synthesizer.waves_of_mels(mels, numbers)
        for line, item, mel_TM, wave in zip(lines, items, mels, waves, strict=True):
            reference_TM = mel.recorded_mel(item.record.parts[0], FLOW_MEL)
            line["mel_error_flow"] = mel.mel_error(mel_TM, reference_TM)
            line["generated"] = bench.recordings.save(self.name, item.id, wave)
        return lines

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        lines = super().judge(bench, items, presented)
        pairs = [
            [bench.recordings.load(line[key]) for key in ("generated", "reference")]
            for line in presented
        ]
        for line, measures in zip(lines, bench.judge.map(sound.measure, pairs), strict=True):
            if not isinstance(line, Failure):
                line["sound"] = measures
        return lines

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Count errors of the flow's wave, beside the codec's row."""
        row = super().score(bench, item, outputs)
        heard = outputs.judged.get("generated")
        row |= spoken.score_heard(item, item.record.parts[0].text, heard)
        if outputs.presented:
            total, frames = outputs.presented["mel_error_flow"]
            row |= {"mel_mae_flow": total / frames, "mel_frames_flow": frames}
        if outputs.judged:
            row["sound"] = outputs.judged["sound"]
        row["audio"] = {"generated": outputs.presented.get("generated", ""), **row["audio"]}
        return row

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        figures = super().figures(bench, rows)
        pairs = [(r["mel_mae_flow"], r["mel_frames_flow"]) for r in rows if "mel_mae_flow" in r]
        figures["mel_mae_flow"] = mel.pooled_error(pairs) if pairs else None
        figures["mel_mae_flow" + bootstrap.SUFFIX] = mel.pooled_interval(pairs)
        figures |= bootstrap.rate_figures("reconstruction_judge_wer", rows)
        names = {
            "en": "reconstruction_judge_wer_en",
            "zh": "reconstruction_judge_syllable_error_rate_zh",
        }
        figures |= bootstrap.language_figures(rows, names)
        figures |= sound.figures([row["sound"] for row in rows if "sound" in row])
        return figures


SUITES = (Codec(), Reconstruction())
