"""Count a compiled program's bytes, FLOPs and collectives, instruction by instruction.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
it runs: the body of a loop up to the constant in its condition (JAX's scans count from 0), and the
branch of a conditional that moves most. A loop whose trip count cannot be read counts once, and is
listed in `unknown_loops`; a kernel whose FLOPs are not given counts none, and is listed in
`unknown_kernels`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from ba_jax.plan import collectives
from ba_jax.plan.collectives import Collective
from ba_jax.plan.hlo_text import HloInstruction, find_names, parse_program
from ba_jax.plan.products import product_flops
from ba_jax.plan.traced import kernel_key

# Operations without traffic: they only name other results, or run computations counted separately.
_FREE = set(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id add-dependency opt-barrier call-start async-start async-update".split()
)
_FREE_CALLS = ("AllocateBuffer", "PrepareAsyncCall", "AssumeGatherIndicesInBound", "Sharding")
_SLICES = {"dynamic-slice", "slice", "gather"}
# Written in place -> index of the operand with the new values.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_KERNEL = 'custom_call_target="tpu_custom_call"'
_ALIASES = re.compile(r"\{(\d*)\}: \((\d+), \{\}\)")


@dataclasses.dataclass(frozen=True)
class InstructionCost:
    """Costs of an instruction on a device, all its runs together.

    Attributes:
      name: its name.
      flops: FLOPs of products and kernels.
      bytes: HBM traffic.
      collectives: those that it runs; of instructions that share one, the first has it.
      doubled: FLOPs among them of products that run at twice the peak.
    """

    name: str
    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    doubled: float = 0.0


class HloProgram:
    """A compiled program.

    Args:
      text: `compiled.as_text()`.
      slice_size, slices: devices of a slice and number of slices, to recognise collectives across
        slices. XLA:TPU writes these as transfers through the hosts (megascale), too.
      kernels: FLOPs of Pallas kernels, see `traced.count_flops`.
      doubles: whether a product of factors of such types runs at twice the peak.

    Raises:
      ValueError: text without a program.
    """

    def __init__(
        self,
        text: str,
        slice_size: int = 0,
        slices: int = 1,
        kernels: Mapping[str, float] | None = None,
        doubles: Callable[..., bool] = lambda *dtypes: False,
    ):
        self.computations, self.entry = parse_program(text)
        self._slice_size, self._slices, self._kernels = slice_size, slices, kernels or {}
        self._doubles = doubles
        self.unknown_loops: list[str] = []
        self.unknown_kernels: list[str] = []
        self._bytes: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self._asynchronous: set[str] = set()
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
            branches = find_names(listed[1]) if listed else [name for name in both if name]
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
                if line.opcode == "async-start":
                    self._asynchronous.add(called)

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
            passed = self._passed_on(called, line)
            total = self._written(called, line, passed)
            for number, operand in enumerate(operands):
                if in_hbm[number] and number not in passed.values():
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

    def _passed_on(self, name: str, fusion: HloInstruction) -> dict[int, int]:
        """Result -> operand of the buffers that a chain of fusions only hands on.

        They hold a collective in flight; the first of the chain counts them.
        """
        if not any(map(_is_chained, self.computations[name].values())):
            return {}
        pairs = re.search(r"output_to_operand_aliasing=\{(.*?)\)\}", fusion.rest)
        pairs = _ALIASES.findall(pairs[0]) if pairs else []
        return {int(result or 0): int(operand) for result, operand in pairs}

    def _written(self, name: str, fusion: HloInstruction, passed: Mapping[int, int]) -> float:
        """Bytes that a fusion writes; an update in place writes only the new values."""
        by_name = self.computations[name]
        root = list(by_name.values())[-1]
        roots = [root]
        if root.opcode == "tuple":
            roots = [by_name[operand] for operand in root.operands]
        elif len(fusion.arrays) > 1:
            roots *= len(fusion.arrays)
        if len(roots) != len(fusion.arrays):  # tuples in the tuple
            return fusion.hbm_bytes
        total = 0.0
        for number, (result, array) in enumerate(zip(roots, fusion.arrays, strict=True)):
            if array.space != 0 or number in passed:
                continue
            while result.opcode == "bitcast":
                result = by_name[result.operands[0]]
            if result.opcode in _UPDATES:
                update = by_name.get(result.operands[_UPDATES[result.opcode]])
                total += update.bytes if update else 0.0
            else:
                total += array.bytes
        return total

    # --- costs

    def costs(self) -> Iterator[InstructionCost]:
        """Yield the costs of every instruction that runs, fusions as a whole."""
        started: set[str] = set()  # collectives that several instructions share
        for name, times in self.weights.items():
            for line in self.computations[name].values():
                flops, doubled = self._flops(name, line)
                yield InstructionCost(
                    line.name,
                    times * flops,
                    times * self._moved_by(name, line),
                    tuple(self._collectives(name, line, times, started)),
                    times * doubled,
                )

    def _flops(self, name: str, line: HloInstruction) -> tuple[float, float]:
        """FLOPs of a run of an instruction, and those among them that are doubled.

        Those of the computations that it calls do not count, but those of a fusion do.
        """
        if line.opcode == "fusion":
            called = line.called("calls")
            parts = [self._flops(called, part) for part in self.computations[called].values()]
            return sum(flops for flops, _ in parts), sum(doubled for _, doubled in parts)
        if line.opcode == "custom-call" and _KERNEL in line.rest:
            key = kernel_key(re.sub(r"(\.clone|\.\d+)*$", "", line.name), line.arrays)
            if key not in self._kernels and key not in self.unknown_kernels:
                self.unknown_kernels.append(key)
            return self._kernels.get(key, 0.0), 0.0
        if line.opcode not in ("dot", "convolution"):
            return 0.0, 0.0
        factors = [self.computations[name][operand].arrays[0] for operand in line.operands]
        flops = product_flops(line, factors)
        return flops, flops * self._doubles(*(factor.dtype for factor in factors))

    def _collectives(
        self, name: str, line: HloInstruction, times: float, started: set[str]
    ) -> Iterator[Collective]:
        """Yield the collectives of an instruction, but those that `started` has already."""
        is_fusion = line.opcode == "fusion"
        parts = self.computations[line.called("calls")].values() if is_fusion else [line]
        for part in parts:
            if kind := collectives.transfer_kind(part):
                yield Collective(kind, part.arrays[0].bytes, self._slices, times, True, True)
            kind = collectives.kind_of(part)
            groups = collectives.replica_groups(part.rest) if kind else []
            group = 2 if kind == "collective-permute" else len(groups[0]) if groups else 1
            if group == 1:
                continue
            is_async = part.opcode.endswith("-start") or name in self._asynchronous
            if is_fusion and _is_chained(part):
                channel, is_async = re.search(r"channel_id=\d+", part.rest)[0], True
                if channel in started:
                    continue
                started.add(channel)
            size = collectives.result_bytes(part, kind)
            # XLA:TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
            is_sliced = is_fusion and any(
                user.opcode == "dynamic-slice" and user.operands[0] == part.name for user in parts
            )
            if kind == "all-reduce" and is_sliced:
                kind, size = "reduce-scatter", size / group
            crosses = collectives.crosses(part, groups, self._slice_size, self._slices)
            yield Collective(kind, size, group, times, crosses, is_async)


def _is_chained(line: HloInstruction) -> bool:
    """Whether it is a collective that runs through several fusions, one after another."""
    return "chain_id=" in line.rest and collectives.kind_of(line) != ""
