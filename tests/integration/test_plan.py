"""Gates on the step that XLA compiles for a pod of four v5e, without the chips.

Collectives and memory of a small run are compared with stored figures (`tests/data/plan`, with the
version of libtpu). Figures that follow from shapes must be equal; those that depend on the version
of XLA must be within TOLERANCE. Faults that would cost speed or memory must exceed it: a parameter
that is replicated on every device, missing remat.

New figures: `python -m tests.integration.plan_driver OUT "as it is" frame`, OUT being that file.
"""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from ba_jax.plan import hlo
from tests.integration import plan_programs
from tests.processes import finish, start

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORED = json.loads((ROOT / "tests" / "data" / "plan" / "v5e_2x2.json").read_text())
TOLERANCE = 0.25

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> dict:
    """Name -> plan."""
    out = tmp_path_factory.mktemp("plan") / "plans.json"
    return plan(out, "as it is", "frame", "too large", "replicated")


def plan(out: pathlib.Path, *names: str) -> dict:
    """Run `plan_driver`; return name -> plan."""
    words = [sys.executable, "-m", "tests.integration.plan_driver", str(out), *names]
    finish(start(words, JAX_DISABLE_MOST_OPTIMIZATIONS="0"))
    return json.loads(out.read_text())


def differences(plan: dict, stored: dict) -> list[str]:
    """List differences of a plan from the stored figures."""
    wrong = []

    def near(name: str, value: float, expected: float, tolerance: float = TOLERANCE) -> None:
        if abs(value - expected) > tolerance * expected:
            wrong.append(f"{name}: {value:,.0f}, stored {expected:,.0f}")

    near("model FLOPs", plan["model_flops"], stored["model_flops"], 1e-6)
    for kind, count in stored["argument_kinds"].items():
        near(f"arguments, {kind}", plan["argument_kinds"][kind], count, 1e-6)
    if plan["memory"] is None:  # not compiled
        return wrong
    near("FLOPs of the devices", plan["device_flops"], stored["device_flops"], 1e-6)
    near("temporaries", plan["memory"]["temporaries"], stored["memory"]["temporaries"])
    near("peak", plan["peak_bytes"], stored["peak_bytes"])
    near("bytes accessed", plan["bytes_accessed"], stored["bytes_accessed"])
    if set(plan["collectives"]) != set(stored["collectives"]):
        wrong.append(f"collectives: {sorted(plan['collectives'])}")
    for kind, sums in stored["collectives"].items():
        now = plan["collectives"].get(kind, {"count": 0, "received": 0})
        near(f"{kind}, times", now["count"], sums["count"])
        near(f"{kind}, received", now["received"], sums["received"])
    return wrong


def test_the_step_matches_the_stored_figures(plans):
    assert differences(plans["as it is"], STORED["as it is"]) == []


def test_a_generation_step_reads_little_beyond_its_weights(plans):
    frame, stored = plans["frame"], STORED["frame"]
    assert sum(kind["received"] for kind in frame["collectives"].values()) < 1000 and frame["fits"]
    assert abs(frame["bytes_accessed"] / stored["bytes_accessed"] - 1) < TOLERANCE
    # The ratio is 1.42 here, where sampling takes a large share; 1.02 at full size.
    assert frame["needed_bytes"] < frame["bytes_accessed"] < 1.6 * frame["needed_bytes"]


@pytest.mark.deep
def test_only_gradients_cross_slices(plans, tmp_path):
    """Each slice holds a copy of the model; devices exchange their part of the gradients."""
    slices = plan(tmp_path / "plans.json", "two slices")["two slices"]
    across = sum(kind["received_across"] for kind in slices["collectives"].values())
    trained = slices["argument_kinds"]["trained parameters"]  # float32; gradients may be bfloat16
    assert 0.45 * trained < across < 1.2 * trained
    assert slices["argument_kinds"] == plans["as it is"]["argument_kinds"]


def test_weights_are_gathered_and_activations_are_not(plans):
    """With FSDP a layer's weights are gathered before their use."""
    plan = plans["as it is"]
    weights = plan["argument_kinds"]["trained parameters"]
    gathered = plan["collectives"]["all-gather"]["received"]
    # In bfloat16 or float32, forward, and again for the backward pass.
    assert 0.5 * 3 * weights < gathered < 4 * 3 * weights


@pytest.mark.deep
@pytest.mark.parametrize(("closed", "kind"), [(True, "all-gather"), (False, "all-reduce")])
def test_weights_are_gathered_on_a_torus_and_summed_in_an_open_cube(tmp_path, closed, kind):
    """Links around a slice decide how XLA writes a gather: an all-reduce moves twice as much."""
    out = tmp_path / "program.hlo"
    options = [] if closed else ["open"]
    words = [sys.executable, "-m", "tests.integration.plan_programs", str(out), "plain"]
    finish(start([*words, "v5p:4x4x4", *options]))
    costs = hlo.HloProgram(out.read_text()).costs()
    gathers = [c for cost in costs for c in cost.collectives if c.bytes > 1e6]
    weight = 2 * plan_programs.WIDTH * plan_programs.FFN
    assert {c.kind for c in gathers} == {kind}
    received = sum(c.received for c in gathers) / (2 * plan_programs.LAYERS * weight)
    assert received == pytest.approx(63 / 64 if closed else 2 * 63 / 64)


def test_a_replicated_parameter_is_detected(plans):
    wrong = "\n".join(differences(plans["replicated"], STORED["as it is"]))
    assert "arguments, trained parameters" in wrong and "arguments, optimiser" in wrong


@pytest.mark.deep
def test_missing_remat_is_detected(tmp_path):
    without = plan(tmp_path / "plans.json", "no remat")["no remat"]
    wrong = "\n".join(differences(without, STORED["as it is"]))
    assert "FLOPs of the devices" in wrong and "temporaries" in wrong


def test_message_of_a_step_that_is_too_large(plans):
    message = plans["too large"]
    assert message["peak_bytes"] > 1.1 * message["hbm_bytes"] and message["hbm_bytes"] > 15 * 2**30
    assert "GB over. What to change:" in message["message"]
    assert any("--config.train.remat=full" in line for line in message["advice"])
    assert any("--rows=32" in line for line in message["advice"])
