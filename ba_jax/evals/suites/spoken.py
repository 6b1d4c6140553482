"""Shared by suites with spoken answers: waves as files, recognised by the judge, scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results
from ba_jax.evals.scoring import text
from ba_jax.speech.languages import language_pack
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
    """Recognise the waves under each key of `descriptions` (names of the work, for the progress).

    An item fails with the first wave that is not heard.
    """
    columns = [hear(bench, items, presented, *column) for column in descriptions.items()]
    return [
        next((text for text in texts if isinstance(text, Failure)), None)
        or dict(zip(descriptions, texts, strict=True))
        for texts in zip(*columns, strict=True)
    ]


def judge(bench: Bench, items: Items, presented: Lines) -> Results:
    """Return `heard` and `heard_on_reference`; an item whose generated wave is not heard fails.

    If only the reference is not heard, `reference_failed` is the reason.
    """
    texts = hear(bench, items, presented, "generated", "listening")
    references = hear(bench, items, presented, "reference", "listening to the reference")
    lines: Results = []
    for heard, reference in zip(texts, references, strict=True):
        line = {"heard": heard, "heard_on_reference": reference}
        if isinstance(reference, Failure):
            line |= {"heard_on_reference": "", "reference_failed": reference.reason}
        lines.append(heard if isinstance(heard, Failure) else line)
    return lines


def score_heard(item: EvalItem, reference: str, heard: str | None) -> Line:
    """Score the words heard against the reference; None (a failure) has every unit wrong."""
    return text.score_text(
        reference, heard, item.language, language_pack(item.language).spoken_unit
    )


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
        on_reference = score_heard(item, reference, heard)
        row |= {f"{key}_on_reference": on_reference[key] for key in ("errors", "units")}
        row["heard_on_reference"] = heard
        if "reference_failed" in judged:
            row["reference_failed"] = judged["reference_failed"]
    return row
