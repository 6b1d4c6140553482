"""Compiles a step for devices that may not be there, and reads what XLA made of it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from ba_jax.plan import hlo, traced
from ba_jax.plan.topology import Topology

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"


class OutOfMemory(Exception):
    """XLA finds that a program does not fit.

    Attributes:
      used, limit: bytes of a device; 0 where the message does not say.
      temporaries_alone: `used` are the temporaries, the arguments come on top.
      largest: its largest arrays, (bytes, shape, where it comes from).
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.used, self.limit, self.largest = parse_out_of_memory(message)
        self.temporaries_alone = "for HLO temporaries" in message


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device.

    Attributes:
      arguments: what a step is given, and in a training step gives back in the same place.
      outputs: what it gives, less what lies where an argument lay.
      aliased: of the arguments, what is given back in place.
      temporaries: what it needs while it runs.
      code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All of them at once; aliased ones are arguments."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CollectiveSum:
    """All collectives of a kind in a step.

    Attributes:
      count: how often they run.
      bytes: of their results on a device.
      received: what a device has to receive from devices of its slice.
      received_across: the same where devices of several slices take part.
    """

    count: float = 0
    bytes: float = 0
    received: float = 0
    received_across: float = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA made of a step.

    Attributes:
      memory: of a device.
      device_flops: of all devices together, as traced: with padding and what remat repeats.
      bytes_accessed: of a device's HBM, loops counted as often as they run.
      xla_bytes: XLA's own count, with the body of a loop once.
      collectives: by kind.
      unknown_loops: loops that count once because their number could not be read.
      seconds: that tracing and compiling took.
      text: the program.
    """

    memory: Memory
    device_flops: float
    bytes_accessed: float
    xla_bytes: float
    collectives: dict[str, CollectiveSum]
    unknown_loops: tuple[str, ...]
    seconds: float
    text: str = dataclasses.field(repr=False, default="")


def compile_step(function: Callable, arguments: Iterable[Any], topology: Topology) -> Compiled:
    """Compiles a jitted function for a topology.

    Args:
      function: jitted.
      arguments: shapes that are placed on the topology's devices.
      topology: one that can be compiled for.

    Raises:
      OutOfMemory: it does not fit.
      Exception: whatever else JAX and XLA raise.
    """
    started = time.monotonic()
    found = function.trace(*arguments)
    platform = "tpu" if topology.chip.is_tpu else "cuda"
    try:
        compiled = found.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from error
        raise
    seconds = time.monotonic() - started
    stats = compiled.memory_analysis()
    slice_size = len(topology.devices) // topology.slices
    text = compiled.as_text()
    program = hlo.Program(text, slice_size if topology.slices > 1 else None, topology.slices)
    return Compiled(
        Memory(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes - stats.alias_size_in_bytes,
            stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes,
        ),
        traced.program_flops(found.jaxpr),
        program.bytes_accessed,
        float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0)),
        sum_collectives(program.collectives()),
        tuple(dict.fromkeys(program.unknown_loops)),
        seconds,
        text,
    )


def sum_collectives(collectives: Iterable[hlo.Collective]) -> dict[str, CollectiveSum]:
    """Sums by kind, in the order of `hlo.KINDS`."""
    found: dict[str, CollectiveSum] = {}
    for one in collectives:
        before = found.get(one.kind, CollectiveSum())
        found[one.kind] = CollectiveSum(
            before.count + one.times,
            before.bytes + one.times * one.bytes,
            before.received + one.received * (not one.crosses),
            before.received_across + one.received * one.crosses,
        )
    return {kind: found[kind] for kind in hlo.KINDS if kind in found}


def parse_out_of_memory(message: str) -> tuple[int, int, list[tuple[int, str, str]]]:
    """(bytes used, bytes there are, largest arrays) of XLA:TPU's or XLA:GPU's message."""

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
