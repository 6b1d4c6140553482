"""Figures of an answer judge's verdicts."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from ba_jax.evals.scoring import bootstrap


def figures(name: str, verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute the figures of a subset's verdicts.

    `name` is the share of right answers, or the mean score from 1 to 10, of all that were judged;
    absent if none was. An invalid verdict counts as wrong and is left out of the mean; an item that
    failed earlier has the verdict "wrong" or the lowest score. `NAME_items`, `_judged`, `_invalid`
    and `_unjudged` count verdicts; `_invalid_ids` and `_unjudged_reasons` list them.
    """
    groups = collections.defaultdict(list)
    for verdict in verdicts:
        groups[verdict["verdict"]].append(verdict)
    invalid, unjudged = groups["invalid"], groups["unjudged"]
    results: dict[str, Any] = {}
    if groups["scored"]:
        results |= bootstrap.mean_figures(name, [v["score"] for v in groups["scored"]])
    elif groups["right"] or groups["wrong"]:
        judged = [v["verdict"] == "right" for v in verdicts if v["verdict"] != "unjudged"]
        results |= bootstrap.mean_figures(name, judged)
    results |= {
        f"{name}_items": len(verdicts),
        f"{name}_judged": len(verdicts) - len(unjudged),
        f"{name}_invalid": len(invalid),
        f"{name}_unjudged": len(unjudged),
    }
    if invalid:
        results[f"{name}_invalid_ids"] = [verdict["id"] for verdict in invalid]
    if unjudged:
        reasons = collections.Counter(verdict["reason"] for verdict in unjudged)
        results[f"{name}_unjudged_reasons"] = dict(reasons)
    return results
