"""Read a compiled program's text (HLO): its collectives, and the bytes that it moves.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
it runs: the body of a loop up to the constant in its condition (JAX's scans count from 0), and the
branch of a conditional that moves most. A loop whose trip count cannot be read counts once, and is
listed in `unknown_loops`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0, "tuple": 0, "s4": 0.5, "u4": 0.5}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")

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
# Operations without traffic: they only name other results, or run computations counted separately.
_FREE = set(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id add-dependency opt-barrier call-start async-start async-update".split()
)
_FREE_CALLS = ("AllocateBuffer", "PrepareAsyncCall", "AssumeGatherIndicesInBound", "Sharding")
_SLICES = {"dynamic-slice", "slice", "gather"}
# Written in place -> index of the operand with the new values.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


@dataclasses.dataclass(frozen=True)
class HloArray:
    """Type, shape and memory space of an array; space 0 is HBM."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        size = _BYTES.get(self.dtype)
        if size is None:  # f32, s8, f8e4m3fn, c64: the first number counts bits
            size = int(re.search(r"\d+", self.dtype)[0]) / 8
        return math.prod(self.shape) * size


@dataclasses.dataclass(frozen=True)
class HloInstruction:
    """A line of a program.

    Attributes:
      name, arrays: the result and its arrays.
      opcode: the operation.
      inside: text in the parentheses after the opcode.
      operands: names in it.
      rest: text after the parentheses: attributes.
    """

    name: str
    arrays: tuple[HloArray, ...]
    opcode: str
    inside: str
    operands: tuple[str, ...]
    rest: str

    def called(self, key: str) -> str:
        """Name of the computation in an attribute, or ""."""
        match = re.search(rf"\b{key}=%([\w.\-]+)", self.rest)
        return match[1] if match else ""

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def hbm_bytes(self) -> float:
        return sum(array.bytes for array in self.arrays if array.space == 0)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: an entry of KINDS.
      bytes: size of the result on each device: all of an all-gather, a part of a reduce-scatter.
      group: number of devices that take part together.
      times: how often it runs.
      crosses: devices of several slices take part.
    """

    kind: str
    bytes: float
    group: int
    times: float
    crosses: bool

    @property
    def received(self) -> float:
        """Bytes that each device receives, all times together."""
        return self.times * _RECEIVED[self.kind](self.group) * self.bytes


def _arrays(text: str) -> tuple[HloArray, ...]:
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(n) for n in dims.split(",") if n)
        arrays.append(HloArray(dtype, shape, int(space[1]) if space else 0))
    return tuple(arrays)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if not depth:
                return index
    raise ValueError(f"HLO: no closing parenthesis in {text[:80]!r}")


def _parse_instruction(line: str) -> HloInstruction | None:
    match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    close = _closing(line, opening)
    return HloInstruction(
        match[1],
        _arrays(line[start:end]),
        line[end:opening].strip(),
        line[opening + 1 : close],
        tuple(_NAME.findall(line[opening:close])),
        line[close + 1 :],
    )


class HloProgram:
    """A compiled program.

    Args:
      text: `compiled.as_text()`.
      slice_size, slices: devices of a slice and number of slices, to recognise collectives across
        slices. XLA:TPU writes these as transfers through the hosts (megascale), too.

    Raises:
      ValueError: text without a program.
    """

    def __init__(self, text: str, slice_size: int = 0, slices: int = 1):
        self.computations: dict[str, dict[str, HloInstruction]] = {}
        self.entry, self._slice_size, self._slices = "", slice_size, slices
        self.unknown_loops: list[str] = []
        current: dict[str, HloInstruction] | None = None
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = _NAME.search(line)
                if name and " -> " in line:
                    current = self.computations.setdefault(name[1], {})
                    if line.startswith("ENTRY"):
                        self.entry = name[1]
            elif line.startswith("}"):
                current = None
            elif current is not None and (instruction := _parse_instruction(line)):
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("HLO: text without an entry computation")
        self._bytes: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self._weigh(self.entry, 1.0)

    # --- how often a computation runs

    def _trips(self, loop: HloInstruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition")]
        root = list(condition.values())[-1]
        constants = [
            int(condition[name].inside)
            for name in root.operands
            if name in condition and condition[name].opcode == "constant"
        ]
        if root.opcode == "compare" and "direction=LT" in root.rest and len(constants) == 1:
            return constants[0]
        self.unknown_loops.append(loop.name)
        return 1

    def _called(self, line: HloInstruction) -> list[tuple[str, int]]:
        """Return the computations that an instruction runs, and how often; fusions have none.

        The largest branch of a conditional counts.
        """
        if line.opcode == "while":
            return [(line.called("body"), self._trips(line))]
        if line.opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
            both = (line.called("true_computation"), line.called("false_computation"))
            branches = _NAME.findall(listed[1]) if listed else [name for name in both if name]
            return [(max(branches, key=self._moved), 1)] if branches else []
        if line.opcode in ("call", "call-start"):
            return [(line.called("to_apply"), 1)]
        return [(line.called("calls"), 1)] if line.opcode == "async-start" else []

    def _weigh(self, name: str, times: float) -> None:
        """Add `times` runs of a computation and of those that it calls."""
        self.weights[name] = self.weights.get(name, 0.0) + times
        for line in self.computations[name].values():
            for called, trips in self._called(line):
                self._weigh(called, times * trips)
            if line.opcode == "fusion":
                called = line.called("calls")
                if any(map(_kind, self.computations.get(called, {}).values())):
                    self._weigh(called, times)

    # --- bytes

    def _moved(self, name: str) -> float:
        """HBM traffic of a run of a computation, loops counted."""
        if name not in self._bytes:
            self._bytes[name] = 0.0  # no computation calls itself
            self._bytes[name] = sum(
                self._moved_by(name, line)
                + sum(trips * self._moved(called) for called, trips in self._called(line))
                for line in self.computations[name].values()
            )
        return self._bytes[name]

    def _moved_by(self, name: str, line: HloInstruction) -> float:
        """HBM traffic of an instruction of a computation, without the computations it calls."""
        if line.opcode in _FREE or line.opcode.endswith("-done"):
            return 0.0
        if line.opcode == "custom-call" and any(f'="{call}' in line.rest for call in _FREE_CALLS):
            return 0.0
        operands = [self.computations[name].get(operand) for operand in line.operands]
        in_hbm = [o is not None and any(a.space == 0 for a in o.arrays) for o in operands]
        if line.opcode == "fusion":
            called = line.called("calls")
            total = self._written(called, line)
            for number, operand in enumerate(operands):
                if in_hbm[number]:
                    read, is_result = self._used(called, number, operand.bytes)
                    total += operand.bytes if is_result else read
            return total
        if line.opcode in _SLICES:
            return line.hbm_bytes * (2 if in_hbm[0] else 1)
        if line.opcode in _UPDATES:
            update = operands[_UPDATES[line.opcode]]
            return 2 * update.bytes if update else 0.0
        if line.opcode.endswith("-start"):  # (operand, result, contexts)
            return sum(array.bytes for array in line.arrays[:2] if array.space == 0)
        read = sum(o.bytes for o, is_read in zip(operands, in_hbm, strict=True) if is_read)
        return line.hbm_bytes + read

    def _used(self, name: str, number: int, size: float) -> tuple[float, bool]:
        """Return bytes read of a parameter, and whether the computation returns it unchanged."""
        body = self.computations[name].values()
        parameter = next(
            line.name for line in body if line.opcode == "parameter" and int(line.inside) == number
        )
        same, total = {parameter}, 0.0
        for line in body:  # operands come before their uses
            if not same.intersection(line.operands):
                continue
            if line.opcode == "bitcast":
                same.add(line.name)
            elif line.opcode in _SLICES and line.operands[0] in same:
                total += line.bytes
            elif line.opcode in _UPDATES and line.operands[0] in same:
                continue  # in place: only the update is written
            elif line.opcode == "fusion":
                for index, operand in enumerate(line.operands):
                    if operand in same:
                        read, is_result = self._used(line.called("calls"), index, size)
                        total += read
                        if is_result:
                            same.add(line.name)
            else:
                return size, False
        return min(total, size), list(body)[-1].name in same

    def _written(self, name: str, fusion: HloInstruction) -> float:
        """Bytes that a fusion writes; an update in place writes only the new values."""
        by_name = self.computations[name]
        root = list(by_name.values())[-1]
        roots = [root]
        if root.opcode == "tuple":
            roots = [by_name[operand] for operand in root.operands]
        if len(roots) != len(fusion.arrays):
            return fusion.hbm_bytes
        total = 0.0
        for result, array in zip(roots, fusion.arrays, strict=True):
            if array.space != 0:
                continue
            while result.opcode == "bitcast":
                result = by_name[result.operands[0]]
            if result.opcode in _UPDATES:
                update = by_name.get(result.operands[_UPDATES[result.opcode]])
                total += update.bytes if update else 0.0
            else:
                total += array.bytes
        return total

    @property
    def bytes_accessed(self) -> float:
        """HBM traffic of a device."""
        return self._moved(self.entry)

    # --- collectives

    def collectives(self) -> Iterator[Collective]:
        """Yield the program's collectives."""
        fused = {
            line.called("calls")
            for body in self.computations.values()
            for line in body.values()
            if line.opcode == "fusion"
        }
        for name, times in self.weights.items():
            body = self.computations[name].values()
            for line in body:
                if line.opcode == "recv" and (transfer := _TRANSFER.search(line.rest)):
                    kind = transfer[1].lower().replace("_", "-")
                    kind = kind if kind in _ACROSS else "collective-permute"
                    yield Collective(kind, line.arrays[0].bytes, self._slices, times, True)
                    continue
                kind = _kind(line)
                groups = replica_groups(line.rest) if kind else []
                group = 2 if kind == "collective-permute" else len(groups[0]) if groups else 1
                if group == 1:
                    continue
                size = _result_bytes(line, kind)
                # XLA:TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
                sliced = any(
                    user.opcode == "dynamic-slice" and user.operands[0] == line.name
                    for user in body
                )
                if kind == "all-reduce" and sliced and name in fused:
                    kind, size = "reduce-scatter", size / group
                yield Collective(kind, size, group, times, self._crosses(line, groups))

    def _crosses(self, line: HloInstruction, groups: list[list[int]]) -> bool:
        if self._slices == 1:
            return False
        if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line.rest):
            groups = [list(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)", pairs[0])]
        return any(len({device // self._slice_size for device in group}) > 1 for group in groups)


def _kind(line: HloInstruction) -> str:
    opcode = line.opcode.removesuffix("-start")
    return opcode if opcode in KINDS and not line.opcode.endswith("-done") else ""


def _result_bytes(line: HloInstruction, kind: str) -> float:
    """Size of a collective's result on a device."""
    arrays = line.arrays
    if line.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, contexts), with a result per operand
        arrays = arrays[len(line.operands) : 2 * len(line.operands)]
    return sum(array.bytes for array in arrays)


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
