"""Real speech through codes and back: mel errors, the judge, and measures of the sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL, MelGeometry, log_mel
from ba_jax.data.features import decode
from ba_jax.data.record import Part
from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import bootstrap, sound, text
from ba_jax.evals.suite import EvalError, Item, Line, Suite, items_of
from ba_jax.types import Failure
from ba_jax.vocab import SPEECH_TOKENIZER

_COUNTS = (1, 2, 4, 8, 16, 32)
_PLAIN = "reconstruction_without_flow_judge_wer"


class Codec(Suite):
    """The audio tokenizer and its decoder alone, before there is a flow.

    `mel_mae_by_codebooks` is of the refined mel with the first so many codebooks,
    `reconstruction_without_flow_judge_wer` what the judge makes of it, with all of them, by
    Griffin-Lim.
    """

    name = "codec"
    components = SPEECH_TOKENIZER
    judged = True

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no recording."""
        if not bench.statements:
            raise EvalError("reconstruction: no spoken statement in the data")
        return items_of(bench.statements)

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Codes, and the mel error with the first so many of them as [sum over frames, frames]."""
        found = bench.segments([item.record.parts[0] for item in items])
        usable = [i for i, own in enumerate(found) if not isinstance(own, Failure)]
        if not usable:
            return found
        codes = [found[i] for i in usable]
        wanted = [mel_of(items[i].record.parts[0], HIFIGAN_MEL) for i in usable]
        total = codes[0].shape[1]
        lines = [{"codes": own.tolist(), "mel_error": {}} for own in codes]
        for count in [count for count in _COUNTS if count < total] + [total]:
            decoded = bench.model.synthesizer.decode(codes, codebooks=count)
            for line, one, want in zip(lines, decoded, wanted, strict=True):
                line["mel_error"][str(count)] = mel_error(one.mel_TM, want)
        for i, line in zip(usable, lines, strict=True):
            found[i] = line
        return found

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """`without_flow`, the path of the refined mel's wave, beside `reference`."""
        codes = [np.asarray(line["codes"], np.int32) for line in made]
        plain = bench.model.synthesizer.waves_without_flow(codes)
        return [
            {
                "without_flow": bench.save("reconstruction", f"{item.id}-without-flow", wave),
                "reference": bench.recording(item.record.parts[0], item.id),
            }
            for item, wave in zip(items, plain, strict=True)
        ]

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """What is heard."""
        return heard(bench, items, given, "without_flow", "listening without the flow")

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed was not heard; it has no mel, and no mel error."""
        row = row_of(item, judged["without_flow"] if judged else "", judged is not None)
        row["heard_without_flow"] = row["hypothesis"]
        row |= {"errors_without_flow": row["errors"]}
        if made:
            row["mel_mae"] = {c: above / below for c, (above, below) in made["mel_error"].items()}
            row["mel_frames"] = {c: below for c, (_, below) in made["mel_error"].items()}
        row["audio"] = {
            "without_flow": given["without_flow"] if given else "",
            "reference": given["reference"] if given else "",
        }
        return row

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """Mel errors over all frames, and the rates of what was heard."""
        own = [row for row in rows if "mel_mae" in row]
        counts = list(own[0]["mel_mae"]) if own else []
        pairs = {
            count: [(row["mel_mae"][count], row["mel_frames"][count]) for row in own]
            for count in counts
        }
        found: dict[str, Any] = {
            "mel_mae_by_codebooks": {count: mean_of(pair) for count, pair in pairs.items()}
        }
        if counts:
            found["mel_mae" + bootstrap.SUFFIX] = _interval(pairs[counts[-1]])
        found["mel_mae_scored"] = "nats, mean over bins and frames of the items that gave a mel"
        found |= bootstrap.rate_figures(_PLAIN, rows, "errors_without_flow")
        found["reconstruction_items"] = len(rows)
        found["reconstruction_judge"] = bench.judge.names
        found["reconstruction_normaliser"] = dict(text.NORMALISERS)
        return found


class Reconstruction(Codec):
    """What `Codec` gives; and through the flow (or what `synthesis` says): `mel_mae_flow`,
    `reconstruction_judge_wer`, and the measures of `ba_jax.evals.scoring.sound`, of waves at 16 kHz
    cut to the same length."""

    name = "reconstruction"
    components = (*SPEECH_TOKENIZER, "flow_prenet", "flow_unet")
    speaks = True

    def require(self) -> None:
        """Raises EvalError: no packages to measure with."""
        sound.require()

    def present(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line]
    ) -> list[Line | Failure]:
        """Beside the codec's, `generated`, and the mel error of the flow."""
        lines = super().present(bench, items, made)
        codes = [np.asarray(line["codes"], np.int32) for line in made]
        numbers = [item.number for item in items]
        mels = bench.model.synthesizer.flow_mels(codes, numbers)
        waves = bench.model.synthesizer.waves_of_mels(mels, numbers)
        for line, item, mel_TM, wave in zip(lines, items, mels, waves, strict=True):
            line["mel_error_flow"] = mel_error(mel_TM, mel_of(item.record.parts[0], FLOW_MEL))
            line["generated"] = bench.save(self.name, item.id, wave)
        return lines

    def judge(
        self, bench: Bench, items: Sequence[Item], made: Sequence[Line], given: Sequence[Line]
    ) -> list[Line | Failure]:
        """What is heard with and without the flow, and how it sounds."""
        plain = super().judge(bench, items, made, given)
        full = heard(bench, items, given, "generated", "listening to reconstructions")
        pairs = [(bench.load(one["generated"]), bench.load(one["reference"])) for one in given]
        sounds = bench.judge.map(sound.measure, pairs)
        return [
            next((one for one in (line, more) if isinstance(one, Failure)), None)
            or {**line, **more, "sound": own}
            for line, more, own in zip(plain, full, sounds, strict=True)
        ]

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """As the codec's; what was heard is of the flow."""
        plain = super().score(bench, item, made, given, judged)
        row = plain | row_of(item, judged["generated"] if judged else "", judged is not None)
        if given:
            above, below = given["mel_error_flow"]
            row |= {"mel_mae_flow": above / below, "mel_frames_flow": below}
        if judged:
            row["sound"] = judged["sound"]
        row["audio"] = {"generated": given["generated"] if given else "", **row["audio"]}
        return row

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """As the codec's, and more."""
        found = super().figures(bench, rows)
        pairs = [(r["mel_mae_flow"], r["mel_frames_flow"]) for r in rows if "mel_mae_flow" in r]
        found["mel_mae_flow"] = mean_of(pairs) if pairs else None
        found["mel_mae_flow" + bootstrap.SUFFIX] = _interval(pairs)
        found |= bootstrap.rate_figures("reconstruction_judge_wer", rows)
        names = {
            "en": "reconstruction_judge_wer_en",
            "zh": "reconstruction_judge_syllable_error_rate_zh",
        }
        found |= bootstrap.by_language(rows, names)
        found |= sound.figures([row["sound"] for row in rows if "sound" in row])
        return found


