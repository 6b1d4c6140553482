"""Masked cross-entropy against NumPy, whole and in chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.losses.lm import compact, cross_entropy, sum_over_chunks

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
    sums_3B = np.zeros((3, len(logits)))
    for row, place in np.argwhere(mask):
        z = logits[row, place].astype(np.float64)
        partition = np.log(np.exp(z).sum())
        wanted = np.full(V, smoothing / V)
        wanted[targets[row, place]] += 1 - smoothing
        sums_3B[:, row] += [
            -(wanted * (z - partition)).sum(),
            partition**2,
            z.argmax() == targets[row, place],
        ]
    return sums_3B


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy_agrees_with_numpy(problem, smoothing, dtype):
    hidden, matrix, targets, mask = problem
    logits = (hidden @ matrix).astype(dtype)
    wild = np.where(mask, targets, 10**6)  # masked targets are ignored
    got = jax.jit(lambda *args: cross_entropy(*args, smoothing).sums(mask))(logits, wild)
    assert all(x.dtype == jnp.float32 for x in got)
    want = reference(np.asarray(logits, np.float32), targets, mask, smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 20])
def test_a_sum_over_chunks_is_the_whole(problem, chunk):
    hidden, matrix, targets, mask = problem

    def function(mask, hidden, targets):
        return cross_entropy(hidden @ matrix, targets, 0.1).sums(mask)

    want = reference(hidden @ matrix, targets, mask, 0.1)
    got = jax.jit(lambda *a: sum_over_chunks(function, chunk, *a))(mask, hidden, targets)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_compact_gathers_within_rows():
    mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    values = np.arange(10).reshape(2, 5)
    filled, got = compact(jnp.asarray(mask), 4, jnp.asarray(values))
    assert filled.tolist() == [[True, True, True, False], [False] * 4]
    assert got[0, :3].tolist() == [1, 3, 4]
