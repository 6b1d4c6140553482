"""Costs of a step: compile it for devices that may not be there, and bound its time."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from ba_jax.plan import hlo
from ba_jax.plan.topology import Topology

DAY = 86400.0
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"


# --- compiling ------------------------------------------------------------------------------------


class OutOfMemory(Exception):
    """XLA reports that a program does not fit.

    Attributes:
      used, limit: bytes of a device; 0 if the message has no such figure.
      temporaries_alone: `used` counts the temporaries only, without arguments.
      largest: its largest arrays, (bytes, shape, JAX's name of the operation).
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.used, self.limit, self.largest = parse_out_of_memory(message)
        self.temporaries_alone = "for HLO temporaries" in message


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of a device.

    Attributes:
      arguments: the step's inputs; a training step returns its state in the same place.
      outputs: its outputs, without those that reuse the memory of an argument.
      aliased: arguments whose memory is reused for outputs.
      temporaries: memory while the step runs.
      code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """Largest use; aliased bytes count as arguments."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CollectiveSum:
    """Sums over all collectives of a kind in a step.

    Attributes:
      count: how often they run.
      bytes: size of their results on a device.
      received: bytes that a device receives from devices of its slice.
      received_across: bytes that it receives in collectives across slices.
    """

    count: float = 0
    bytes: float = 0
    received: float = 0
    received_across: float = 0


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Figures of a compiled step.

    Attributes:
      memory: bytes of a device.
      device_flops: FLOPs of all devices together, as traced: with padding and rematerialization.
      bytes_accessed: HBM traffic of a device; loop bodies count as often as they run.
      xla_bytes: XLA's own count, with the body of a loop once.
      collectives: sums by kind.
      unknown_loops: loops that count once because their trip count could not be read.
      seconds: time of tracing and compiling.
      text: the program.
    """

    memory: StepMemory
    device_flops: float
    bytes_accessed: float
    xla_bytes: float
    collectives: dict[str, CollectiveSum]
    unknown_loops: tuple[str, ...]
    seconds: float
    text: str = dataclasses.field(repr=False, default="")


def compile_step(function: Callable, arguments: Iterable[Any], topology: Topology) -> CompiledStep:
    """Compile a jitted function for a topology; arguments are shapes with shardings on it.

    Raises:
      OutOfMemory: it does not fit.
    """
    started = time.monotonic()
    trace = function.trace(*arguments)
    platform = "tpu" if topology.chip.is_tpu else "cuda"
    try:
        compiled = trace.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from error
        raise
    seconds = time.monotonic() - started
    stats = compiled.memory_analysis()
    slice_size = len(topology.devices) // topology.slices
    text = compiled.as_text()
    program = hlo.HloProgram(text, slice_size, topology.slices)
    return CompiledStep(
        StepMemory(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes - stats.alias_size_in_bytes,
            stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes,
        ),
        count_flops(trace.jaxpr),
        program.bytes_accessed,
        float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0)),
        sum_collectives(program.collectives()),
        tuple(dict.fromkeys(program.unknown_loops)),
        seconds,
        text,
    )


def sum_collectives(collectives: Iterable[hlo.Collective]) -> dict[str, CollectiveSum]:
    """Sum collectives by kind, in the order of `hlo.KINDS`."""
    sums: dict[str, CollectiveSum] = {}
    for collective in collectives:
        before = sums.get(collective.kind, CollectiveSum())
        sums[collective.kind] = CollectiveSum(
            before.count + collective.times,
            before.bytes + collective.times * collective.bytes,
            before.received + collective.received * (not collective.crosses),
            before.received_across + collective.received * collective.crosses,
        )
    return {kind: sums[kind] for kind in hlo.KINDS if kind in sums}


def parse_out_of_memory(message: str) -> tuple[int, int, list[tuple[int, str, str]]]:
    """Return (bytes used, bytes available, largest arrays) of XLA:TPU's or XLA:GPU's message."""

    def size(match: re.Match | None, group: int = 1) -> int:
        return int(float(match[group]) * _UNITS[match[group + 1]]) if match else 0

    both = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message) or re.search(
        rf"memory required for [\w ]+ \({_SIZE}\) exceeds available HBM \({_SIZE}\)", message
    )
    used, limit = size(both), size(both, 3)
    if not both:
        used = size(re.search(rf"(?:allocate|allocating) {_SIZE}", message))
    largest = []
    for block in re.split(r"\n\s*(?=\d+\. Size:)", message)[1:]:
        shape = re.search(r"Shape: (\S+?)(?:\{|\s|$)", block)
        source = re.search(r'op_name="([^"]*)"', block)
        entry = size(re.search(rf"Size: {_SIZE}", block))
        largest.append((entry, shape[1] if shape else "", source[1] if source else ""))
    return used, limit, largest


