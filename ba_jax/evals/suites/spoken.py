"""What suites share whose answers are speech: waves as files, heard by the judge, scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import text
from ba_jax.evals.suite import Item, Line
from ba_jax.types import Failure


def present(
    bench: Bench,
    suite: str,
    items: Sequence[Item],
    made: Sequence[Line],
    references: Sequence[str],
) -> list[Line | Failure]:
    """`generated`, the path of what the codes say ("" for none), beside `reference`."""
    codes = [np.asarray(line["codes"], np.int32) for line in made]
    waves = bench.speech_of(codes, [item.number for item in items])
    return [
        wave
        if isinstance(wave, Failure)
        else {"generated": bench.save(suite, item.id, wave), "reference": reference}
        for item, wave, reference in zip(items, waves, references, strict=True)
    ]


def judge(bench: Bench, items: Sequence[Item], given: Sequence[Line]) -> list[Line | Failure]:
    """`heard` and `heard_on_reference`; an item whose generated wave is not heard fails.

    Where only the reference is not heard, `reference_failed` says why.
    """
    languages = [item.language for item in items]
    waves = [bench.load(line["generated"]) for line in given]
    heard = bench.hear(waves, languages, "listening")
    real = [bench.load(line["reference"]) for line in given]
    heard_real = bench.hear(real, languages, "listening to the reference")
    found: list[Line | Failure] = []
    for said, said_real in zip(heard, heard_real, strict=True):
        if isinstance(said, Failure):
            found.append(said)
        elif isinstance(said_real, Failure):
            found.append(
                {"heard": said, "heard_on_reference": "", "reference_failed": said_real.reason}
            )
        else:
            found.append({"heard": said, "heard_on_reference": said_real})
    return found


def row(
    item: Item,
    reference: str,
    unit: str,
    made: Line | None,
    given: Line | None,
    judged: Line | None,
) -> Line:
    """An item's result: what was heard against what was to be said, in units.

    What failed said nothing; its reference was not heard, and says nothing of the judge.
    """
    heard = judged["heard"] if judged else ""
    tally = text.tally(reference, heard, item.language, unit)
    found = {
        "id": item.id,
        "language": item.language,
        "reference": reference,
        "hypothesis": heard,
        "errors": tally.errors,
        "units": tally.units,
        "correct": judged is not None and tally.errors == 0,
        "frames": len(made["codes"]) if made else 0,
        "complete": bool(made and made["complete"]),
        "audio": {
            "generated": given["generated"] if given else "",
            "reference": given["reference"] if given else "",
        },
    }
    if judged:
        heard_real = judged["heard_on_reference"]
        own = text.tally(reference, heard_real, item.language, unit)
        found |= {
            "heard_on_reference": heard_real,
            "errors_on_reference": own.errors,
            "units_on_reference": own.units,
        }
        found |= {key: judged[key] for key in ("reference_failed",) if key in judged}
    return found
