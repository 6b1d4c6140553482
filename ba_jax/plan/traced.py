"""Count FLOPs and kept bytes in a traced program (a jaxpr), before any compiler changes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Operations whose result has the same share of zeros as their operand.
_KEEP_ZEROS = set(
    "broadcast_in_dim convert_element_type copy copy_p device_put name optimization_barrier "
    "reshape sharding_constraint squeeze".split()
)


@dataclasses.dataclass(frozen=True)
class TracedFlops:
    """FLOPs of a program.

    Attributes:
      total: those of all devices.
      kernels: Pallas kernel, see `kernel_key`, -> FLOPs of a run on a device.
    """

    total: float
    kernels: dict[str, float]


def count_flops(program: Any, counts: Callable[..., bool] | None = None) -> TracedFlops:
    """Count FLOPs of a jaxpr (or a closed one); loops count as often as they run.

    Unlike the model's FLOPs (`ba_jax.metrics.flops`) they include padding, masked attention and
    rematerialization. Two for each multiply-add of matrix products and convolutions, nothing else.
    A loop without a fixed count counts once, a conditional as its largest branch. A Pallas kernel
    counts as its cost estimate, or else as its body over the blocks of its grid; splash attention
    skips the blocks that its mask has whole, and so does the count.

    With `counts`, only matrix products outside of kernels for whose factors' types it is true.
    """
    jaxpr, consts = _open(program)
    counter = _FlopCounter(counts)
    total, _ = counter.count(jaxpr, dict(_shares(jaxpr, consts)))
    return TracedFlops(total, counter.kernels)


def kernel_key(name: str, arrays: Any) -> str:
    """Name a kernel by its own name and the shape of its last result.

    Those before it may be scratch, which only some versions of JAX return.
    """
    shape = arrays[-1].shape if arrays else ()
    return f"{name}[{','.join(map(str, shape))}]"


class _FlopCounter:
    """Counts FLOPs, and follows constants to the kernels that read them as masks.

    A constant is known by the share of its values that are not 0; that is all a mask is used for,
    and it is the same on average when devices or the steps of a scan divide it.
    """

    def __init__(self, counts: Callable[..., bool] | None):
        self._counts = counts
        self.kernels: dict[str, float] = {}

    def count(self, jaxpr: Jaxpr, known: dict[Any, float]) -> tuple[float, list[float | None]]:
        """Return FLOPs, and the shares of the results; `known` has those of variables."""

        def share(var: Any) -> float | None:
            return _share(var.val) if isinstance(var, Literal) else known.get(var)

        total = 0.0
        for equation in jaxpr.eqns:
            inputs = [share(var) for var in equation.invars]
            flops, outputs = self._equation(equation, inputs)
            total += flops
            for var, value in zip(equation.outvars, outputs, strict=False):
                if value is not None:
                    known[var] = value
        return total, [share(var) for var in jaxpr.outvars]

    def _equation(
        self, equation: Any, inputs: list[float | None]
    ) -> tuple[float, list[float | None]]:
        name, params = equation.primitive.name, equation.params
        if name in _KEEP_ZEROS:
            return 0.0, inputs[:1]
        if self._counts and name in ("conv_general_dilated", "pallas_call"):
            return 0.0, []
        if name == "dot_general":
            if self._counts and not self._counts(*(str(v.aval.dtype) for v in equation.invars)):
                return 0.0, []
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            products = math.prod(shape[axis] for axis in contracted)
            return 2.0 * products * math.prod(equation.outvars[0].aval.shape), []
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            outputs = math.prod(equation.outvars[0].aval.shape)
            return 2.0 * outputs * math.prod(kernel) / features, []
        if name == "pallas_call":
            return self._kernel(params, inputs), []
        if name == "while":
            first = params["cond_nconsts"]
            constants = inputs[first : first + params["body_nconsts"]]
            return self._run(params["body_jaxpr"], constants)[0], []
        if name == "cond":
            return max(self._run(branch, inputs[1:])[0] for branch in params["branches"]), []
        if name == "scan":
            return params["length"] * self._run(params["jaxpr"], inputs)[0], []
        total, outputs = 0.0, []
        for inner in _inner(params):
            flops, outputs = self._run(inner, inputs)
            total += flops
        if name == "shard_map":
            total *= math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        return total, outputs

    def _run(self, program: Any, inputs: list[float | None]) -> tuple[float, list[float | None]]:
        """Count an inner program whose first inputs are given."""
        jaxpr, consts = _open(program)
        known = dict(_shares(jaxpr, consts))
        known |= {v: x for v, x in zip(jaxpr.invars, inputs, strict=False) if x is not None}
        return self.count(jaxpr, known)

    def _kernel(self, params: dict[str, Any], inputs: list[float | None]) -> float:
        """FLOPs of a run of a Pallas kernel on a device."""
        if cost := params.get("cost_estimate"):
            flops = float(cost.flops)
        else:
            flops = math.prod(params["grid_mapping"].grid) * self._run(params["jaxpr"], [])[0]
            # Its operands begin with (next block, kind of block: 0 is masked and skipped, ...).
            if params["name"].startswith("splash") and inputs[1] is not None:
                flops *= inputs[1]
        self.kernels[kernel_key(params["name"], params["out_avals"])] = flops
        return flops


def _open(program: Any) -> tuple[Jaxpr, list[Any]]:
    return (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, [])


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs among an equation's parameters."""
    for value in params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, Jaxpr | ClosedJaxpr):
                yield entry


def _share(value: Any) -> float | None:
    """Share of an array's values that are not 0; None for one without values."""
    size = np.size(value)
    return int(np.count_nonzero(value)) / size if size else None


def _shares(jaxpr: Jaxpr, consts: list[Any]) -> Iterator[tuple[Any, float | None]]:
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        if np.issubdtype(var.aval.dtype, np.integer):  # as are kinds of blocks
            yield var, _share(value)


def count_kept_bytes(program: Any, rows: int) -> float:
    """Bytes that scans keep of every step for the backward pass, over all devices.

    Counts the arrays that a scan stacks and that have a batch of `rows` rows; gradients, which
    scans stack too, have none.
    """
    jaxpr, _ = _open(program)
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            for output, of_step in zip(
                equation.outvars, equation.params["jaxpr"].jaxpr.outvars, strict=True
            ):
                is_stacked = output.aval.ndim > of_step.aval.ndim
                if is_stacked and rows in output.aval.shape[1:2]:
                    total += math.prod(output.aval.shape) * output.aval.dtype.itemsize
        total += sum(count_kept_bytes(inner, rows) for inner in _inner(equation.params))
    return total
