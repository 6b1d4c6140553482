"""Parse the text of a compiled program (HLO) into computations and instructions."""

from __future__ import annotations

import dataclasses
import math
import re

_BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0, "tuple": 0, "s4": 0.5, "u4": 0.5}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = ")


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
    """An instruction of a program.

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


Computation = dict[str, HloInstruction]
"""Name -> instruction, in the order in which they run; the last gives the result."""


def find_names(text: str) -> list[str]:
    """List the names of instructions and computations in a text."""
    return _NAME.findall(text)


def parse_program(text: str) -> tuple[dict[str, Computation], str]:
    """Return name -> computation, and the name of the entry.

    Raises:
      ValueError: text without a program.
    """
    computations: dict[str, Computation] = {}
    entry, current, lines = "", None, []

    def finish() -> None:
        """Add the instruction whose lines are complete."""
        if lines:
            instruction = _parse_instruction("\n".join(lines))
            current[instruction.name] = instruction
            lines.clear()

    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = _NAME.search(line)
                if name and " -> " in line:
                    current = computations.setdefault(name[1], {})
                    entry = name[1] if line.startswith("ENTRY") else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            finish()
            current = None
        elif _HEAD.match(line):
            finish()
            lines.append(line)
        elif lines:  # the metadata of a kernel take several lines, the last begins with "}}"
            lines.append(line)
    if not entry:
        raise ValueError("HLO: text without an entry computation")
    return computations, entry


def _parse_instruction(text: str) -> HloInstruction:
    match = _HEAD.match(text)
    start = match.end()
    end = _closing(text, start) + 1 if text[start] == "(" else text.index(" ", start)
    opening = text.index("(", end)
    close = _closing(text, opening)
    return HloInstruction(
        match[1],
        _arrays(text[start:end]),
        text[end:opening].strip(),
        text[opening + 1 : close],
        tuple(_NAME.findall(text[opening:close])),
        text[close + 1 :],
    )


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
