"""A plan as text, as a dict for JSON, and as a picture of the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ba_jax.plan.costs import CompiledStep, StepTime
from ba_jax.plan.topology import Topology

# Distinct for the colour-blind too (Okabe and Ito 2008).
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00", "#cc79a7", "#999999")


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """A step on a topology, its memory, traffic and time.

    Attributes:
      what: the step in words.
      topology, mesh: devices, and sizes of the mesh's axes.
      counts: component -> (all parameters, trained parameters).
      kinds: kind of argument -> bytes of a device.
      hbm_bytes: memory of a device.
      model_flops: FLOPs of the model in a step, all chips.
      amounts: tokens, seconds of audio and so on of a step.
      peak_bytes: memory that a device needs.
      needed_bytes: bytes that a device has to read at least, or None if unknown.
      compiled: figures of the compiled step, or None if it could not be compiled.
      time: times of the step, or None.
      trains: it is a step of training, not of generation.
      note: limits of an estimate.
    """

    what: str
    topology: Topology
    mesh: dict[str, int]
    counts: dict[str, tuple[int, int]]
    kinds: dict[str, int]
    hbm_bytes: int
    model_flops: float
    amounts: dict[str, float]
    peak_bytes: int = 0
    needed_bytes: float | None = None
    compiled: CompiledStep | None = None
    time: StepTime | None = None
    trains: bool = False
    note: str = ""

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.hbm_bytes


def as_dict(plan: StepPlan) -> dict[str, Any]:
    """Return all figures in plain types."""
    compiled = plan.compiled
    return {
        "what": plan.what,
        "topology": plan.topology.name,
        "slices": plan.topology.slices,
        "chips": plan.topology.chips,
        "devices": len(plan.topology.devices),
        "mesh": plan.mesh,
        "parameters": {name: total for name, (total, _) in plan.counts.items()},
        "trainable_parameters": {name: count for name, (_, count) in plan.counts.items()},
        "peak_bytes": plan.peak_bytes,
        "hbm_bytes": plan.hbm_bytes,
        "fits": plan.fits,
        "memory": dataclasses.asdict(compiled.memory) if compiled else None,
        "argument_kinds": plan.kinds,
        "model_flops": plan.model_flops,
        "device_flops": compiled.device_flops if compiled else None,
        "program_flops": compiled.program_flops if compiled else None,
        "bytes_accessed": compiled.bytes_accessed if compiled else None,
        "bytes_accessed_loops_once": compiled.xla_bytes if compiled else None,
        "needed_bytes": plan.needed_bytes,
        "collectives": {
            kind: dataclasses.asdict(sums)
            for kind, sums in (compiled.collectives if compiled else {}).items()
        },
        "unknown": list(compiled.unknown) if compiled else [],
        "compile_seconds": compiled.seconds if compiled else None,
        "amounts": plan.amounts,
        "time": _time_figures(plan) if plan.time else None,
        "note": plan.note,
    }


def _time_figures(plan: StepPlan) -> dict[str, Any]:
    time = plan.time
    name, seconds = time.best
    return dataclasses.asdict(time) | {
        "bound": time.bound,
        "by": time.by,
        "best": name,
        "seconds": seconds,
        "mfu": time.mfu(seconds),
        "mfu_at_most": time.mfu(time.bound),
        "a_day": time.a_day(plan.amounts),
    }


def format_table(rows: Iterable[Iterable[str]], left: int = 1) -> list[str]:
    """Format rows as aligned lines, the first `left` columns aligned left, the others right."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _scale(value: float, units: Mapping[str, float], whole: bool = False) -> str:
    """Format a value with the first unit that is not larger; `whole`: without decimals from 100."""
    unit = next((unit for unit, factor in units.items() if value >= factor), list(units)[-1])
    value /= units[unit]
    digits = f"{value:,.0f}" if value >= 100 and whole else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def format_bytes(count: float) -> str:
    """Format bytes with a decimal unit: 12.3 GB."""
    return _scale(count, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1}, whole=True)


def format_seconds(seconds: float) -> str:
    """Format seconds: 12.3 s, 45.6 ms, 7.8 us."""
    return _scale(seconds, {"s": 1.0, "ms": 1e-3, "us": 1e-6})


def format_amount(value: float) -> str:
    """Format a number: 12.3 P, 45.6 G, 789 k, 12."""
    return _scale(value, {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1})


def format_plan(plan: StepPlan) -> list[str]:
    """Format a plan as lines of text."""
    topology, compiled = plan.topology, plan.compiled
    devices = "" if topology.share == 1 else f", {len(topology.devices)} devices"
    slices = "" if topology.slices == 1 else f" in {topology.slices} slices"
    mesh = " ".join(f"{axis}={number}" for axis, number in plan.mesh.items())
    counts = plan.counts | {"together": [sum(c) for c in zip(*plan.counts.values(), strict=True)]}
    parameters = [(name, *(f"{n / 1e6:,.1f}" for n in both)) for name, both in counts.items()]
    lines = [
        plan.what,
        f"{topology.name}{slices}: {topology.chips} chips{devices}, mesh {mesh}",
        *("", "parameters, millions", *format_table([("", "all", "training"), *parameters])),
        *("", "memory of a device", *_memory(plan)),
        *("", "a step", *_step(plan)),
    ]
    if compiled:
        rows = [("", "count", "bytes", "received", "from other slices", "asynchronous")]
        rows += [
            (kind, f"{sums.count:,.0f}", *map(format_bytes, tuple(dataclasses.astuple(sums))[1:]))
            for kind, sums in compiled.collectives.items()
        ]
        table = format_table(rows) if compiled.collectives else ["  none"]
        lines += ["", "collectives of a device", *table]
    if plan.time:
        lines += ["", "a step takes at least", *_times(plan)]
    return lines + (["", plan.note] if plan.note else [])