def heard(
    bench: Bench, items: Sequence[Item], given: Sequence[Line], key: str, what: str
) -> list[Line | Failure]:
    """What the judge hears of the waves whose paths are under `key`, under that key."""
    waves = [bench.load(line[key]) for line in given]
    texts = bench.hear(waves, [item.language for item in items], what)
    return [said if isinstance(said, Failure) else {key: said} for said in texts]


def row_of(item: Item, heard: str, was_judged: bool) -> Line:
    """What is scored of what was heard of an item."""
    said, language = item.record.parts[0].text, item.language
    tally = text.tally(said, heard, language, text.SAID[language])
    return {
        "id": item.id,
        "language": language,
        "reference": said,
        "hypothesis": heard,
        "errors": tally.errors,
        "units": tally.units,
        "correct": was_judged and tally.errors == 0,
    }


def mel_of(part: Part, geometry: MelGeometry) -> np.ndarray:
    """A recording's log-mel (T, M)."""
    return log_mel(decode(part.audio, part.seconds, (geometry.sample_rate,))[0], geometry)


def mel_error(mel_TM: np.ndarray, wanted_TM: np.ndarray) -> tuple[float, int]:
    """(sum over frames of the mean |difference| of their bins, frames).

    Codes cover a little less than the audio.
    """
    frames = min(len(mel_TM), len(wanted_TM))
    errors_T = np.abs(mel_TM[:frames] - wanted_TM[:frames]).mean(axis=1, dtype=np.float64)
    return float(errors_T.sum()), frames


def mean_of(pairs: Sequence[tuple[float, int]]) -> float:
    """Mean over all frames of (mean of an item's frames, how many)."""
    return sum(mean * frames for mean, frames in pairs) / sum(frames for _, frames in pairs)


def _interval(pairs: Sequence[tuple[float, int]]) -> list[float] | None:
    return bootstrap.ratio([m * frames for m, frames in pairs], [frames for _, frames in pairs])
