"""Products of 8-bit numbers against those of float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ba_jax.metrics.chips import CHIPS
from ba_jax.models.cpu_layout import Dense
from ba_jax.plan.traced import count_flops

VARIABLES = jax.device_get(Dense(96).init(jax.random.key(0), jnp.zeros((1, 64))))
X = jax.random.normal(jax.random.key(1), (2, 16, 64))


def gradients(kind: str):
    """(variables, x) to (gradients in both, result of a layer)."""

    def loss(variables, x):
        y = Dense(96, quantization=kind).apply(variables, x)
        return jnp.sum(jnp.sin(y)), y

    return jax.grad(loss, (0, 1), has_aux=True)


@pytest.mark.parametrize(
    ("kind", "chip", "tolerance"),
    [("int8", "v6e", 0.02), ("float8", "tpu7x", 0.08)],  # 4 significant bits; 3 of gradients
)
def test_all_three_products_are_quantized_and_near(kind, chip, tolerance):
    program = jax.make_jaxpr(gradients(kind))(VARIABLES, X)
    every = count_flops(program).total
    assert count_flops(program, CHIPS[chip].doubles).total == every == 3 * 2 * 32 * 64 * 96
    want, got = (jax.jit(gradients(k))(VARIABLES, X) for k in ("none", kind))
    for exact, near in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        error = jnp.linalg.norm(near - exact) / jnp.linalg.norm(exact)
        assert near.dtype == exact.dtype and error < tolerance
