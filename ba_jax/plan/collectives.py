"""Collectives of a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from ba_jax.plan.hlo_text import HloInstruction

_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_ACROSS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
# Share of its result that a device of a group of n receives.
_RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
KINDS = tuple(_RECEIVED)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: an entry of KINDS.
      bytes: size of the result on each device: all of an all-gather, a part of a reduce-scatter.
      group: number of devices that take part together.
      times: how often it runs.
      crosses: devices of several slices take part.
      is_async: other instructions run between its start and its end.
    """

    kind: str
    bytes: float
    group: int
    times: float
    crosses: bool
    is_async: bool = False

    @property
    def received(self) -> float:
        """Bytes that each device receives, all times together."""
        return self.times * _RECEIVED[self.kind](self.group) * self.bytes


def kind_of(line: HloInstruction) -> str:
    """Kind of the collective that an instruction is or starts; "" for others."""
    opcode = line.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else ""


def transfer_kind(line: HloInstruction) -> str:
    """Kind of the collective across slices that XLA:TPU writes as a transfer; "" for others."""
    match = _TRANSFER.search(line.rest) if line.opcode == "recv" else None
    kind = match[1].lower().replace("_", "-") if match else ""
    return kind if kind in ("", *_ACROSS) else "collective-permute"


def result_bytes(line: HloInstruction, kind: str) -> float:
    """Size of a collective's result on a device."""
    arrays = line.arrays
    if line.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, contexts), with a result per operand
        arrays = arrays[len(line.operands) : 2 * len(line.operands)]
    return sum(array.bytes for array in arrays)


def crosses(line: HloInstruction, groups: list[list[int]], slice_size: int, slices: int) -> bool:
    """Whether devices of several slices take part in a collective with these groups."""
    if slices == 1:
        return False
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line.rest):
        groups = [list(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)", pairs[0])]
    return any(len({device // slice_size for device in group}) > 1 for group in groups)


def replica_groups(text: str) -> list[list[int]]:
    """Parse the groups of devices in an instruction's attributes; [] if it has none.

    Three forms: `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` (an iota, transposed), and
    `mesh['a'=2,'b'=4] {'b'}` (axes of a mesh, or parts `'b':(1)2` of them, that vary in a group).
    """
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", match[1])]
    pattern = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if match := re.search(pattern, text):
        ids = np.arange(int(match[1]) * int(match[2]))
        ids = ids.reshape([int(n) for n in match[3].split(",")])
        if match[4]:
            ids = ids.transpose([int(n) for n in match[4].split(",")])
        return ids.reshape(int(match[1]), int(match[2])).tolist()
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        return _mesh_groups(match[1], match[2])
    return []


def _mesh_groups(mesh: str, varying: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", varying):
        parts.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    shape, inside = [], []
    for name, size in sizes.items():
        split = 1  # product of the axis's sizes so far
        for before, part in sorted(parts.get(name, [])):
            shape += [before // split, part]
            inside.append(len(shape) - 1)
            split = before * part
        shape.append(size // split)
    ids = np.arange(math.prod(sizes.values())).reshape(shape)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    group = math.prod(shape[axis] for axis in inside)
    return ids.transpose(outside + inside).reshape(-1, group).tolist()
