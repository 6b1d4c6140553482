"""What a sweep tries, leaves out, keeps and ranks; no compiler is asked."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.models.layers import REMAT_POLICIES
from ba_jax.plan import sweep
from ba_jax.plan.advice import REMAT_ORDER
from ba_jax.plan.sweep import FITS, SKIPPED, TOO_LARGE, Candidate
from ba_jax.plan.topology import PlanError, open_topology
from ba_jax.run_config import parse_config
from configs import lm_stage2


def fits(candidate: Candidate, seconds: float, tokens: float, peak: int = 1) -> dict:
    plan = {
        "peak_bytes": peak,
        "amounts": {"tokens": tokens},
        "bound": {"seconds": seconds, "by": "hbm", "mfu": 0.5},
    }
    return {"candidate": str(candidate), "status": FITS, "reason": "", "plan": plan}


@given(st.sampled_from((4, 8, 64, 256)), st.sampled_from((1, 2, 4)), st.booleans())
def test_candidates_fill_the_devices_once_each(devices, slices, divides):
    found = sweep.candidates(devices, slices, divides_positions=divides)
    assert len(set(found)) == len(found) > 0
    for one in found:
        assert math.prod((one.replica, one.fsdp, one.tensor, one.sequence)) == devices
        assert one.replica == slices and (divides or one.sequence == 1)
    assert found[0].tensor == found[0].sequence == found[0].rows == 1
    assert found[0].remat == "full"


def test_every_remat_policy_has_its_place():
    assert sorted(REMAT_ORDER) == sorted(REMAT_POLICIES)


def test_what_would_be_larger_than_what_did_not_fit_is_not_tried():
    tries = [Candidate(1, 4, 1, 1, rows, remat) for remat in REMAT_ORDER for rows in (1, 2, 4)]
    asked = []

    def attempt(candidate):
        asked.append(candidate)
        if candidate.rows > 1 or candidate.remat != "full":
            return {"status": TOO_LARGE, "reason": "1 GB over"}
        return fits(candidate, 1.0, 1.0)

    results = list(sweep.run(tries, attempt, limit=99))
    assert len(results) == len(tries)
    # Rows of 1 and 2, then one row of the next policy; everything else follows from these.
    assert [(c.rows, c.remat) for c in asked] == [(1, "full"), (2, "full"), (1, REMAT_ORDER[1])]
    assert sum(r["status"] == SKIPPED for r in results) == len(tries) - 3
    assert any(f"{len(tries) - 3} more" in line for line in sweep.lines(results))


def test_a_sweep_goes_on_where_one_stopped(tmp_path):
    tries = [Candidate(1, 4, 1, 1, rows, "full") for rows in (1, 2, 4, 8)]
    path, asked = tmp_path / "sweep.jsonl", []

    def attempt(candidate):
        asked.append(candidate.rows)
        return fits(candidate, 1.0, candidate.rows)

    first = list(sweep.run(tries, attempt, limit=2, path=path, label="a"))
    assert [c for c in asked] == [1, 2] and len(first) == 2
    again = list(sweep.run(tries, attempt, limit=9, path=path, label="a"))
    assert asked == [1, 2, 4, 8] and len(again) == 4
    other = list(sweep.run(tries, attempt, limit=1, path=path, label="b"))
    assert asked == [1, 2, 4, 8, 1] and len(other) == 1
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(PlanError, match="line 6: expected a sweep's result"):
        list(sweep.run(tries, attempt, limit=1, path=path, label="a"))


def test_an_attempt_plans_with_the_candidates_mesh_and_policy():
    """On one GPU that is not there: nothing is compiled."""
    config = parse_config(lm_stage2.get_config("nano_codes"))
    topology = open_topology("h100:1")
    found = sweep.attempt(config, topology, Candidate(1, 1, 1, 1, 2, "dots"))
    assert found["status"] == FITS and found["plan"]["amounts"]["tokens"] == 2 * 256
    assert "remat dots" in found["plan"]["what"]
    lost = sweep.attempt(config, topology, Candidate(1, 2, 1, 1, 2, "dots"))
    assert lost["status"] == sweep.IMPOSSIBLE and "product is the 1 devices" in lost["reason"]


def test_the_fastest_a_token_comes_first_and_of_equals_the_smaller():
    names = [Candidate(1, 4, 1, 1, rows, "full") for rows in (1, 2, 4)]
    results = [
        fits(names[0], seconds=1.0, tokens=10.0, peak=5),
        fits(names[1], seconds=1.5, tokens=20.0, peak=9),
        fits(names[2], seconds=2.0, tokens=20.0, peak=4),
        {"candidate": "x", "status": TOO_LARGE, "reason": "3 GB over"},
    ]
    ranked = [r["candidate"] for r in sweep.ranked(results)]
    assert ranked == [str(names[1]), str(names[2]), str(names[0])]
    told = sweep.lines(json.loads(json.dumps(results)))
    assert str(names[1]) in told[1] and "75 ms" in told[1]
    assert any("x: too large (3 GB over)" in line for line in told)
    assert "nothing" in sweep.lines(results[3:])[0]
