"""Masked cross-entropy against NumPy; in chunks it is the same, and no logits of all positions."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.losses.lm import chunked_cross_entropy, cross_entropy, sum_over_chunks

B, L, D, V = 2, 13, 6, 17


@pytest.fixture(scope="module")
def problem():
    """(hidden, output matrix, targets, mask), float32."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, L, D)).astype(np.float32)
    matrix = rng.normal(size=(D, V)).astype(np.float32)
    return hidden, matrix, rng.integers(0, V, (B, L)), rng.random((B, L)) < 0.6


def reference(logits: np.ndarray, targets, mask, smoothing: float) -> np.ndarray:
    """(loss, square, correct) of each row, float64, one position at a time."""
    found = np.zeros((3, len(logits)))
    for row, place in np.argwhere(mask):
        z = logits[row, place].astype(np.float64)
        partition = np.log(np.exp(z).sum())
        wanted = np.full(V, smoothing / V)
        wanted[targets[row, place]] += 1 - smoothing
        found[:, row] += [
            -(wanted * (z - partition)).sum(),
            partition**2,
            z.argmax() == targets[row, place],
        ]
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_numpys(problem, smoothing):
    hidden, matrix, targets, mask = problem
    logits = hidden @ matrix
    wild = np.where(mask, targets, 10**6)  # what is masked is not read
    got = cross_entropy(jnp.asarray(logits), jnp.asarray(wild), jnp.asarray(mask), smoothing)
    np.testing.assert_allclose(got, reference(logits, targets, mask, smoothing), rtol=1e-5)


def test_it_counts_in_float32(problem):
    hidden, matrix, targets, mask = problem
    logits = jnp.asarray(hidden @ matrix, jnp.bfloat16)
    got = cross_entropy(logits, jnp.asarray(targets), jnp.asarray(mask))
    assert all(x.dtype == jnp.float32 for x in got)
    want = reference(np.asarray(logits, np.float32), targets, mask, 0.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_nothing_masked_in_is_zero(problem):
    hidden, matrix, targets, _ = problem
    none = jnp.zeros((B, L), bool)
    for chunk in (0, 4):
        got = chunked_cross_entropy(
            lambda h: h @ matrix, jnp.asarray(hidden), jnp.asarray(targets), none, chunk=chunk
        )
        assert not np.asarray(got).any()


def scalar(problem, chunk: int):
    """(function of hidden and matrix that uses all three sums, its arguments)."""
    hidden, matrix, targets, mask = map(jnp.asarray, problem)

    def total(hidden, matrix):
        sums = chunked_cross_entropy(
            lambda h: h @ matrix, hidden, targets, mask, chunk=chunk, label_smoothing=0.1
        )
        return jnp.sum(sums.loss_B / 7) + 0.01 * jnp.sum(sums.square_B / 7)

    return total, (hidden, matrix)


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_chunks_change_neither_value_nor_gradient(problem, chunk):
    whole, arguments = scalar(problem, 0)
    want, want_grads = jax.jit(jax.value_and_grad(whole, (0, 1)))(*arguments)
    chunked, _ = scalar(problem, chunk)
    got, got_grads = jax.jit(jax.value_and_grad(chunked, (0, 1)))(*arguments)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for g, w in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-6)


def test_masked_positions_have_no_gradient(problem):
    total, arguments = scalar(problem, 4)
    grad = np.asarray(jax.jit(jax.grad(total))(*arguments))
    mask = problem[3]
    assert (grad[~mask] == 0).all() and (np.abs(grad[mask]).max(axis=-1) > 0).all()


def shapes(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of everything a jaxpr computes, inner ones too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.shape for v in equation.outvars}
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= shapes(inner)
    return found


def test_logits_of_all_positions_never_exist(problem):
    def sizes(chunk: int) -> int:
        total, arguments = scalar(problem, chunk)
        jaxpr = jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(*arguments).jaxpr
        # Shapes with the vocabulary last: logits, and the matrix's gradient.
        return max(np.prod(s, dtype=int) for s in shapes(jaxpr) if s[-1:] == (V,) and s[0] != D)

    assert sizes(0) == B * L * V
    assert sizes(4) == B * 4 * V


def test_a_sum_over_chunks_reads_each_position_once():
    numbers = jnp.arange(2 * 10, dtype=jnp.float32).reshape(2, 10)
    seen = []

    def function(x, m):
        seen.append(x.shape)
        return {"sum": jnp.sum(jnp.where(m, x, 100), axis=1)}

    got = sum_over_chunks(function, 4, numbers, jnp.ones((2, 10), bool))["sum"]
    # Filled up to 12 positions, false in the mask: 2 more a row.
    np.testing.assert_allclose(got, np.asarray(numbers).sum(1) + 200)
    assert set(seen) == {(2, 4)}
