"""Plan a step: build it on a topology, compile it, and collect its costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ba_jax import sharding
from ba_jax.plan import batch, decode
from ba_jax.plan.costs import OutOfMemory, compile_step, step_time
from ba_jax.plan.report import StepPlan, format_bytes
from ba_jax.plan.topology import PlanError, Topology
from ba_jax.plan.traced import count_flops, count_kept_bytes
from ba_jax.run_config import RunConfig
from ba_jax.sharding import MeshSettings
from ba_jax.train_state import make_layout, make_step

# Policies by the memory that they keep, the least first.
REMAT_ORDER = ("full", "attention_offload", "attention", "dots_no_batch", "dots", "none")


class DoesNotFit(Exception):
    """A step does not fit; the message says by how many bytes and which settings to change.

    Attributes:
      plan: the plan, as far as it is known.
      advice: changes, the most useful first.
    """

    def __init__(self, plan: StepPlan, error: OutOfMemory, advice: list[str]):
        self.plan, self.advice = plan, advice
        over = max(plan.peak_bytes - plan.hbm_bytes, 0)
        arrays = [
            f"  {format_bytes(count)}  {shape}  {source[-90:]}"
            for count, shape, source in error.largest[:5]
        ]
        lines = [
            f"{plan.what} does not fit {plan.topology.name}: {format_bytes(plan.peak_bytes)} of "
            f"{format_bytes(plan.hbm_bytes)}, {format_bytes(over)} over. What to change:",
            *(f"  {line}" for line in advice),
            *(["its largest arrays:", *arrays] if arrays else []),
        ]
        super().__init__("\n".join(lines))


def plan_training(
    config: RunConfig,
    topology: Topology,
    *,
    rows: int | None = None,
    audio_share: float | None = None,
) -> StepPlan:
    """Plan a stage's training step.

    The config's mesh is laid over the topology. `rows` are those of each share of the batch
    (replica x fsdp), None: the config's; for `audio_share` see `batch.make_full_batch`.

    Raises:
      DoesNotFit: the compiler reports it.
      ConfigError, OptimError, StageError, ShardingError, PlanError: a config that cannot run there.
    """
    mesh = sharding.make_mesh(mesh_settings(config.mesh, topology), topology.devices)
    layout = make_layout(config, mesh)
    stage, state = layout.stage, layout.state_shapes
    shards = sharding.batch_shards(mesh)
    total = None if rows is None else rows * shards
    full = batch.make_full_batch(stage, config, layout.trained_components, total, audio_share)
    stage.fix_loops(full.row, full.rows / (shards * mesh.shape["sequence"]))
    arrays = batch.place_batch(full, mesh)
    key = jax.ShapeDtypeStruct((), layout.step_key.dtype, sharding=sharding.replicated(mesh))
    kinds = {
        "trained parameters": batch.device_bytes(state.trained),
        "frozen parameters": batch.device_bytes(state.frozen),
        "optimiser": batch.device_bytes(state.optimizer),
        "average": batch.device_bytes(state.ema),
        "codebooks and buffers": batch.device_bytes((state.codebook, state.buffers, state.extra)),
        "batch": batch.device_bytes(arrays),
    }
    kind = config.train.quantization
    quantized = "" if kind == "none" else f", {kind} products"
    plan = StepPlan(
        what=f"{stage.name}: {full.text}, remat {config.train.remat}{quantized}",
        topology=topology,
        mesh=dict(mesh.shape),
        counts=layout.counts,
        kinds={kind: count for kind, count in kinds.items() if count},
        hbm_bytes=round(topology.chip.hbm_bytes * topology.share),
        model_flops=full.flops,
        amounts=full.amounts,
        trains=True,
    )
    step, arguments = make_step(layout), (state, arrays, key)
    if not topology.compiles:
        return _estimate(plan, step, arguments, full.rows, shards)
    advice = advise_training(config, plan, full.rows // shards, stage.divides_positions)
    return _compile(plan, step, arguments, advice)


def plan_decoding(
    model: Mapping[str, Any],
    settings: MeshSettings,
    topology: Topology,
    kind: str,
    *,
    rows: int = 1,
    context: int = 2048,
) -> StepPlan:
    """Plan a step of generation in bfloat16; the model is divided over `tensor` alone.

    `kind` is "text" or "frame", `rows` those of each copy of the model, `context` the positions
    that each row attends to.

    Raises:
      DoesNotFit: the compiler reports it.
      ConfigError, ShardingError, PlanError: a model or rows that cannot run there.
    """
    settings = MeshSettings(replica=-1, tensor=settings.tensor)
    mesh = sharding.make_mesh(mesh_settings(settings, topology), topology.devices)
    total = rows * sharding.batch_shards(mesh)
    step = decode.make_decode_step(model, mesh, kind, rows=total, context=context)
    plan = StepPlan(
        what=f"decode, a {kind} for {rows} rows a copy at {context} positions",
        topology=topology,
        mesh=dict(mesh.shape),
        counts={name: (count, 0) for name, count in step.parameters.items()},
        kinds={
            "parameters": batch.device_bytes(step.arguments[0]["params"]),
            "buffers": batch.device_bytes(step.arguments[0].get("buffers", {})),
            "cache": batch.device_bytes(step.arguments[1].cache),
        },
        hbm_bytes=round(topology.chip.hbm_bytes * topology.share),
        model_flops=step.flops,
        needed_bytes=step.bytes / mesh.shape["tensor"],
        amounts=step.amounts,
    )
    if not topology.compiles:
        return _estimate(plan, step.function, step.arguments)
    tensor = mesh.shape["tensor"]
    advice = [f"--config.mesh.tensor={2 * tensor} (now {tensor}): divide the model"]
    advice += [f"--rows={rows // 2} (now {rows})"] if rows > 1 else []
    advice.append(f"--context={context // 2} (now {context})")
    return _compile(plan, step.function, step.arguments, advice)


def mesh_settings(settings: MeshSettings, topology: Topology) -> MeshSettings:
    """Lay copies of the model over the slices, which must divide their number."""
    if topology.slices == 1:
        return settings
    replica = topology.slices if settings.replica == 1 else settings.replica
    if replica != -1 and replica % topology.slices:
        raise PlanError(
            f"mesh.replica = {replica} on {topology.slices} slices: expected a multiple, or 1 for "
            "one copy per slice"
        )
    return dataclasses.replace(settings, replica=replica, slices=topology.slices)


def _compile(plan: StepPlan, function, arguments, advice: list[str]) -> StepPlan:
    try:
        compiled = compile_step(function, arguments, plan.topology)
    except OutOfMemory as error:
        used = error.used + (sum(plan.kinds.values()) if error.temporaries_alone else 0)
        plan = dataclasses.replace(
            plan,
            peak_bytes=used if error.used else plan.hbm_bytes + 1,
            hbm_bytes=error.limit or plan.hbm_bytes,
        )
        raise DoesNotFit(plan, error, advice) from error
    time = step_time(
        plan.topology,
        plan.model_flops,
        compiled.device_flops,
        compiled.bytes_accessed,
        compiled.collectives,
        compiled.serial,
        trains=plan.trains,
        doubled=compiled.doubled_flops,
    )
    return dataclasses.replace(plan, peak_bytes=compiled.memory.peak, compiled=compiled, time=time)


def _estimate(plan: StepPlan, function, arguments, rows: int = 0, shards: int = 1) -> StepPlan:
    """Estimate costs from shapes and the traced step, without a compiler for the devices.

    `rows` of a training batch make scans keep arrays for the backward pass.
    """
    jaxpr = function.trace(*arguments).jaxpr
    kept = count_kept_bytes(jaxpr, rows) / shards if rows else 0.0
    gradients = plan.kinds.get("trained parameters", 0)
    needed = plan.needed_bytes or 0.0
    flops, doubled = (count_flops(jaxpr, f).total for f in (None, plan.topology.chip.doubles))
    return dataclasses.replace(
        plan,
        peak_bytes=round(sum(plan.kinds.values()) + gradients + kept),
        time=step_time(plan.topology, plan.model_flops, flops, needed, {}, doubled=doubled),
        note=(
            "Estimated: none of these devices is here to compile for. The peak is arguments, "
            f"gradients ({format_bytes(gradients)}) and what scans keep for the backward pass "
            f"({format_bytes(kept)}); a layer's own working memory comes on top. Of the time, "
            "FLOPs alone were counted" + ("." if rows else ", and the bytes that it needs.")
        ),
    )


def advise_training(
    config: RunConfig, plan: StepPlan, rows: int, divides_positions: bool
) -> list[str]:
    """List changes that make a training step smaller, the most useful first.

    `rows` are those of each share of the batch; `divides_positions` is the stage's.
    """
    train, mesh = config.train, plan.mesh
    state = sum(count for kind, count in plan.kinds.items() if kind != "batch")
    advice = []
    if train.remat != "full":
        advice.append(f"--config.train.remat=full (now {train.remat}): keep less")
    if divides_positions and plan.topology.chip.is_tpu and train.attention == "xla":
        advice.append("--config.train.attention=splash (now xla): no scores of all pairs")
    frozen = plan.kinds.get("frozen parameters", 0)
    if frozen > plan.hbm_bytes / 20 and train.frozen_param_dtype == "float32":
        advice.append(
            "--config.train.frozen_param_dtype=bfloat16 (now float32): "
            f"{format_bytes(frozen // 2)} less"
        )
    if rows // train.accumulation_steps > 1:
        advice.append(
            f"--config.train.accumulation_steps={2 * train.accumulation_steps} (now "
            f"{train.accumulation_steps}): the same batch in more microbatches"
        )
        advice.append(f"--rows={rows // 2} (now {rows}): fewer rows a share of the mesh")
    if state > plan.hbm_bytes / 2:
        advice.append(
            f"more chips, or a larger --config.mesh.fsdp (now {mesh['fsdp']}): parameters and "
            f"optimiser take {format_bytes(state)} of a device"
        )
        if mesh["replica"] > 1:
            advice.append(f"--config.mesh.replica=1 (now {mesh['replica']}): fewer copies")
        if config.optimizer.ema_decay:
            advice.append(f"--config.optimizer.ema_decay=0 (now {config.optimizer.ema_decay:g})")
    if divides_positions:
        number = 2 * mesh["sequence"]
        advice.append(f"--config.mesh.sequence={number}: divide each row's positions")
    if mesh["tensor"] < 8:
        advice.append(f"--config.mesh.tensor={2 * mesh['tensor']}: divide heads and widths")
    return advice
