"""Candidates of a sweep: order, skipping, resuming, ranking, without a compiler."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.models.layers import REMAT_POLICIES
from ba_jax.plan import sweep
from ba_jax.plan.planner import REMAT_ORDER
from ba_jax.plan.sweep import FITS, SKIPPED, TOO_LARGE, SweepCandidate
from ba_jax.plan.topology import PlanError, open_topology
from ba_jax.run_config import parse_config
from configs import lm_stage2


def fits(candidate: SweepCandidate, seconds: float, tokens: float, peak: int = 1) -> dict:
    plan = {
        "peak_bytes": peak,
        "amounts": {"tokens": tokens},
        "time": {"seconds": seconds, "best": "expected", "by": "hbm", "mfu": 0.5},
    }
    return {"candidate": str(candidate), "status": FITS, "reason": "", "plan": plan}


@given(st.sampled_from((4, 8, 64, 256)), st.sampled_from((1, 2, 4)), st.booleans())
def test_candidates_fill_the_devices_once_each(devices, slices, divides):
    candidates = sweep.make_candidates(devices, slices, divides_positions=divides)
    assert len(set(candidates)) == len(candidates) > 0
    for candidate in candidates:
        assert (
            math.prod((candidate.replica, candidate.fsdp, candidate.tensor, candidate.sequence))
            == devices
        )
        assert candidate.replica == slices and (divides or candidate.sequence == 1)
    assert candidates[0].tensor == candidates[0].sequence == candidates[0].rows == 1
    assert candidates[0].remat == "full"


def test_every_remat_policy_has_its_place():
    assert sorted(REMAT_ORDER) == sorted(REMAT_POLICIES)


def test_candidates_larger_than_a_failed_one_are_skipped():
    tries = [SweepCandidate(1, 4, 1, 1, rows, remat) for remat in REMAT_ORDER for rows in (1, 2, 4)]
    asked = []

    def attempt(candidate):
        asked.append(candidate)
        if candidate.rows > 1 or candidate.remat != "full":
            return {"status": TOO_LARGE, "reason": "1 GB over"}
        return fits(candidate, 1.0, 1.0)

    results = list(sweep.run_sweep(tries, attempt, limit=99))
    assert len(results) == len(tries)
    # Rows of 1 and 2, then one row of the next policy; everything else follows from these.
    assert [(c.rows, c.remat) for c in asked] == [(1, "full"), (2, "full"), (1, REMAT_ORDER[1])]
    assert sum(r["status"] == SKIPPED for r in results) == len(tries) - 3
    assert any(f"{len(tries) - 3} more" in line for line in sweep.format_ranking(results))


def test_a_sweep_resumes(tmp_path):
    tries = [SweepCandidate(1, 4, 1, 1, rows, "full") for rows in (1, 2, 4, 8)]
    path, asked = tmp_path / "sweep.jsonl", []

    def attempt(candidate):
        asked.append(candidate.rows)
        return fits(candidate, 1.0, candidate.rows)

    first = list(sweep.run_sweep(tries, attempt, limit=2, path=path, label="a"))
    assert [c for c in asked] == [1, 2] and len(first) == 2
    again = list(sweep.run_sweep(tries, attempt, limit=9, path=path, label="a"))
    assert asked == [1, 2, 4, 8] and len(again) == 4
    other = list(sweep.run_sweep(tries, attempt, limit=1, path=path, label="b"))
    assert asked == [1, 2, 4, 8, 1] and len(other) == 1
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(PlanError, match="line 6: expected a sweep's result"):
        list(sweep.run_sweep(tries, attempt, limit=1, path=path, label="a"))


def test_an_attempt_plans_with_the_candidates_mesh_and_policy():
    """On an absent GPU, where no program is compiled."""
    config = parse_config(lm_stage2.get_config("nano_codes"))
    topology = open_topology("h100:1")
    candidates = sweep.attempt(config, topology, SweepCandidate(1, 1, 1, 1, 2, "dots"))
    assert candidates["status"] == FITS and candidates["plan"]["amounts"]["tokens"] == 2 * 256
    assert "remat dots" in candidates["plan"]["what"]
    lost = sweep.attempt(config, topology, SweepCandidate(1, 2, 1, 1, 2, "dots"))
    assert lost["status"] == sweep.IMPOSSIBLE and "product is the 1 devices" in lost["reason"]


def test_ranking_by_time_per_token_then_memory():
    names = [SweepCandidate(1, 4, 1, 1, rows, "full") for rows in (1, 2, 4)]
    results = [
        fits(names[0], seconds=1.0, tokens=10.0, peak=5),
        fits(names[1], seconds=1.5, tokens=20.0, peak=9),
        fits(names[2], seconds=2.0, tokens=20.0, peak=4),
        {"candidate": "x", "status": TOO_LARGE, "reason": "3 GB over"},
    ]
    ranked = [r["candidate"] for r in sweep.rank(results)]
    assert ranked == [str(names[1]), str(names[2]), str(names[0])]
    lines = sweep.format_ranking(json.loads(json.dumps(results)))
    assert str(names[1]) in lines[1] and "75 ms" in lines[1]
    assert any("x: too large (3 GB over)" in line for line in lines)
    assert "no candidate" in sweep.format_ranking(results[3:])[0]
