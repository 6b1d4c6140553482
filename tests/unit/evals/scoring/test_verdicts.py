"""Figures of verdicts."""

import pytest

from ba_jax.evals.scoring.verdicts import figures


def test_figures():
    def verdict(kind, score=None):
        return {"id": "x", "verdict": kind, "score": score, "reason": "r"}

    counts = figures("q", [verdict(k) for k in ("right", "wrong", "invalid", "unjudged")])
    assert counts["q"] == pytest.approx(1 / 3) and counts["q_judged"] == 3
    scores = figures("q", [verdict("scored", 4.0), verdict("scored", 9.0), verdict("invalid")])
    assert scores["q"] == 6.5 and scores["q_invalid"] == 1
