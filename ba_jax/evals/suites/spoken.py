"""Shared by suites with spoken answers: waves as files, recognised by the judge, scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results
from ba_jax.evals.scoring import text
from ba_jax.types import Failure


def generated_codes(generated: Lines) -> list[np.ndarray]:
    """Return the codes (N, Q) of lines."""
    return [np.asarray(line["codes"], np.int32) for line in generated]


def present(
    bench: Bench, suite: str, items: Items, generated: Lines, references: Sequence[str]
) -> Results:
    """Save the waves of generated codes: `generated`, a path ("" for none), beside `reference`."""
    waves = bench.synthesize(generated_codes(generated), [item.number for item in items])
    return [
        wave
        if isinstance(wave, Failure)
        else {"generated": bench.recordings.save(suite, item.id, wave), "reference": reference}
        for item, wave, reference in zip(items, waves, references, strict=True)
    ]


def hear(
    bench: Bench, items: Items, presented: Lines, key: str, description: str
) -> list[str | Failure]:
    """Recognise the waves whose paths are under `key`."""
    waves = [bench.recordings.load(line[key]) for line in presented]
    return bench.hear(waves, [item.language for item in items], description)


def hear_all(
    bench: Bench, items: Items, presented: Lines, descriptions: Mapping[str, str]
) -> Results:
    """Recognise the waves under each key; an item fails with the first wave that is not heard.

    Args:
      descriptions: key -> name of the work, for the progress.
    """
    lines: Results = [{} for _ in items]
    for key, description in descriptions.items():
        for i, heard in enumerate(hear(bench, items, presented, key, description)):
            if isinstance(lines[i], Failure):
                continue
            lines[i] = heard if isinstance(heard, Failure) else lines[i] | {key: heard}
    return lines


def judge(bench: Bench, items: Items, presented: Lines) -> Results:
    """Return `heard` and `heard_on_reference`; an item whose generated wave is not heard fails.

    If only the reference is not heard, `reference_failed` is the reason.
    """
    texts = hear(bench, items, presented, "generated", "listening")
    references = hear(bench, items, presented, "reference", "listening to the reference")
    lines: Results = []
    for heard, reference in zip(texts, references, strict=True):
        if isinstance(heard, Failure):
            lines.append(heard)
        elif isinstance(reference, Failure):
            line = {"heard": heard, "heard_on_reference": ""}
            lines.append(line | {"reference_failed": reference.reason})
        else:
            lines.append({"heard": heard, "heard_on_reference": reference})
    return lines


def score_heard(item: EvalItem, reference: str, heard: str | None) -> Line:
    """Score the words heard against the reference; None (a failure) has every unit wrong."""
    unit = text.SPOKEN_UNIT[item.language]
    tally = text.tally(reference, heard or "", item.language, unit)
    return {
        "reference": reference,
        "hypothesis": heard or "",
        "errors": tally.errors,
        "units": tally.units,
        "correct": heard is not None and tally.errors == 0,
    }


def score(item: EvalItem, reference: str, outputs: Outputs) -> Line:
    """Score an item of `present` and `judge`, and the judge itself on the reference's recording.

    A failed item has every unit wrong; its reference was not heard and does not count.
    """
    generated, presented, judged = outputs
    row = score_heard(item, reference, judged.get("heard"))
    row |= {
        "frames": len(generated.get("codes", ())),
        "complete": generated.get("complete", False),
        "audio": {key: presented.get(key, "") for key in ("generated", "reference")},
    }
    if judged:
        heard = judged["heard_on_reference"]
        tally = text.tally(reference, heard, item.language, text.SPOKEN_UNIT[item.language])
        row |= {
            "heard_on_reference": heard,
            "errors_on_reference": tally.errors,
            "units_on_reference": tally.units,
        }
        if "reference_failed" in judged:
            row["reference_failed"] = judged["reference_failed"]
    return row
