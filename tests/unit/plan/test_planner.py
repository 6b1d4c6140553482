"""Advice, meshes, estimates, and the command."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from ba_jax.metrics.chips import CHIPS
from ba_jax.plan import planner
from ba_jax.plan.costs import OutOfMemory
from ba_jax.plan.report import format_plan
from ba_jax.plan.topology import PlanError, Topology, open_topology
from ba_jax.run_config import parse_config
from ba_jax.sharding import MeshSettings, ShardingError
from configs import lm_stage2
from tests.processes import PATIENCE
from tests.unit.plan.test_costs import MESSAGE
from tests.unit.plan.test_report import make_plan

ROOT = pathlib.Path(__file__).resolve().parents[3]
GIB = 2**30


def test_message_of_a_step_that_does_not_fit():
    config = parse_config(lm_stage2.get_config("7b"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, remat="none"))
    mesh = {"replica": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    kinds = {"optimiser": 12 * GIB, "frozen parameters": 2 * GIB}
    plan = make_plan(mesh=mesh, kinds=kinds, hbm_bytes=16 * GIB)
    advice = planner.advise_training(config, plan, 4, True)
    text = "\n".join(advice)
    for expected in (
        "--config.train.remat=full (now none)",
        "--config.train.attention=splash (now xla)",
        "--config.train.frozen_param_dtype=bfloat16 (now float32): 1.07 GB less",
        "--config.train.accumulation_steps=2 (now 1)",
        "--rows=2 (now 4)",
        "larger --config.mesh.fsdp (now 4)",
        "--config.mesh.replica=1 (now 2)",
        "--config.mesh.sequence=2",
        "--config.mesh.tensor=2",
    ):
        assert expected in text
    plan = make_plan(peak_bytes=int(20.52 * GIB), hbm_bytes=int(15.75 * GIB), compiled=None)
    message = str(planner.DoesNotFit(plan, OutOfMemory(MESSAGE), advice))
    assert "22 GB of 16.9 GB, 5.12 GB over" in message
    assert "f32[4,2048,152064]" in message and advice[0] in message
    full = dataclasses.replace(config, train=dataclasses.replace(config.train, remat="full"))
    gpu = Topology("h100:4", CHIPS["h100"], 4, 1, range(4), True)
    plan = make_plan(mesh=mesh, kinds={}, hbm_bytes=GIB, topology=gpu)
    few = "\n".join(planner.advise_training(full, plan, 1, False))
    assert not any(word in few for word in ("remat", "splash", "frozen", "sequence", "rows"))


def test_copies_of_the_model_go_over_slices():
    two = dataclasses.replace(make_plan().topology, slices=2)
    settings = planner.mesh_settings(MeshSettings(replica=1, fsdp=-1), two)
    assert (settings.replica, settings.slices) == (2, 2)
    assert planner.mesh_settings(MeshSettings(replica=4), two).replica == 4
    with pytest.raises(PlanError, match="replica = 3 on 2 slices"):
        planner.mesh_settings(MeshSettings(replica=3), two)


def test_impossible_meshes_and_rows():
    topology = open_topology("h100:1")
    config = parse_config(lm_stage2.get_config("nano_codes"))
    wrong = dataclasses.replace(config, mesh=MeshSettings(fsdp=3))
    with pytest.raises(ShardingError, match="expected sizes whose product is the 1 devices"):
        planner.plan_training(wrong, topology)
    with pytest.raises(PlanError, match="0 rows"):
        planner.plan_training(config, topology, rows=0)
    with pytest.raises(PlanError, match="0 rows with 2048 positions"):
        planner.plan_decoding(config.model, MeshSettings(), topology, "frame", rows=0)


def test_absent_gpus_are_estimated():
    plan = planner.plan_training(
        parse_config(lm_stage2.get_config("7b")), open_topology("h100:1"), rows=1
    )
    # 8.05 G parameters with AdamW, 12 bytes each, 1.09 G frozen ones and the batch.
    arguments = sum(plan.kinds.values())
    assert arguments == pytest.approx(8.05e9 * 12 + 1.09e9 * 4, rel=0.01)
    assert not plan.fits and plan.hbm_bytes == 80e9
    kept = plan.peak_bytes - arguments - plan.kinds["trained parameters"]
    # The input of each layer: 28 x 4096 x 3584 in bfloat16.
    assert 28 * 4096 * 3584 * 2 <= kept < 3 * 28 * 4096 * 3584 * 2
    assert "Estimated: none of these devices is here" in format_plan(plan)[-1]
    # Remat repeats the layers' forward pass: four thirds of their FLOPs, and masked attention adds
    # more; output layers repeat nothing.
    assert plan.time.by == "compute" and 0.5 < plan.time.mfu(plan.time.bound) < 0.8
    assert plan.time.best[0] == "bound"


def command(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "ba_jax.plan", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_command(tmp_path):
    config = "--config=configs/lm_stage2.py:nano_codes"
    done = command(config, "--topology=v9z:2x2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "chip 'v9z', expected one of ('v4', 'v5e'" in done.stderr
    out, bar = tmp_path / "plan.json", tmp_path / "plan.png"
    rest = ("--config.mesh.fsdp=2", "--rows=2", f"--json={out}", f"--picture={bar}")
    done = command(config, "--topology=h200:8", *rest)
    assert done.returncode == 0, done.stderr
    assert "8 chips, mesh replica=4 fsdp=2 tensor=1 sequence=1" in done.stdout
    assert json.loads(out.read_text())["amounts"]["tokens"] == 2 * 8 * 256
    assert bar.stat().st_size > 1000