def _memory(plan: StepPlan) -> list[str]:
    figures = {f"  {kind}": count for kind, count in plan.kinds.items()}
    if plan.compiled:
        memory = plan.compiled.memory
        figures = {"arguments": memory.arguments, **figures}
        figures |= {"reused for outputs": memory.aliased, "other outputs": memory.outputs}
        figures |= {"temporaries": memory.temporaries, "program": memory.code}
    figures |= {"peak": plan.peak_bytes, "available": plan.hbm_bytes}
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    table = format_table((name, format_bytes(count)) for name, count in figures.items())
    return [*table, f"  {verdict}: {plan.peak_bytes / plan.hbm_bytes:.0%}"]


def _step(plan: StepPlan) -> list[str]:
    rows = [("model FLOPs", format_amount(plan.model_flops))]
    if plan.compiled:
        rows.append(("FLOPs with padding and remat", format_amount(plan.compiled.device_flops)))
        rows.append(("bytes accessed by a device", format_bytes(plan.compiled.bytes_accessed)))
    if plan.needed_bytes is not None:
        rows.append(("bytes that it must read", format_bytes(plan.needed_bytes)))
    rows += [(name.replace("_", " "), format_amount(value)) for name, value in plan.amounts.items()]
    if plan.compiled:
        rows.append(("compiled in", format_seconds(plan.compiled.seconds)))
        if unknown := plan.compiled.unknown:
            rows.append(("loops that count once, kernels that count none", str(len(unknown))))
    return format_table(rows)


def _times(plan: StepPlan) -> list[str]:
    time, chip = plan.time, plan.topology.chip.name
    rows = [
        (name, format_seconds(getattr(time, name)), "<- bounds it" if time.by == name else "")
        for name in ("compute", "hbm", "ici", "dcn")
        if getattr(time, name)
    ]
    lines = [*format_table(rows), f"  MFU at most {time.mfu(time.bound):.1%}"]
    name, seconds = time.best
    if time.serial is not None:
        lines += [
            "",
            f"serial roofline: {format_seconds(time.serial)}, MFU {time.mfu(time.serial):.1%}",
        ]
    if time.expected is not None:
        origin = "" if time.measured_on == chip else f"; {chip} is unmeasured, the nearest is taken"
        lines += [
            f"expected: {format_seconds(seconds)}, MFU {time.mfu(seconds):.1%} (measured steps of "
            f"{time.measured_on} took {time.expected / time.serial:.2g} x the serial roofline"
            f"{origin})"
        ]
    elif plan.trains:
        lines += ["", f"expected: unknown, no step was measured on {chip} or one like it"]
    amounts = []
    for amount, value in time.a_day(plan.amounts).items():
        if amount == "audio_seconds":
            amounts.insert(0, f"{format_amount(value / 3600)} hours of audio")
        elif amount != "examples":
            amounts.append(f"{format_amount(value)} {amount}")
    most = "" if name == "expected" else "at most "
    return [*lines, f"a day {most}(by the {name} time): {', '.join(amounts)}"]


def memory_parts(plan: StepPlan) -> dict[str, int]:
    """Split the peak into kinds of arguments and the rest; bytes."""
    parts = dict(plan.kinds)
    arguments = sum(plan.kinds.values())
    if plan.compiled:
        memory = plan.compiled.memory
        parts["padding"] = max(memory.arguments - arguments, 0)
        parts |= {"temporaries": memory.temporaries, "outputs": memory.outputs}
        parts["program"] = memory.code
    else:
        parts["temporaries and program"] = max(plan.peak_bytes - arguments, 0)
    return {kind: count for kind, count in parts.items() if count}


def draw_memory(plan: StepPlan, path: Path | str) -> None:
    """Write a bar of a device's memory as PNG, with a line at its size.

    Raises:
      OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.add_subplot()
    start = 0.0
    for number, (kind, count) in enumerate(memory_parts(plan).items()):
        label = f"{kind}: {format_bytes(count)}"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.barh(0, count / 1e9, left=start, color=colour, label=label)
        start += count / 1e9
    axes.axvline(plan.hbm_bytes / 1e9, color="red", label=f"memory: {format_bytes(plan.hbm_bytes)}")
    axes.set(xlabel="GB", yticks=[], xlim=(0, 1.02 * max(plan.peak_bytes, plan.hbm_bytes) / 1e9))
    axes.set_title(
        f"{plan.what}, {plan.topology.name}: {format_bytes(plan.peak_bytes)} of "
        f"{format_bytes(plan.hbm_bytes)}",
        fontsize="medium",
        wrap=True,
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, frameon=False)
    figure.savefig(path, format="png", dpi=120)
