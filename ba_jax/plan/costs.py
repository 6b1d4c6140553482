"""Costs of a step: compile it for devices that may not be there, and bound its time.

Three times are given. The bound takes everything to overlap: no run can beat it. The serial
roofline takes nothing to overlap but collectives that the program starts and ends in two
instructions: each instruction takes the longest of its FLOPs at the chip's peak (8-bit products at
twice that, on chips that have it), its bytes at full bandwidth and its bytes from other devices at
that of the links. Steps that were measured took a factor longer than it (`SLOWDOWN`), which gives
the expected time.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ba_jax.plan import hlo
from ba_jax.plan.collectives import KINDS
from ba_jax.plan.topology import Topology
from ba_jax.plan.traced import count_flops

DAY = 86400.0
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"

SLOWDOWN = {"v5p": 1.2, "v6e": 1.6}
"""Chip -> measured time of a training step over its serial roofline.

MaxText's published steps over their serial roofline, compiled like ours: Llama2-70B on 512 v5p (692
tokens/s/chip) 23.68 s over 19.9: 1.19; on 256 v6e Llama3.1-8B 4.546 over 2.78: 1.63, Llama3.1-70B
42.66 over 27.9: 1.53 (tpu-recipes, and MaxText's docs/reference/models/tiering.md; read in 2026).
"""
NEAREST = {"v4": "v5p", "v5e": "v6e"}
"""Chip without a measured step -> the one of the same build (torus, cores) to take it from."""


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
      asynchronous: bytes received, from anywhere, while other instructions run.
    """

    count: float = 0
    bytes: float = 0
    received: float = 0
    received_across: float = 0
    asynchronous: float = 0


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Figures of a compiled step.

    Attributes:
      memory: bytes of a device.
      device_flops: FLOPs of all devices together, as traced: with padding and rematerialization.
      program_flops: FLOPs of a device, counted in the compiled program.
      doubled_flops: those of `device_flops` that run at twice the peak.
      bytes_accessed: HBM traffic of a device; loop bodies count as often as they run.
      xla_bytes: XLA's own count, with the body of a loop once.
      collectives: sums by kind.
      serial: the serial roofline in seconds; None for GPUs, whose libraries hide their FLOPs.
      unknown: loops that count once because their trip count could not be read, and kernels that
        count no FLOPs.
      seconds: time of tracing and compiling.
      text: the program.
    """

    memory: StepMemory
    device_flops: float
    program_flops: float
    bytes_accessed: float
    xla_bytes: float
    collectives: dict[str, CollectiveSum]
    serial: float | None
    unknown: tuple[str, ...]
    seconds: float
    text: str = dataclasses.field(repr=False, default="")
    doubled_flops: float = 0.0


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
    traced = count_flops(trace.jaxpr)
    doubles = topology.chip.doubles
    program = hlo.HloProgram(text, slice_size, topology.slices, traced.kernels, doubles)
    costs = list(program.costs())
    return CompiledStep(
        StepMemory(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes - stats.alias_size_in_bytes,
            stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes,
        ),
        traced.total,
        sum(cost.flops for cost in costs),
        sum(cost.bytes for cost in costs),
        float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0)),
        sum_collectives(costs),
        serial_seconds(costs, topology) if topology.chip.is_tpu else None,
        tuple(dict.fromkeys([*program.unknown_loops, *program.unknown_kernels])),
        seconds,
        text,
        count_flops(trace.jaxpr, doubles).total,
    )


def sum_collectives(costs: Iterable[hlo.InstructionCost]) -> dict[str, CollectiveSum]:
    """Sum a program's collectives by kind, in the order of `KINDS`."""
    sums: dict[str, CollectiveSum] = {}
    for collective in (collective for cost in costs for collective in cost.collectives):
        before = sums.get(collective.kind, CollectiveSum())
        sums[collective.kind] = CollectiveSum(
            before.count + collective.times,
            before.bytes + collective.times * collective.bytes,
            before.received + collective.received * (not collective.crosses),
            before.received_across + collective.received * collective.crosses,
            before.asynchronous + collective.received * collective.is_async,
        )
    return {kind: sums[kind] for kind in KINDS if kind in sums}


def serial_seconds(costs: Iterable[hlo.InstructionCost], topology: Topology) -> float:
    """Sum the times of all instructions, each at its roofline."""
    chip, share = topology.chip, topology.share
    total = 0.0
    for cost in costs:
        waits = [c for c in cost.collectives if not c.is_async]
        total += max(
            (cost.flops - cost.doubled / 2) / (chip.peak * share),
            cost.bytes / (chip.hbm_bandwidth * share),
            sum(c.received for c in waits if not c.crosses) / (chip.ici_bandwidth * share),
            sum(c.received for c in waits if c.crosses) / (chip.dcn_bandwidth * share),
        )
    return total


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


# --- time -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Times of a step in seconds.

    Attributes:
      compute: the devices' FLOPs, rematerialization included, at their peak.
      hbm: memory traffic at full bandwidth.
      ici: bytes received from other devices of the slice over all links at once.
      dcn: bytes received from other slices.
      model: the model's own FLOPs at the chips' peak.
      serial: the serial roofline, None if unknown.
      expected: the serial roofline times the measured slowdown of `measured_on`; None for a chip
        without one.
      measured_on: the chip that steps were measured on, "" for none.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    model: float
    serial: float | None = None
    expected: float | None = None
    measured_on: str = ""

    @property
    def bound(self) -> float:
        """Lower bound: the longest of the four, as if everything else were free."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def by(self) -> str:
        """Name of the largest bound."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))

    @property
    def best(self) -> tuple[str, float]:
        """Name and value of the truest time: expected, else serial, else the bound."""
        times = {"expected": self.expected, "serial": self.serial, "bound": self.bound}
        return next((name, time) for name, time in times.items() if time is not None)

    def mfu(self, seconds: float) -> float:
        """Share of the chips' peak that the model's FLOPs take in a step of `seconds`."""
        return self.model / seconds if seconds else 0.0

    def a_day(self, amounts: Mapping[str, float]) -> dict[str, float]:
        """Amounts that a day of steps of the best time processes, of those of a step."""
        _, seconds = self.best
        return {name: amount * DAY / seconds for name, amount in amounts.items() if seconds}


def step_time(
    topology: Topology,
    model_flops: float,
    device_flops: float,
    bytes_accessed: float,
    collectives: Mapping[str, CollectiveSum],
    serial: float | None = None,
    *,
    trains: bool = False,
    doubled: float = 0.0,
) -> StepTime:
    """Time a step by the figures of the chip.

    FLOPs are those of all chips, bytes and collectives those of a device; of `device_flops`,
    `doubled` run at twice the peak. The slowdowns are those
    of training steps: without `trains` there is no expected time.
    """
    chip, share = topology.chip, topology.share
    inside = sum(kind.received for kind in collectives.values())
    across = sum(kind.received_across for kind in collectives.values())
    measured_on = NEAREST.get(chip.name, chip.name)
    slowdown = SLOWDOWN.get(measured_on) if trains and serial is not None else None
    return StepTime(
        (device_flops - doubled / 2) / (topology.chips * chip.peak),
        bytes_accessed / (chip.hbm_bandwidth * share),
        inside / (chip.ici_bandwidth * share),
        across / (chip.dcn_bandwidth * share),
        model_flops / (topology.chips * chip.peak),
        serial,
        slowdown and slowdown * serial,
        measured_on if slowdown else "",
    )
