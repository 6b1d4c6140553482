"""Reads a compiled program's text (HLO): its collectives, and the bytes that it moves.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
it runs: a loop's body as many times as its condition's constant says (loops that JAX's scan makes
count from 0), of a conditional the branch that moves most. A loop whose count cannot be read counts
once, and is told.
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
_ACROSS = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Neither read nor write memory: they name what others made, or run what is counted by itself.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "add-dependency",
    "opt-barrier",
    "call-start",
    "async-start",
    "async-update",
}
_FREE_CALLS = ("AllocateBuffer", "PrepareAsyncCall", "AssumeGatherIndicesInBound", "Sharding")
_SLICES = {"dynamic-slice", "slice", "gather"}
# Written in place; which operand is new.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


@dataclasses.dataclass(frozen=True)
class Array:
    """Type, dimensions and memory of an array; `space` is 0 for HBM."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        size = _BYTES.get(self.dtype)
        if size is None:  # f32, s8, f8e4m3fn, c64: the first number is of bits
            size = int(re.search(r"\d+", self.dtype)[0]) / 8
        return math.prod(self.shape) * size


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: what it makes, of what; `inside` is what the parentheses hold, `rest` follows."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    inside: str
    operands: tuple[str, ...]
    rest: str

    def called(self, key: str) -> str:
        """The computation that an attribute names, or ""."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: one of KINDS.
      bytes: of what each device ends up with: all of an all-gather, its part of a reduce-scatter.
      group: how many devices take part together.
      times: how often it runs.
      crosses: devices of several slices take part.
      source: where it comes from, JAX's name.
    """

    kind: str
    bytes: float
    group: int
    times: float
    crosses: bool
    source: str

    @property
    def received(self) -> float:
        """Bytes that each device has to receive, all times together."""
        others = (self.group - 1) / self.group
        factor = {
            "all-gather": others,
            "reduce-scatter": self.group - 1,
            "all-reduce": 2 * others,
            "all-to-all": others,
            "collective-permute": 1,
        }[self.kind]
        return self.times * factor * self.bytes


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(n) for n in dims.split(",") if n)
        found.append(Array(dtype, shape, int(space[1]) if space else 0))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    raise ValueError(f"HLO: no closing parenthesis in {text[:80]!r}")


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    close = _closing(line, opening)
    return Instruction(
        match[1],
        _arrays(line[start:end]),
        line[end:opening].strip(),
        line[opening + 1 : close],
        tuple(_NAME.findall(line[opening:close])),
        line[close + 1 :],
    )


