"""Losses of targets against the plain loss of all positions, and how much work they are.

Several devices: tests/integration/test_train_devices.py.
"""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.losses.lm import cross_entropy
from ba_jax.losses.targets import TargetLoss, loss_at_targets

B, L, D, V = 2, 13, 6, 17
WEIGHTS = {"text": 0.3, "not here": 1.0}


@pytest.fixture(scope="module")
def problem():
    """(matrix, bias, hidden, classes, targets), float32; a row without targets, and few others."""
    rng = np.random.default_rng(0)
    matrix, bias, hidden = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((D, V), (V,), (B, L, D))
    )
    target_BL = (rng.random((B, L)) < 0.4) & (np.arange(B) > 0)[:, None]
    return matrix, bias, hidden, jnp.asarray(rng.integers(0, V, (B, L))), jnp.asarray(target_BL)


def sums_of(params, mask_N, hidden_ND, ids_N):
    logits_NV = hidden_ND @ params["matrix"] + jnp.broadcast_to(params["bias"], (len(mask_N), V))
    return {"text": cross_entropy(logits_NV, ids_N).sums(mask_N)}


def loss_of(problem, chunk: int):
    """Function of matrix and hidden states to (loss, sums); the bias is frozen."""
    _, bias, _, ids_BL, target_BL = problem

    def loss(matrix, hidden):
        params = {"matrix": matrix, "bias": bias}
        job = TargetLoss(sums_of, chunk, z_loss=0.1)
        return loss_at_targets(job, params, 2 * hidden, target_BL, (ids_BL,), WEIGHTS)

    return loss


@pytest.fixture(scope="module")
def expected(problem):
    """((loss, sums), gradients) of all positions at once, as JAX differentiates it."""
    matrix, bias, hidden, ids_BL, target_BL = problem

    def loss(matrix, hidden):
        params = {"matrix": matrix, "bias": bias}
        flat = (x.reshape(-1, *x.shape[2:]) for x in (target_BL, 2 * hidden, ids_BL))
        sums = sums_of(params, *flat)
        return 0.3 * (sums["text"].loss + 0.1 * sums["text"].square), sums

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(matrix, hidden)


@pytest.mark.parametrize("chunk", [0, 1, 5, 100])
def test_chunks_change_neither_value_nor_gradient(problem, expected, chunk):
    loss = loss_of(problem, chunk)
    got = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(problem[0], problem[2])
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, expected)
    (_, sums), (_, hidden_gradient) = got
    assert not np.asarray(hidden_gradient)[~np.asarray(problem[4])].any()
    without = jax.jit(loss)(problem[0], problem[2])  # no gradients
    np.testing.assert_allclose(without[0], expected[0][0], rtol=1e-6)
    np.testing.assert_allclose(without[1]["text"], sums["text"], rtol=1e-6)


def test_no_targets_are_no_loss(problem):
    problem = (*problem[:4], jnp.zeros((B, L), bool))
    loss = loss_of(problem, 4)
    got = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(problem[0], problem[2])
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(got))


def test_as_many_chunks_run_as_hold_targets():
    """At run time, whichever rows they are in: the same compiled function."""
    ran = []

    def count(params, mask_N, hidden_ND):
        jax.debug.callback(lambda n: ran.append(int(n)), jnp.sum(mask_N))
        entropy = cross_entropy(hidden_ND, jnp.zeros(len(mask_N), jnp.int32))
        return {"text": entropy.sums(mask_N)}

    run = jax.jit(lambda x, mask: loss_at_targets(TargetLoss(count, 5), {}, x, mask, (), {}))
    order = np.random.default_rng(1).permutation(B * L).reshape(B, L)
    for targets in (0, 1, 5, 6, B * L):
        ran.clear()
        run(jnp.zeros((B, L, D)), jnp.asarray(order < targets))
        jax.effects_barrier()
        assert sum(ran) == targets and len(ran) == -(-targets // 5)


def shapes(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of everything a jaxpr computes, inner ones too."""
    result = set()
    for equation in jaxpr.eqns:
        result |= {v.aval.shape for v in equation.outvars}
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            result |= shapes(inner)
    return result


def test_logits_of_all_positions_are_never_allocated(problem):
    loss = jax.value_and_grad(loss_of(problem, 4), (0, 1), has_aux=True)
    jaxpr = jax.make_jaxpr(loss)(problem[0], problem[2]).jaxpr
    # Shapes with the vocabulary last: the bias, logits of a chunk, the matrix.
    assert {s[0] for s in shapes(jaxpr) if s[-1:] == (V,)} == {1, 4, D}
