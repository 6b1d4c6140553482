"""FLOPs of matrix products and convolutions in a compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from ba_jax.plan.hlo_text import HloArray, HloInstruction


def product_flops(line: HloInstruction, operands: Sequence[HloArray]) -> float:
    """FLOPs of a dot or a convolution, two for each multiply-add; 0 for other instructions.

    XLA:TPU writes batched products as convolutions over dilated or padded windows, most of whose
    places are empty; only places with a value count, as in XLA's own analysis.
    """
    if line.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", line.rest)
        axes = map(int, contracted[1].split(",")) if contracted else ()
        products = math.prod(operands[0].shape[axis] for axis in axes)
        return 2.0 * products * math.prod(line.arrays[0].shape)
    if line.opcode != "convolution":
        return 0.0
    sides = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest).groups()
    shapes = (operands[0].shape, operands[1].shape, line.arrays[0].shape)
    inputs, kernel, outputs = (
        dict(zip(labels, shape, strict=True)) for labels, shape in zip(sides, shapes, strict=True)
    )
    window = re.search(r"window=\{([^}]*)\}", line.rest)
    window = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2.0 * kernel["i"] * outputs["b"] * outputs["f"]
    for number, axis in enumerate(sorted(set(outputs) - {"b", "f"})):
        settings = {name: text.split("x")[number] for name, text in window.items()}
        total *= _places(inputs[axis], kernel[axis], outputs[axis], settings)
    return total


def _places(inputs: int, kernel: int, outputs: int, window: dict[str, str]) -> int:
    """Pairs of an output and an entry of the kernel that meet a value of the input."""
    before = int(window.get("pad", "0_0").split("_")[0])
    spread = int(window.get("lhs_dilate", 1))
    place_OK = (
        np.arange(outputs)[:, None] * int(window.get("stride", 1))
        + np.arange(kernel) * int(window.get("rhs_dilate", 1))
        - before
    )
    is_inside = (place_OK >= 0) & (place_OK <= (inputs - 1) * spread)
    return int(np.count_nonzero(is_inside & (place_OK % spread == 0)))
