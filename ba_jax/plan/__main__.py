"""Plan a run for a pod or GPUs, without the devices.

    python -m ba_jax.plan --config=configs/lm_stage2.py:7b --topology=v5p:4x4x4
    python -m ba_jax.plan --config=configs/lm_stage2.py:7b --topology=v6e:16x16 --slices=2 \
        --rows=2 --json=plan.json --picture=plan.png
    python -m ba_jax.plan --config=configs/lm_stage2.py:7b --topology=v5p:4x4x4 --sweep
    python -m ba_jax.plan --config=configs/generate.py:7b --topology=v6e:1x1 --decode --rows=16

The real step of any stage, or with --decode a step of generation, is compiled by libtpu for the
topology: v4, v5e, v5p, v6e, tpu7x (CHIP:NxN, CHIP:NxNxN), h100 or h200 (CHIP:N). The command prints
XLA's figures: memory by kind, collectives, bytes; and with the chip's figures a lower bound of the
step's time, its serial roofline and, where steps were measured, the time to expect. GPU programs
are compiled on such GPUs; elsewhere the figures are estimates, marked so.

Exit code: 0 it fits, 3 it does not, 1 it cannot be planned, 2 a wrong command line or config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from absl import flags

from ba_jax import cli
from ba_jax.config import ConfigError
from ba_jax.models.packed_attention import is_splash
from ba_jax.plan import planner, sweep
from ba_jax.plan.report import StepPlan, as_dict, draw_memory, format_plan
from ba_jax.plan.topology import PlanError, Topology, open_topology, prepare_process
from ba_jax.run_config import STAGES, RunConfig, parse_config
from ba_jax.sharding import MeshSettings

DOES_NOT_FIT = 3


def define_flags() -> None:
    cli.define_config("A stage's config: configs/STAGE.py:SIZE.")
    flags.DEFINE_string("topology", None, "CHIP:SHAPE, such as v5p:4x4x4 or h100:8.")
    flags.DEFINE_integer("slices", 1, "TPU slices; each has copies of the model.", 1)
    flags.DEFINE_integer("rows", None, "Rows of each share of the batch; default the config's.", 1)
    flags.DEFINE_float(
        "audio_share",
        None,
        "Share of a packed row's positions that are targets of audio, the others of text; default: "
        "kinds of positions as the mixture has them.",
    )
    flags.DEFINE_bool("decode", False, "Plan generation: --config needs only a model.")
    flags.DEFINE_integer("context", 2048, "With --decode: positions that a row attends to.", 1)
    flags.DEFINE_bool("sweep", False, "Try meshes, rows and remat policies.")
    flags.DEFINE_integer("sweep_limit", 12, "Number of candidates to compile.", 0)
    cli.define_path("sweep_file", None, "JSONL file of results, to resume a sweep from.")
    cli.define_path("json", None, "File for all figures.")
    cli.define_path("hlo", None, "File for the compiled program's text.")
    cli.define_path("picture", None, "PNG file for a bar of the memory.")
    flags.DEFINE_float("effort", -1.0, "XLA's optimisation effort: -1 compiles 4 times faster.")
    flags.mark_flag_as_required("topology")


def main(argv: list[str]) -> int:
    """Run the command."""
    values = flags.FLAGS
    config = values.config.to_dict() if values.decode else parse_config(values.config)
    try:
        prepare_process(values.topology, values.effort)
        topology = open_topology(values.topology, values.slices)
        if values.sweep and not values.decode:
            _sweep(config, topology, values)
            return 0
        make_plans = _plan_decoding if values.decode else _plan_training
        try:
            plans = make_plans(config, topology, values)
        except planner.DoesNotFit as error:
            over = max(error.plan.peak_bytes - error.plan.hbm_bytes, 0)
            figures = as_dict(error.plan) | {"over_bytes": over, "advice": error.advice}
            _write(figures, error.plan, values)
            return cli.fail("ba_jax.plan", error, DOES_NOT_FIT)
        first = next(iter(plans.values()))
        steps = {f"{kind}_step": as_dict(plan) for kind, plan in plans.items()}
        _write(as_dict(first) | (steps if values.decode else {}), first, values)
        if not all(plan.fits for plan in plans.values()):
            return DOES_NOT_FIT
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        return cli.fail("ba_jax.plan", error, 1)
    return 0


def _plan_training(config: RunConfig, topology: Topology, values: Any) -> dict[str, StepPlan]:
    plan = planner.plan_training(config, topology, rows=values.rows, audio_share=values.audio_share)
    print("\n".join([*format_plan(plan), ""]), flush=True)
    return {"training": plan}


def _plan_decoding(config: dict[str, Any], topology: Topology, values: Any) -> dict[str, StepPlan]:
    if "model" not in config:
        raise ConfigError(f"--config has {sorted(config)}: expected a model among them")
    mesh = MeshSettings(tensor=dict(config.get("mesh", {})).get("tensor", 1))
    options = {"rows": values.rows or 1, "context": values.context}
    plans = {}
    for kind in ("frame", "text"):
        plan = planner.plan_decoding(config["model"], mesh, topology, kind, **options)
        print("\n".join([*format_plan(plan), ""]), flush=True)
        plans[kind] = plan
    return plans


def _sweep(config: RunConfig, topology: Topology, values: Any) -> None:
    if not topology.compiles:
        raise PlanError(f"--sweep for {topology.name}: expected devices that can be compiled for")
    name = config.stage["name"]
    # The policy "attention" keeps nothing of attention with scores; the way to the host and back is
    # not in a plan's time, so that a sweep would take "attention_offload" for free.
    splash = is_splash(config.train.attention)
    remats = [p for p in planner.REMAT_ORDER if p != "attention_offload"]
    candidates = sweep.make_candidates(
        len(topology.devices),
        topology.slices,
        divides_positions=STAGES[name].divides_positions,
        remats=[p for p in remats if splash or p != "attention"],
    )
    # The digest covers all settings that change a result, except those of the candidates.
    fixed = dataclasses.replace(config, mesh=MeshSettings())
    digest = hashlib.sha256(repr(fixed).encode()).hexdigest()[:12]
    results = []
    for result in sweep.run_sweep(
        candidates,
        lambda candidate: sweep.attempt(config, topology, candidate),
        limit=values.sweep_limit,
        path=Path(values.sweep_file) if values.sweep_file else None,
        # Results of before there were expected times have another label.
        label=f"{name} {digest} {topology.name} x {topology.slices}, expected",
    ):
        results.append(result)
        if result["status"] != sweep.SKIPPED:
            line = f"{result['candidate']}: {result['status']} {result['reason']}"
            print(f"{len(results)} of {len(candidates)}: {line}", flush=True)
    print("\n".join(["", "ranked by expected time per token", *sweep.format_ranking(results)]))
    if values.json:
        Path(values.json).write_text(json.dumps(results, indent=1) + "\n")


def _write(figures: dict[str, Any], plan: StepPlan, values: Any) -> None:
    if values.json:
        Path(values.json).write_text(json.dumps(figures, indent=1) + "\n")
    if values.picture:
        draw_memory(plan, values.picture)
    if values.hlo and plan.compiled:
        Path(values.hlo).write_text(plan.compiled.text)


if __name__ == "__main__":
    cli.run("ba_jax.plan", define_flags, main)