# --- counting in a traced program -----------------------------------------------------------------


def count_flops(jaxpr: Any) -> float:
    """FLOPs of a jaxpr (or a closed one) over all devices; loops count as often as they run.

    Unlike the model's FLOPs (`ba_jax.metrics.flops`) they include padding, masked attention and
    rematerialization. Two for each multiply-add of matrix products and convolutions, nothing else.
    A loop without a fixed count counts once, a conditional as its largest branch, a Pallas kernel
    as its cost estimate.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation_flops(equation) for equation in jaxpr.eqns))


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        products = math.prod(shape[axis] for axis in contracted)
        return 2.0 * products * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        outputs = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * outputs * math.prod(kernel) / features
    if name == "pallas_call":
        cost = params.get("cost_estimate")
        return float(cost.flops) if cost else 0.0
    if name == "while":
        return count_flops(params["body_jaxpr"])
    if name == "cond":
        return max(map(count_flops, params["branches"]))
    inner = sum(map(count_flops, jaxprs_in_params(params)), 0.0)
    if name == "scan":
        return params["length"] * inner
    return inner * (math.prod(params["mesh"].shape.values()) if name == "shard_map" else 1)


def count_kept_bytes(jaxpr: Any, rows: int) -> float:
    """Bytes that scans keep of every step for the backward pass, over all devices.

    Counts the arrays that a scan stacks and that have a batch of `rows` rows; gradients, which
    scans stack too, have none.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "scan":
            for output, of_step in zip(
                equation.outvars, params["jaxpr"].jaxpr.outvars, strict=True
            ):
                is_stacked = output.aval.ndim > of_step.aval.ndim
                if is_stacked and rows in output.aval.shape[1:2]:
                    total += math.prod(output.aval.shape) * output.aval.dtype.itemsize
        total += sum(count_kept_bytes(inner, rows) for inner in jaxprs_in_params(params))
    return total


# --- bounds of the time ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TimeBound:
    """Lower bounds of a step's time in seconds, each as if everything else were free.

    Attributes:
      compute: the devices' FLOPs, rematerialization included, at their peak.
      hbm: memory traffic at full bandwidth.
      ici: bytes received from other devices of the slice over all links at once.
      dcn: bytes received from other slices.
      seconds: the largest of them.
      mfu: the model's FLOPs over the chips' peak for `seconds`.
      a_day: amount -> how much of it a day of such steps processes.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    seconds: float
    mfu: float
    a_day: dict[str, float]

    @property
    def by(self) -> str:
        """Name of the largest bound."""
        names = ("compute", "hbm", "ici", "dcn")
        return max(names, key=lambda name: getattr(self, name))


def bound_time(
    topology: Topology,
    model_flops: float,
    device_flops: float,
    bytes_accessed: float,
    collectives: Mapping[str, CollectiveSum],
    amounts: Mapping[str, float],
) -> TimeBound:
    """Bound a step's time by the figures of the chip.

    FLOPs are those of all chips, bytes and collectives those of a device; `amounts` of a step are
    "tokens" and the like.
    """
    chip, share = topology.chip, topology.share
    inside = sum(kind.received for kind in collectives.values())
    across = sum(kind.received_across for kind in collectives.values())
    bounds = (
        device_flops / (topology.chips * chip.peak),
        bytes_accessed / (chip.hbm_bandwidth * share),
        inside / (chip.ici_bandwidth * share),
        across / (chip.dcn_bandwidth * share),
    )
    seconds = max(bounds)
    return TimeBound(
        *bounds,
        seconds,
        model_flops / (topology.chips * chip.peak * seconds) if seconds else 0.0,
        {name: amount * DAY / seconds for name, amount in amounts.items()} if seconds else {},
    )
