"""FLOPs that the devices do, counted in a traced program; loops count as often as they run.

Unlike the model's FLOPs (`ba_jax.metrics.flops`) these have everything in them: padding, what
attention masks, and what remat computes again. Two for each multiply-add of matrix products and
convolutions; nothing else counts.
"""

from __future__ import annotations

import math
from typing import Any


def program_flops(jaxpr: Any) -> float:
    """Of a jaxpr (or a closed one), over all devices; of a conditional its largest branch.

    A loop without a fixed count counts once. A Pallas kernel counts what it says it costs.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation(equation) for equation in jaxpr.eqns))


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        products = math.prod(left[axis] for axis in contracted)
        return 2.0 * products * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        made = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * made * math.prod(kernel) / outputs
    if name == "scan":
        return params["length"] * program_flops(params["jaxpr"])
    if name == "while":
        return program_flops(params["body_jaxpr"])
    if name == "cond":
        return max(program_flops(branch) for branch in params["branches"])
    if name == "pallas_call":
        cost = params.get("cost_estimate")
        return float(cost.flops) if cost else 0.0
    inner = _inner(params.values())
    if name == "shard_map":
        mesh = params["mesh"]
        return inner * math.prod(mesh.shape.values())
    return inner


def _inner(values: Any) -> float:
    """FLOPs of the jaxprs among an equation's parameters."""
    total = 0.0
    for value in values:
        if isinstance(value, tuple | list):
            total += _inner(value)
        elif hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
            total += program_flops(value)
    return total


def kept_bytes(jaxpr: Any, rows: int) -> float:
    """Bytes that scans keep of every step for a backward pass, over all devices.

    These are the arrays that a scan stacks and that have a batch of `rows` rows: gradients, which
    scans stack too, have none.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "scan":
            for made in equation.outvars[params["num_carry"] :]:
                if rows in made.aval.shape[1:2]:
                    total += math.prod(made.aval.shape) * made.aval.dtype.itemsize
        for value in params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(getattr(inner, "jaxpr", None), "eqns"):
                    total += kept_bytes(inner, rows)
    return total
