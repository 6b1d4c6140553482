"""What a plan tells: a table for people, and the same as a dict for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ba_jax.plan.compiled import Compiled
from ba_jax.plan.estimate import Bound
from ba_jax.plan.topology import Topology

_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out about a step.

    Attributes:
      what: the step in words.
      topology, mesh: where.
      counts: component -> (its parameters, how many of them train).
      kinds: kind of array -> bytes of a device, what the arguments are made of.
      peak_bytes: of a device.
      hbm_bytes: that a device has.
      model_flops: of the model in a step, all chips.
      needed_bytes: that a device has to read at least, or None where that is not known.
      amounts: of a step.
      compiled: what XLA made of it, or None where nothing could compile.
      bound: how long it takes at least, or None.
      note: how to read it, where that is not plain.
    """

    what: str
    topology: Topology
    mesh: dict[str, int]
    counts: dict[str, tuple[int, int]]
    kinds: dict[str, int]
    peak_bytes: int
    hbm_bytes: int
    model_flops: float
    needed_bytes: float | None
    amounts: dict[str, float]
    compiled: Compiled | None
    bound: Bound | None
    note: str = ""

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.hbm_bytes


def as_dict(plan: Plan) -> dict[str, Any]:
    """Everything, in plain types."""
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
        "bytes_accessed": compiled.bytes_accessed if compiled else None,
        "bytes_accessed_loops_once": compiled.xla_bytes if compiled else None,
        "needed_bytes": plan.needed_bytes,
        "collectives": {
            kind: dataclasses.asdict(one)
            for kind, one in (compiled.collectives if compiled else {}).items()
        },
        "unknown_loops": list(compiled.unknown_loops) if compiled else [],
        "compile_seconds": compiled.seconds if compiled else None,
        "amounts": plan.amounts,
        "bound": (dataclasses.asdict(plan.bound) | {"by": plan.bound.by}) if plan.bound else None,
        "note": plan.note,
    }


def table(rows: Iterable[Iterable[str]], left: int = 1) -> list[str]:
    """Rows as aligned lines, the first `left` columns to the left and the others to the right."""
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


def size(count: float) -> str:
    """Bytes with a decimal unit: 12.3 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """12.3 s, 45.6 ms, 7.8 us."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:,.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def amount(value: float) -> str:
    """12.3 P, 45.6 G, 789 k, 12."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def lines(plan: Plan) -> list[str]:
    """The table."""
    found = [plan.what, *_where(plan), "", "parameters, millions", *_parameters(plan.counts)]
    found += ["", "memory of a device", *_memory(plan)]
    found += ["", "a step", *_step(plan)]
    if plan.compiled:
        found += ["", "collectives of a device", *_collectives(plan.compiled)]
    if plan.bound:
        found += ["", "a step takes at least", *_bound(plan.bound, plan.amounts)]
    return found + ([""] + [plan.note] if plan.note else [])


def _where(plan: Plan) -> list[str]:
    topology = plan.topology
    each = "" if topology.share == 1 else f", {len(topology.devices)} devices"
    slices = "" if topology.slices == 1 else f" in {topology.slices} slices"
    mesh = " ".join(f"{axis}={number}" for axis, number in plan.mesh.items())
    return [f"{topology.name}{slices}: {topology.chips} chips{each}, mesh {mesh}"]


def _parameters(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [("", "all", "training")]
    rows += [(name, _millions(all_), _millions(some)) for name, (all_, some) in counts.items()]
    return table([*rows, ("together", *map(_millions, totals))])


def _memory(plan: Plan) -> list[str]:
    rows = [(f"  {kind}", size(count)) for kind, count in plan.kinds.items()]
    if plan.compiled:
        memory = plan.compiled.memory
        rows.insert(0, ("arguments", size(memory.arguments)))
        rows += [
            ("given back in place", size(memory.aliased)),
            ("other outputs", size(memory.outputs)),
            ("temporaries", size(memory.temporaries)),
            ("program", size(memory.code)),
        ]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    rows.append(("peak", size(plan.peak_bytes)))
    rows.append(("of", size(plan.hbm_bytes)))
    share = plan.peak_bytes / plan.hbm_bytes
    return [*table(rows), f"  {verdict}: {share:.0%}"]


def _step(plan: Plan) -> list[str]:
    rows = [("model FLOPs", amount(plan.model_flops))]
    if plan.compiled:
        rows.append(("FLOPs with padding and remat", amount(plan.compiled.device_flops)))
        rows.append(("bytes accessed by a device", size(plan.compiled.bytes_accessed)))
    if plan.needed_bytes is not None:
        rows.append(("bytes that it needs", size(plan.needed_bytes)))
    rows += [(name.replace("_", " "), amount(value)) for name, value in plan.amounts.items()]
    if plan.compiled:
        rows.append(("compiled in", duration(plan.compiled.seconds)))
        if loops := plan.compiled.unknown_loops:
            rows.append(("loops that count once", str(len(loops))))
    return table(rows)


def _collectives(compiled: Compiled) -> list[str]:
    if not compiled.collectives:
        return ["  none"]
    rows = [("", "count", "bytes", "received", "from other slices")]
    rows += [
        (kind, f"{one.count:,.0f}", size(one.bytes), size(one.received), size(one.received_across))
        for kind, one in compiled.collectives.items()
    ]
    return table(rows)


def _bound(bound: Bound, amounts: Mapping[str, float]) -> list[str]:
    rows = [
        (name, duration(getattr(bound, name)), "<- bounds it" if bound.by == name else "")
        for name in ("compute", "hbm", "ici", "dcn")
        if getattr(bound, name)
    ]
    found = table(rows)
    found.append(f"  MFU at most {bound.mfu:.1%}")
    day = dict(bound.a_day)
    told = []
    if "audio_seconds" in day:
        told.append(f"{amount(day.pop('audio_seconds') / 3600)} hours of audio")
    told += [f"{amount(value)} {name}" for name, value in day.items() if name != "examples"]
    return [*found, f"  a day at most {', '.join(told)}"]
