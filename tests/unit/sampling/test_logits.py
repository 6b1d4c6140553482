"""Sampling from logits, against NumPy."""

import math

import jax
import numpy as np
import pytest

from ba_jax.sampling import logits as logits_lib
from ba_jax.sampling.logits import GREEDY, Sampling

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 40)).astype(np.float32) * 3


choose = jax.jit(logits_lib.choose, static_argnums=2)
keys_of = jax.jit(jax.vmap(jax.random.key))


def keys(rows, seed=0):
    return keys_of(np.arange(rows, dtype=np.uint32) + seed)


def test_penalty():
    seen = RNG.random(LOGITS.shape) < 0.3
    want = LOGITS.copy()
    for row, column in np.argwhere(seen):
        value = want[row, column]
        want[row, column] = value / 1.3 if value > 0 else value * 1.3
    got = jax.jit(logits_lib.penalise)(LOGITS, seen, 1.3)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 39, 40, 0])
def test_choice_is_among_the_top_k(k):
    rows = 400
    for row in LOGITS[:2]:
        logits_BV = np.tile(row, (rows, 1))
        chosen = choose(keys(rows), logits_BV, Sampling(3.0, top_k=k))
        assert set(np.asarray(chosen)) <= set(np.argsort(-row)[: k or 40])


@pytest.mark.parametrize("p", [0.01, 0.5, 0.85, 0.999, 1.0])
def test_top_p_keeps_the_fewest_classes_that_hold_p(p):
    kept = np.isfinite(jax.jit(logits_lib.keep_top_p, static_argnums=1)(LOGITS, p))
    for row, mask in zip(LOGITS.astype(np.float64), kept, strict=True):
        order = np.argsort(-row)
        share = np.exp(row[order]) / np.exp(row).sum()
        count = len(row) if p == 1 else int(np.searchsorted(np.cumsum(share), p)) + 1
        assert set(np.flatnonzero(mask)) == set(order[:count])


def test_choice_follows_the_probabilities():
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rows = 4000
    chosen = choose(keys(rows), np.tile(row, (rows, 1)), Sampling(1.0))
    shares = np.bincount(chosen, minlength=4) / rows
    np.testing.assert_allclose(shares, np.exp(row), atol=0.03)
    # 0.5 + 0.3 >= 0.75: the other two are dropped
    chosen = choose(keys(rows), np.tile(row, (rows, 1)), Sampling(1.0, top_p=0.75))
    shares = np.bincount(chosen, minlength=4) / rows
    np.testing.assert_allclose(shares, [0.625, 0.375, 0, 0], atol=0.03)
    # temperature 0.5 squares them
    chosen = choose(keys(rows), np.tile(row, (rows, 1)), Sampling(0.5, top_k=2))
    shares = np.bincount(chosen, minlength=4) / rows
    np.testing.assert_allclose(shares, [25 / 34, 9 / 34, 0, 0], atol=0.03)
    # 50/95 + 30/95 of the top three hold 0.8
    chosen = choose(keys(rows), np.tile(row, (rows, 1)), Sampling(1.0, 3, top_p=0.8))
    shares = np.bincount(chosen, minlength=4) / rows
    np.testing.assert_allclose(shares, [0.625, 0.375, 0, 0], atol=0.03)


def test_choice_does_not_depend_on_other_rows():
    sampling = Sampling(1.0, top_k=20, top_p=0.95)
    whole = np.asarray(choose(keys(6), LOGITS, sampling))
    for i in range(6):
        assert choose(keys(1, i), LOGITS[i : i + 1], sampling).tolist() == [whole[i]]


def test_mask_and_penalty_apply_before_the_choice():
    allowed = np.ones_like(LOGITS, bool)
    allowed[np.arange(6), LOGITS.argmax(1)] = False
    masked = np.where(allowed, LOGITS, -np.inf)
    got = choose(keys(6), LOGITS, GREEDY, allowed_BV=allowed)
    np.testing.assert_array_equal(got, masked.argmax(1))
    drawn = choose(keys(6), LOGITS, Sampling(5.0), allowed_BV=allowed)
    assert allowed[np.arange(6), drawn].all()
    seen = np.zeros_like(LOGITS, bool)
    seen[np.arange(6), LOGITS.argmax(1)] = True
    got = choose(
        keys(6),
        LOGITS,
        Sampling(repetition_penalty=1e6),
        seen_BV=seen,
    )
    np.testing.assert_array_equal(got, np.where(seen, LOGITS / 1e6, LOGITS).argmax(1))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"repetition_penalty": 0.0},
        {"temperature": math.inf},
        *[{name: math.nan} for name in ("temperature", "top_p", "repetition_penalty")],
        {"repetition_penalty": math.inf},
    ],
)
def test_invalid_settings(values):
    with pytest.raises(ValueError, match="expected finite temperature"):
        Sampling(**values)


def test_penalty_without_seen_classes_is_an_error():
    with pytest.raises(ValueError, match="seen_BV"):
        logits_lib.choose(keys(6), LOGITS, Sampling(repetition_penalty=1.1))
