"""Plans a step: builds it on a topology, compiles it, and says what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ba_jax import sharding
from ba_jax.plan import advice, batch, decode, traced
from ba_jax.plan.compiled import OutOfMemory, compile_step
from ba_jax.plan.estimate import bound, bound_of
from ba_jax.plan.report import Plan, size
from ba_jax.plan.topology import PlanError, Topology
from ba_jax.run_config import RunConfig
from ba_jax.sharding import MeshSettings
from ba_jax.train_state import make_layout, make_step


class DoesNotFit(Exception):
    """A step that does not fit; str() says by how much and what to change.

    Attributes:
      plan: what is known about it.
      advice: what to change, the most useful first.
    """

    def __init__(self, plan: Plan, error: OutOfMemory, advice: list[str]):
        self.plan, self.advice = plan, advice
        over = max(plan.peak_bytes - plan.hbm_bytes, 0)
        lines = [
            f"{plan.what} does not fit {plan.topology.name}: {size(plan.peak_bytes)} of "
            f"{size(plan.hbm_bytes)}, {size(over)} over. What to change:",
            *(f"  {line}" for line in advice),
        ]
        if error.largest:
            lines.append("its largest arrays:")
            for count, shape, source in error.largest[:5]:
                lines.append(f"  {size(count)}  {shape}  {source[-90:]}")
        super().__init__("\n".join(lines))


def training(
    config: RunConfig, topology: Topology, *, rows: int | None = None, audio_share: float = 0.5
) -> Plan:
    """Plans a stage's training step.

    Args:
      config: of the run; its mesh is laid over the topology.
      topology: where.
      rows: of each share of the batch (replica x fsdp); default the config's.
      audio_share: see `batch.full_batch`.

    Raises:
      DoesNotFit: the compiler says so.
      ConfigError, OptimError, StageError, ShardingError, PlanError: a config that cannot run there.
    """
    mesh = sharding.make_mesh(settings_for(config.mesh, topology), topology.devices)
    layout = make_layout(config, mesh)
    stage, state = layout.stage, layout.state_shapes
    shards = sharding.batch_shards(mesh)
    total = None if rows is None else rows * shards
    full = batch.full_batch(stage, config, layout.trained_components, total, audio_share)
    arrays = batch.placed_shapes(full, mesh)
    key = jax.ShapeDtypeStruct((), layout.step_key.dtype, sharding=sharding.replicated(mesh))
    kinds = {
        "trained parameters": batch.bytes_a_device(state.trained),
        "frozen parameters": batch.bytes_a_device(state.frozen),
        "optimiser": batch.bytes_a_device(state.optimizer),
        "average": batch.bytes_a_device(state.ema),
        "codebooks and buffers": batch.bytes_a_device((state.codebook, state.buffers, state.extra)),
        "batch": batch.bytes_a_device(arrays),
    }
    plan = Plan(
        what=f"{stage.name}: {full.text}, remat {config.train.remat}",
        topology=topology,
        mesh=dict(mesh.shape),
        counts=layout.counts,
        kinds={kind: count for kind, count in kinds.items() if count},
        peak_bytes=0,
        hbm_bytes=round(topology.chip.hbm_bytes * topology.share),
        model_flops=full.flops,
        needed_bytes=None,
        amounts=full.amounts,
        compiled=None,
        bound=None,
    )
    arguments = (state, arrays, key)
    if not topology.compiles:
        return _estimated(plan, make_step(layout), arguments, full.rows, shards)
    help_ = advice.training(
        config,
        mesh.shape,
        full.rows // shards,
        plan.kinds,
        plan.hbm_bytes,
        stage.divides_positions,
        topology.chip.is_tpu,
    )
    return _compiled(plan, make_step(layout), arguments, help_)


def decoding(
    model: Mapping[str, Any],
    settings: MeshSettings,
    topology: Topology,
    kind: str,
    *,
    rows: int = 1,
    context: int = 2048,
) -> Plan:
    """Plans a step of generation in bfloat16; the model is divided over `tensor` alone.

    Args:
      model: a config's.
      settings: of the mesh, of which `tensor` counts.
      topology: where.
      kind: "text" or "frame".
      rows: of each copy of the model.
      context: positions that each row attends to.

    Raises:
      DoesNotFit: the compiler says so.
      ConfigError, ShardingError, PlanError: what cannot be.
    """
    own = MeshSettings(replica=-1, tensor=settings.tensor)
    mesh = sharding.make_mesh(settings_for(own, topology), topology.devices)
    total = rows * sharding.batch_shards(mesh)
    step = decode.decode_step(model, mesh, kind, rows=total, context=context)
    kinds = {
        "parameters": batch.bytes_a_device(step.arguments[0]["params"]),
        "buffers": batch.bytes_a_device(step.arguments[0].get("buffers", {})),
        "cache": batch.bytes_a_device(step.arguments[1].cache),
    }
    plan = Plan(
        what=f"decode, a {kind} for {rows} rows a copy at {context} positions",
        topology=topology,
        mesh=dict(mesh.shape),
        counts={name: (count, 0) for name, count in step.parameters.items()},
        kinds=kinds,
        peak_bytes=0,
        hbm_bytes=round(topology.chip.hbm_bytes * topology.share),
        model_flops=step.flops,
        needed_bytes=step.bytes / mesh.shape["tensor"],
        amounts=step.amounts,
        compiled=None,
        bound=None,
    )
    if not topology.compiles:
        found = _estimated(plan, step.function, step.arguments, 0, 1)
        seconds = plan.needed_bytes / (topology.chip.hbm_bandwidth * topology.share)
        return dataclasses.replace(found, bound=_with_hbm(found, seconds))
    help_ = advice.decoding(mesh.shape, rows, context)
    return _compiled(plan, step.function, step.arguments, help_)


def settings_for(settings: MeshSettings, topology: Topology) -> MeshSettings:
    """The mesh's settings on so many slices: copies of the model go over them.

    Raises:
      PlanError: a number of copies that the slices do not divide.
    """
    if topology.slices == 1:
        return settings
    replica = topology.slices if settings.replica == 1 else settings.replica
    if replica != -1 and replica % topology.slices:
        raise PlanError(
            f"mesh.replica = {replica} on {topology.slices} slices: expected a multiple, or 1 for "
            "a copy a slice"
        )
    return dataclasses.replace(settings, replica=replica, slices=topology.slices)


def _compiled(plan: Plan, function, arguments, help_: list[str]) -> Plan:
    try:
        found = compile_step(function, arguments, plan.topology)
    except OutOfMemory as error:
        more = sum(plan.kinds.values()) if error.temporaries_alone else 0
        known = {"peak_bytes": error.used + more if error.used else plan.hbm_bytes + 1}
        if error.limit:
            known["hbm_bytes"] = error.limit
        raise DoesNotFit(dataclasses.replace(plan, **known), error, help_) from error
    return dataclasses.replace(
        plan,
        peak_bytes=found.memory.peak,
        compiled=found,
        bound=bound_of(plan.topology, found, plan.model_flops, plan.amounts),
    )


def _estimated(plan: Plan, function, arguments, rows: int, shards: int) -> Plan:
    """Without a compiler for the devices: what follows from shapes and from the traced step."""
    jaxpr = function.trace(*arguments).jaxpr
    kept = traced.kept_bytes(jaxpr, rows) / shards if rows else 0.0
    gradients = plan.kinds.get("trained parameters", 0)
    flops = traced.program_flops(jaxpr)
    return dataclasses.replace(
        plan,
        peak_bytes=round(sum(plan.kinds.values()) + gradients + kept),
        bound=bound(plan.topology, plan.model_flops, flops, 0.0, {}, plan.amounts),
        note=(
            "Estimated: none of these devices is here to compile for. The peak is arguments, "
            f"gradients ({size(gradients)}) and what scans keep for the backward pass "
            f"({size(kept)}); a layer's own working memory comes on top. Of the time, FLOPs alone "
            "were counted" + ("." if rows else ", and the bytes that it needs.")
        ),
    )


def _with_hbm(plan: Plan, seconds: float):
    longest = max(plan.bound.seconds, seconds)
    shrink = plan.bound.seconds / longest
    return dataclasses.replace(
        plan.bound,
        hbm=seconds,
        seconds=longest,
        mfu=plan.bound.mfu * shrink,
        a_day={name: value * shrink for name, value in plan.bound.a_day.items()},
    )