class Program:
    """A compiled program.

    Args:
      text: `compiled.as_text()`.
      slice_size: devices of a slice, to tell collectives that cross slices; None: one slice.
      slices: how many. XLA:TPU writes what crosses them as transfers through the hosts (megascale).

    Raises:
      ValueError: text that is no program.
    """

    def __init__(self, text: str, slice_size: int | None = None, slices: int = 1):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, self._slice_size, self._slices = "", slice_size, slices
        self.unknown_loops: list[str] = []
        current: list[Instruction] | None = None
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = _NAME.search(line)
                if name and " -> " in line:
                    current = self.computations.setdefault(name[1], [])
                    if line.startswith("ENTRY"):
                        self.entry = name[1]
            elif line.startswith("}"):
                current = None
            elif current is not None and (found := _instruction(line)):
                current.append(found)
        if not self.entry:
            raise ValueError("HLO: text without an entry computation")
        self._by_name = {
            name: {one.name: one for one in body} for name, body in self.computations.items()
        }
        self._bytes: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self._weigh(self.entry, 1.0)

    # How often a computation runs

    def _trips(self, loop: Instruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition")]
        by_name = self._by_name[loop.called("condition")]
        root = condition[-1]
        constants = [
            int(found.inside)
            for name in root.operands
            if (found := by_name.get(name)) is not None and found.opcode == "constant"
        ]
        if root.opcode == "compare" and "direction=LT" in root.rest and len(constants) == 1:
            return constants[0]
        self.unknown_loops.append(loop.name)
        return 1

    def _weigh(self, name: str, times: float) -> None:
        self.weights[name] = self.weights.get(name, 0.0) + times
        for one in self.computations[name]:
            if one.opcode == "while":
                trips = self._trips(one)
                self._weigh(one.called("body"), times * trips)
            elif one.opcode == "conditional":
                branches = self._branches(one)
                if branches:
                    self._weigh(max(branches, key=self._moved), times)
            elif one.opcode in ("call", "call-start"):
                self._weigh(one.called("to_apply"), times)
            elif one.opcode in ("fusion", "async-start"):
                called = one.called("calls")
                if one.opcode == "async-start" or self._has_collective(called):
                    self._weigh(called, times)

    def _branches(self, one: Instruction) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
        if listed:
            return _NAME.findall(listed[1])
        both = (one.called("true_computation"), one.called("false_computation"))
        return [name for name in both if name]

    def _has_collective(self, name: str) -> bool:
        return any(_kind(one) for one in self.computations.get(name, ()))

    # Bytes

    def _moved(self, name: str) -> float:
        """Bytes of a computation that runs once, loops counted."""
        if name not in self._bytes:
            self._bytes[name] = 0.0  # nothing calls itself
            total = 0.0
            for one in self.computations[name]:
                total += self._moved_by(name, one)
                if one.opcode == "while":
                    total += self._trips(one) * self._moved(one.called("body"))
                elif one.opcode == "conditional":
                    total += max(map(self._moved, self._branches(one)), default=0.0)
                elif one.opcode in ("call", "call-start"):
                    total += self._moved(one.called("to_apply"))
                elif one.opcode == "async-start":
                    total += self._moved(one.called("calls"))
            self._bytes[name] = total
        return self._bytes[name]

    def _moved_by(self, name: str, one: Instruction) -> float:
        """Bytes that one instruction reads from HBM and writes there."""
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            return 0.0
        if one.opcode == "custom-call" and any(f'="{call}' in one.rest for call in _FREE_CALLS):
            return 0.0
        by_name = self._by_name[name]
        if one.opcode == "fusion":
            called = one.called("calls")
            read = sum(
                self._read(called, number, self._size(by_name, operand))
                for number, operand in enumerate(one.operands)
                if self._in_hbm(by_name, operand)
            )
            return read + self._written(called, one)
        out = sum(array.bytes for array in one.arrays if array.space == 0)
        if one.opcode in _SLICES:
            return 2 * out if self._in_hbm(by_name, one.operands[0]) else out
        if one.opcode in _UPDATES:
            return 2 * self._size(by_name, one.operands[_UPDATES[one.opcode]])
        if one.opcode.endswith("-start"):  # (operand, result, contexts)
            arrays = one.arrays[:2]
            return sum(array.bytes for array in arrays if array.space == 0)
        return out + sum(
            self._size(by_name, operand)
            for operand in one.operands
            if self._in_hbm(by_name, operand)
        )

    @staticmethod
    def _size(by_name: dict[str, Instruction], operand: str) -> float:
        found = by_name.get(operand)
        return sum(array.bytes for array in found.arrays) if found else 0.0

    @staticmethod
    def _in_hbm(by_name: dict[str, Instruction], operand: str) -> bool:
        found = by_name.get(operand)
        return found is not None and any(array.space == 0 for array in found.arrays)

    def _read(self, name: str, number: int, size: float) -> float:
        """Bytes that a fused computation reads of its parameter."""
        read, is_result = self._used(name, number, size)
        return size if is_result else read

    def _used(self, name: str, number: int, size: float) -> tuple[float, bool]:
        """(bytes read of a parameter, whether the computation gives it back as it is)."""
        parameter = next(
            one.name
            for one in self.computations[name]
            if one.opcode == "parameter" and int(one.inside) == number
        )
        same, total = {parameter}, 0.0
        for one in self.computations[name]:  # uses come after what they use
            if not same.intersection(one.operands):
                continue
            if one.opcode == "bitcast":
                same.add(one.name)
            elif one.opcode in _SLICES and one.operands[0] in same:
                total += sum(array.bytes for array in one.arrays)
            elif one.opcode in _UPDATES and one.operands[0] in same:
                continue  # in place: what is not updated stays
            elif one.opcode == "fusion":
                for at, operand in enumerate(one.operands):
                    if operand in same:
                        read, is_result = self._used(one.called("calls"), at, size)
                        total += read
                        if is_result:
                            same.add(one.name)
            else:
                return size, False
        return min(total, size), self.computations[name][-1].name in same

    def _written(self, name: str, fusion: Instruction) -> float:
        """Bytes that a fusion writes: of an update in place, what is new."""
        root, by_name = self.computations[name][-1], self._by_name[name]
        roots = [root]
        if root.opcode == "tuple":
            roots = [by_name[operand] for operand in root.operands]
        if len(roots) != len(fusion.arrays):
            return sum(array.bytes for array in fusion.arrays if array.space == 0)
        total = 0.0
        for made, array in zip(roots, fusion.arrays, strict=True):
            if array.space != 0:
                continue
            while made.opcode == "bitcast":
                made = by_name[made.operands[0]]
            total += (
                self._size(by_name, made.operands[_UPDATES[made.opcode]])
                if made.opcode in _UPDATES
                else array.bytes
            )
        return total

    @property
    def bytes_accessed(self) -> float:
        """Bytes that a device reads from its HBM and writes there."""
        return self._moved(self.entry)

    # Collectives

    def collectives(self) -> Iterator[Collective]:
        """All of the program's."""
        fused = {
            one.called("calls")
            for body in self.computations.values()
            for one in body
            if one.opcode == "fusion"
        }
        for name, times in self.weights.items():
            body = self.computations[name]
            for one in body:
                if one.opcode == "recv" and (transfer := _TRANSFER.search(one.rest)):
                    kind = _ACROSS.get(transfer[1], "collective-permute")
                    size = one.arrays[0].bytes
                    yield Collective(kind, size, self._slices, times, True, _source(one))
                    continue
                kind = _kind(one)
                groups = replica_groups(one.rest) if kind else []
                group = 2 if kind == "collective-permute" else len(groups[0]) if groups else 1
                if group == 1:
                    continue
                size = _result_bytes(one, kind)
                # XLA:TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
                sliced = any(
                    user.opcode == "dynamic-slice" and user.operands[0] == one.name for user in body
                )
                if kind == "all-reduce" and sliced and name in fused:
                    kind, size = "reduce-scatter", size / group
                yield Collective(kind, size, group, times, self._crosses(one, groups), _source(one))

    def _crosses(self, one: Instruction, groups: list[list[int]]) -> bool:
        if self._slice_size is None:
            return False
        if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", one.rest):
            groups = [list(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)", pairs[0])]
        return any(len({device // self._slice_size for device in group}) > 1 for group in groups)


def _kind(one: Instruction) -> str:
    opcode = one.opcode.removesuffix("-start")
    return opcode if opcode in KINDS and not one.opcode.endswith("-done") else ""


def _source(one: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', one.rest)
    return found[1] if found else ""


def _result_bytes(one: Instruction, kind: str) -> float:
    """Bytes that a device has of a collective's result."""
    arrays = one.arrays
    if one.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, contexts), as many results as operands
        arrays = arrays[len(one.operands) : 2 * len(one.operands)]
    return sum(array.bytes for array in arrays)


def replica_groups(text: str) -> list[list[int]]:
    """Groups of devices of an instruction's attributes; [] if there are none.

    Three forms: `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` (an iota, transposed), and
    `mesh['a'=2,'b'=4] {'b'}` (axes of a mesh, or parts `'b':(1)2` of them, that vary in a group).
    """
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", found[1])]
    pattern = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(pattern, text):
        ids = np.arange(int(found[1]) * int(found[2]))
        ids = ids.reshape([int(n) for n in found[3].split(",")])
        if found[4]:
            ids = ids.transpose([int(n) for n in found[4].split(",")])
        return ids.reshape(int(found[1]), int(found[2])).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        return _mesh_groups(found[1], found[2])
    return []


def _mesh_groups(mesh: str, varying: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", varying):
        parts.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    shape, inside = [], []
    for name, size in sizes.items():
        left, at = size, 1
        for before, part in sorted(parts.get(name, [])):
            shape += [before // at, part]
            inside.append(len(shape) - 1)
            at, left = before * part, size // (before * part)
        shape.append(left)
    ids = np.arange(math.prod(sizes.values())).reshape(shape)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    group = math.prod(shape[axis] for axis in inside)
    return ids.transpose(outside + inside).reshape(-1, group).tolist()
