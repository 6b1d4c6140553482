"""Plans a run for a pod or GPUs that need not be there.

    python -m ba_jax.plan --config=configs/lm_stage2.py:7b --topology=v5p:4x4x4
    python -m ba_jax.plan --config=configs/lm_stage2.py:7b --topology=v6e:16x16 --slices=2 \
        --rows=2 --json=plan.json --picture=plan.png
    python -m ba_jax.plan --config=configs/lm_stage2.py:7b --topology=v5p:4x4x4 --sweep
    python -m ba_jax.plan --config=configs/generate.py:7b --topology=v6e:1x1 --decode --rows=16

The real step of any stage, or with --decode a step of generation, is compiled by libtpu for the
topology: v4, v5e, v5p, v6e, tpu7x (CHIP:NxN, CHIP:NxNxN), h100 or h200 (CHIP:N). What it prints
is what XLA says of it: memory by kind, collectives, bytes; and from the chip's figures the least
time that a step can take. GPUs are compiled for if they are there; else the figures are estimated,
and say so.

Exit code: 0 it fits, 3 it does not, 1 it cannot be planned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from ba_jax.plan import picture, sweep
from ba_jax.plan import plan as planning
from ba_jax.plan.advice import REMAT_ORDER
from ba_jax.plan.report import Plan, as_dict, lines
from ba_jax.plan.topology import PlanError, Topology, open_topology, prepare_process
from ba_jax.run_config import STAGES, RunConfig, parse_config
from ba_jax.sharding import MeshSettings

DOES_NOT_FIT = 3


def define_flags() -> None:
    """The command line's."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "A stage's config: configs/STAGE.py:SIZE.")
    flags.DEFINE_string("topology", None, "CHIP:SHAPE, such as v5p:4x4x4 or h100:8.")
    flags.DEFINE_integer("slices", 1, "TPU slices; copies of the model go over them.")
    flags.DEFINE_integer("rows", None, "Rows of each share of the batch; default the config's.")
    flags.DEFINE_float("audio_share", 0.5, "Of a packed row's positions, frames of audio.")
    flags.DEFINE_bool("decode", False, "Plan generation: --config needs a model alone.")
    flags.DEFINE_integer("context", 2048, "With --decode: positions that a row attends to.")
    flags.DEFINE_bool("sweep", False, "Try meshes, rows and remat policies.")
    flags.DEFINE_integer("sweep_limit", 12, "How many of them to compile.")
    flags.DEFINE_string("sweep_file", None, "JSONL of their results, to go on from.")
    flags.DEFINE_string("json", None, "Write everything there.")
    flags.DEFINE_string("hlo", None, "Write the compiled program's text there.")
    flags.DEFINE_string("picture", None, "Write a bar of the memory there, PNG.")
    flags.DEFINE_float("effort", -1.0, "XLA's optimisation effort: -1 compiles 4 times faster.")
    flags.mark_flags_as_required(["config", "topology"])


def main(argv: list[str]) -> None:
    """Plans."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    values = flags.FLAGS
    try:
        prepare_process(values.topology)
        jax.config.update("jax_exec_time_optimization_effort", values.effort)
        topology = open_topology(values.topology, values.slices)
        config = values.config.to_dict()
        if values.decode:
            _decode(config, topology, values)
        elif values.sweep:
            _sweep(parse_config(config), topology, values)
        else:
            _training(parse_config(config), topology, values)
    except (ValueError, OSError) as error:
        sys.exit(f"ba_jax.plan: {error}")


def _training(config: RunConfig, topology: Topology, values: Any) -> None:
    try:
        plan = planning.training(config, topology, rows=values.rows, audio_share=values.audio_share)
    except planning.DoesNotFit as error:
        _fail(error, values)
    _show(plan)
    _write(as_dict(plan), plan, values)
    if not plan.fits:
        sys.exit(DOES_NOT_FIT)


def _decode(config: dict[str, Any], topology: Topology, values: Any) -> None:
    if "model" not in config:
        raise PlanError(f"--config has {sorted(config)}: expected a model among them")
    tensor = dict(config.get("mesh", {})).get("tensor", 1)
    plans = {}
    for kind in ("frame", "text"):
        try:
            plans[kind] = planning.decoding(
                config["model"],
                MeshSettings(tensor=tensor),
                topology,
                kind,
                rows=values.rows or 1,
                context=values.context,
            )
        except planning.DoesNotFit as error:
            _fail(error, values)
        _show(plans[kind])
    # A frame's figures, which a text step's are part of.
    both = {f"{kind}_step": as_dict(plan) for kind, plan in plans.items()}
    _write(as_dict(plans["frame"]) | both, plans["frame"], values)
    if not all(plan.fits for plan in plans.values()):
        sys.exit(DOES_NOT_FIT)


def _sweep(config: RunConfig, topology: Topology, values: Any) -> None:
    if not topology.compiles:
        raise PlanError(f"--sweep for {topology.name}: expected devices that can be compiled for")
    name = config.stage.get("name")
    if name not in STAGES:
        raise PlanError(f"stage.name = {name!r}, expected one of {sorted(STAGES)}")
    # Of attention with scores, its policy keeps nothing.
    remats = [p for p in REMAT_ORDER if p != "attention" or config.train.attention == "splash"]
    tries = sweep.candidates(
        len(topology.devices),
        topology.slices,
        divides_positions=STAGES[name].divides_positions,
        remats=remats,
    )
    # Whatever else may change what a try gives.
    fixed = dataclasses.replace(config, mesh=MeshSettings())
    digest = hashlib.sha256(repr(fixed).encode()).hexdigest()[:12]
    label = f"{name} {digest} {topology.name} x {topology.slices}"
    results = []
    for result in sweep.run(
        tries,
        lambda candidate: sweep.attempt(config, topology, candidate),
        limit=values.sweep_limit,
        path=Path(values.sweep_file) if values.sweep_file else None,
        label=label,
    ):
        results.append(result)
        if result["status"] != sweep.SKIPPED:
            told = f"{result['candidate']}: {result['status']} {result['reason']}"
            print(f"{len(results)} of {len(tries)}: {told}", flush=True)
    print("\n".join(["", "ranked by time a token", *sweep.lines(results)]))
    if values.json:
        Path(values.json).write_text(json.dumps(results, indent=1) + "\n")


def _show(plan: Plan) -> None:
    print("\n".join([*lines(plan), ""]), flush=True)


def _write(found: dict[str, Any], plan: Plan, values: Any) -> None:
    if values.json:
        Path(values.json).write_text(json.dumps(found, indent=1) + "\n")
    if values.picture:
        picture.draw(plan, values.picture)
    if values.hlo and plan.compiled:
        Path(values.hlo).write_text(plan.compiled.text)


def _fail(error: planning.DoesNotFit, values: Any) -> None:
    over = max(error.plan.peak_bytes - error.plan.hbm_bytes, 0)
    found = as_dict(error.plan) | {"over_bytes": over, "advice": error.advice}
    _write(found, error.plan, values)
    print(f"ba_jax.plan: {error}", file=sys.stderr)
    sys.exit(DOES_NOT_FIT)
