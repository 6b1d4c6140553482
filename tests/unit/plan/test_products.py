"""FLOPs of products in a compiled program."""

from __future__ import annotations

import pytest

from ba_jax.plan.hlo_text import parse_program
from ba_jax.plan.products import product_flops


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "expected"),
    [
        ("16,8", "8,4", "16,4", "dim_labels=bf_io->bf", 2 * 16 * 8 * 4),
        ("8,16", "4,8", "16,4", "dim_labels=fb_oi->bf", 2 * 16 * 8 * 4),
        # XLA:TPU: a product to heads (3 of them) and one from heads.
        (
            *("16,8,1", "8,3,4", "16,3,4"),
            "window={size=3 pad=2_2 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
            2 * 16 * 8 * 3 * 4,
        ),
        ("16,3,4", "3,4,8", "16,8,1", "window={size=3}, dim_labels=b0f_0io->bf0", 2 * 16 * 12 * 8),
        # A batch of 3: dilated so that each result meets one entry of the kernel.
        (
            *("3,16,8", "3,8,4", "3,16,4"),
            "window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
            2 * 3 * 16 * 8 * 4,
        ),
        # Convolutions over 10: with and without padding, in groups of 2 channels, in two axes.
        ("2,10,6", "3,6,7", "2,8,7", "window={size=3}, dim_labels=b0f_0io->b0f", 2 * 2 * 24 * 42),
        (
            *("2,10,6", "3,6,7", "2,10,7"),
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 2 * 28 * 42,
        ),
        (
            *("2,10,6", "3,2,6", "2,8,6"),
            "window={size=3}, dim_labels=b0f_0io->b0f, feature_group_count=3",
            2 * 2 * 24 * 12,
        ),
        (
            *("2,10,10,6", "3,1,6,7", "2,4,10,7"),
            "window={size=3x1 stride=2x1}, dim_labels=b01f_01io->b01f",
            2 * 2 * (4 * 3) * 10 * 42,
        ),
    ],
)
def test_convolutions_by_hand(left, right, result, attributes, expected):
    assert flops_of("convolution", left, right, result, attributes) == expected


def test_dots_by_hand():
    attributes = "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}"
    assert flops_of("dot", "3,16,8", "3,8,4", "3,16,4", attributes) == 2 * 3 * 16 * 8 * 4
    assert flops_of("dot", "16", "8", "16,8", "lhs_contracting_dims={}") == 2 * 16 * 8


def flops_of(opcode: str, left: str, right: str, result: str, attributes: str) -> float:
    lines = [
        "ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {",
        f"  %a = bf16[{left}]{{0}} parameter(0)",
        f"  %b = bf16[{right}]{{0}} parameter(1)",
        f"  ROOT %c = bf16[{result}]{{0}} {opcode}(%a, %b), {attributes}",
        "}",
    ]
    computations, entry = parse_program("\n".join(lines))
    body = computations[entry]
    arrays = [body[name].arrays[0] for name in ("a", "b")]
    return product_flops(body["c"], arrays)
