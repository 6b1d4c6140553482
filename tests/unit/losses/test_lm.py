"""Masked cross-entropy against NumPy, whole and in chunks; logits of all positions never exist."""

from __future__ import annotations

import jax
import jax.extend
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


def sums(problem, chunk: int, **options):
    """(function of hidden and matrix to the sums by row, its arguments)."""
    hidden, matrix, targets, mask = problem

    def function(hidden, matrix):
        def piece(mask, hidden, targets):
            return cross_entropy(hidden @ matrix, targets, 0.1).sums(mask)

        return sum_over_chunks(piece, chunk, mask, hidden, targets, **options)

    return function, (hidden, matrix)


def scalar(problem, chunk: int, **options):
    """(function of hidden and matrix that uses several of the sums, its arguments)."""
    function, arguments = sums(problem, chunk, **options)

    def total(hidden, matrix):
        result = function(hidden, matrix)
        return jnp.sum(result.loss_BL / 7) + 0.01 * jnp.sum(result.square_BL / 7)

    return total, arguments


@pytest.mark.parametrize("skip", [False, True])
def test_an_empty_mask_gives_zero(problem, skip):
    *rest, mask = problem
    function, arguments = sums((*rest, np.zeros_like(mask)), 4, skip=skip)
    assert not np.asarray(jax.jit(function)(*arguments)).any()


@pytest.fixture(scope="module")
def sparse(problem):
    """A problem with a chunk without masked positions, its value and gradients without chunks."""
    *rest, mask = problem
    sparse = (*rest, mask & (np.arange(L)[None] % 12 < 4))
    whole, arguments = scalar(sparse, 0)
    return sparse, jax.jit(jax.value_and_grad(whole, (0, 1)))(*arguments)


@pytest.mark.parametrize(
    "chunk, recompute, skip",
    [(1, True, False), (4, True, False), (4, False, False), (4, True, True), (12, False, True)],
)
def test_chunks_change_neither_value_nor_gradient(sparse, chunk, recompute, skip):
    problem, (want, want_grads) = sparse
    chunked, arguments = scalar(problem, chunk, recompute=recompute, skip=skip)
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
    result = set()
    for equation in jaxpr.eqns:
        result |= {v.aval.shape for v in equation.outvars}
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            result |= shapes(inner)
    return result


def test_logits_of_all_positions_are_never_allocated(problem):
    def sizes(chunk: int) -> int:
        total, arguments = scalar(problem, chunk)
        jaxpr = jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(*arguments).jaxpr
        # Shapes with the vocabulary last: logits, and the matrix's gradient.
        return max(np.prod(s, dtype=int) for s in shapes(jaxpr) if s[-1:] == (V,) and s[0] != D)

    assert sizes(0) == B * L * V
    assert sizes(4) == B * 4 * V


@pytest.mark.parametrize("skip", [False, True])
def test_chunks_without_masked_positions_are_skipped(skip):
    """At run time: the same compiled function."""
    ran = []

    def function(mask, x):
        jax.debug.callback(lambda n: ran.append(int(n)), jnp.sum(mask))
        return jnp.sum(jnp.where(mask, x, 0))

    @jax.jit
    def run(mask, x):
        return sum_over_chunks(function, 4, mask, x, skip=skip, recompute=False)

    numbers = np.arange(20, dtype=np.float32)[None]
    for masked in ([1, 2, 13], [], [19]):
        ran.clear()
        mask = np.isin(np.arange(20), masked)[None]
        assert run(mask, numbers) == sum(masked)
        jax.effects_barrier()
        assert len(ran) == (len({i // 4 for i in masked}) if skip else 5)


def test_compact_gathers_within_rows():
    mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    values = np.arange(10).reshape(2, 5)
    filled, got = jax.device_get(jax.jit(compact, static_argnums=1)(mask, 4, values))
    assert filled.tolist() == [[True, True, True, False], [False] * 4]
    assert got[0, :3].tolist() == [1, 3, 4]
