"""Codebooks by moving averages, and the quantiser's draws in training."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.models import codebook as codebooks
from ba_jax.models.vq_bridge import VQBridge, VQBridgeConfig, draw_used, sample_code
from tests.conftest import ROOT
from tests.processes import PATIENCE

SIZES, WIDTH, ITEMS, FRAMES = (6, 4, 3), 8, 4, 5
BRIDGE = VQBridge(VQBridgeConfig(width=4, pooling=2, codebook_sizes=SIZES))
LENGTHS = np.array([5, 3, 0, 4], np.int32)
VALID = np.arange(FRAMES)[None, :] < LENGTHS[:, None]
AFTER = 3


def fresh(seed: int = 0) -> dict:
    """A bridge's collection with random rows."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for q, size in enumerate(SIZES):
        rows = rng.normal(size=(size, WIDTH)).astype(np.float32)
        arrays |= {f"embed_{q}": rows, f"embed_avg_{q}": rows}
        arrays[f"cluster_size_{q}"] = np.ones(size, np.float32)
    return arrays


@jax.jit
def quantize(codebook, z, lengths, used=None):
    variables = {"params": {}, "codebook": codebook}
    return BRIDGE.apply(variables, z, lengths, used_BQ=used, method="quantize")


@jax.jit
def count(codebook, z, lengths, used):
    result = quantize(codebook, z, lengths, used)
    valid = jnp.arange(z.shape[1])[None, :] < lengths[:, None]
    counted = valid[:, :, None] & result.used_BQ[:, None]
    return codebooks.statistics(result.codes_BNQ, result.residuals_QBNE, counted, SIZES)


@jax.jit
def learn(codebook, z, lengths, used):
    """A step of the moving averages."""
    batch = count(codebook, z, lengths, used)
    return codebooks.update(codebook, batch, 0.9, 0.01), batch


OWNERS = codebooks.candidate_owners(SIZES, 4)


@jax.jit
def revive(codebook, ages, batch, candidates):
    return codebooks.restart(codebook, ages, batch, candidates, AFTER, OWNERS)


@jax.jit
def draw(key, z, valid):
    return codebooks.draw_candidates(key, z, valid, len(OWNERS))


merge_candidates = jax.jit(codebooks.merge_candidates)


def features(seed: int, scale: float = 1.0) -> np.ndarray:
    """(ITEMS, FRAMES, WIDTH), NaN past the lengths."""
    z = scale * np.random.default_rng(seed).normal(size=(ITEMS, FRAMES, WIDTH))
    return np.where(VALID[:, :, None], z, np.nan).astype(np.float32)


ALL = np.ones((ITEMS, len(SIZES)), bool)


def test_moving_averages_follow_a_reference():
    """Several steps against loops in float64: padding is NaN, item 1 has only one codebook."""
    used = ALL.copy()
    used[1, 1:] = False
    codebook = fresh()
    want = {name: np.asarray(value, np.float64) for name, value in codebook.items()}
    for step in range(4):
        z = features(step)
        counts = [np.zeros(size) for size in SIZES]
        sums = [np.zeros((size, WIDTH)) for size in SIZES]
        for item, frame in np.argwhere(VALID):
            residual = z[item, frame].astype(np.float64)
            for q in range(len(SIZES)):
                if used[item, q]:
                    row = ((residual - want[f"embed_{q}"]) ** 2).sum(1).argmin()
                    counts[q][row] += 1
                    sums[q][row] += residual
                    residual = residual - want[f"embed_{q}"][row]
        for q, size in enumerate(SIZES):
            mass = 0.9 * want[f"cluster_size_{q}"] + 0.1 * counts[q]
            average = 0.99 * (0.9 * want[f"embed_avg_{q}"] + 0.1 * sums[q])
            smoothed = (mass + 1e-5) / (mass.sum() + size * 1e-5) * mass.sum()
            want |= {f"cluster_size_{q}": mass, f"embed_avg_{q}": average}
            want[f"embed_{q}"] = average / smoothed[:, None]
        codebook, batch = learn(codebook, z, LENGTHS, used)
        assert float(sum(batch.counts[0])) == 12 and float(sum(batch.counts[2])) == 9
        for name, value in codebook.items():
            np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shrink", [0.0, 1e-4, 1e-3, 1e-2])
def test_the_constraint_is_the_papers_recursion(shrink):
    """c' = a c + (1 - a) mean of the inputs, c = (1 - b) c' (eq. 4, 5), for constant inputs."""
    decay, mean = 0.99, np.array([3.0, 4.0])
    codebook = {
        "embed_0": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
        "embed_avg_0": np.array([[5.0, 0.0], [0.0, 5.0]], np.float32),
        "cluster_size_0": np.full(2, 5.0, np.float32),
    }
    batch = codebooks.Statistics((np.array([5.0, 5.0]),), (5 * np.stack([mean, mean]),))
    row = np.array([1.0, 0.0])
    step = jax.jit(functools.partial(codebooks.update, decay=decay, l2_shrink=shrink))
    for _ in range(1000):
        row = (1 - shrink) * (decay * row + (1 - decay) * mean)
        codebook = step(codebook, batch)
    np.testing.assert_allclose(codebook["embed_0"][0], row, rtol=1e-3)
    # The audit's figures: the norm of the row over that of its data.
    share = {0.0: 1.0, 1e-4: 0.990, 1e-3: 0.908, 1e-2: 0.498}[shrink]
    assert np.linalg.norm(codebook["embed_0"][0]) / 5 == pytest.approx(share, abs=2e-3)


def test_quantising_does_not_change_codebooks():
    codebook = fresh()
    variables = {"params": {}, "codebook": codebook}
    apply = functools.partial(BRIDGE.apply, method="quantize", mutable=["codebook"])
    _, changed = jax.jit(apply)(variables, features(0), LENGTHS)
    for name, value in changed["codebook"].items():
        np.testing.assert_array_equal(value, codebook[name])


def test_a_batch_without_frames_changes_nothing():
    codebook, ages = fresh(), codebooks.initial_ages(SIZES, AFTER)
    none = np.zeros(ITEMS, np.int32)
    learnt, batch = learn(codebook, features(0), none, ALL)
    empty = draw(jax.random.key(0), features(0), np.zeros_like(VALID))
    assert not np.asarray(empty.priority_K).any() and not np.asarray(empty.z_KE).any()
    learnt, aged = revive(learnt, ages, batch, empty)
    for tree, old in ((learnt, codebook), (aged, ages)):
        assert all(np.array_equal(tree[name], old[name]) for name in old)


def test_rows_without_mass_stay_finite():
    codebook = fresh()
    for name, value in codebook.items():
        if not name.startswith("embed_") or name.startswith("embed_avg"):
            codebook[name] = np.zeros_like(value)
    for step in range(3):
        codebook, _ = learn(codebook, features(step), LENGTHS, ALL)
    assert all(np.isfinite(np.asarray(value)).all() for value in codebook.values())


def test_usage_counts():
    batch = codebooks.Statistics((np.array([4, 4, 0, 0], np.float32), np.zeros(1, np.float32)), ())
    ages = {"age_0": np.array([0, 0, 7, 3]), "age_1": np.zeros(1, np.int32)}
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [9.0, 9.0], [9.0, 9.0]], np.float32)
    codebook = {"embed_0": rows, "embed_1": rows[:1]}
    usage = jax.jit(codebooks.usage, static_argnums=3)(codebook, batch, ages, 7)
    got = {name: float(value) for name, value in usage.items()}
    assert got["codebook/0/use"] == 0.5 and got["codebook/0/dead"] == 1
    assert got["codebook/0/entropy"] == pytest.approx(0.5)
    assert got["codebook/0/perplexity"] == pytest.approx(2)
    assert got["codebook/0/norm"] == pytest.approx(3)
    assert got["codebook/1/use"] == got["codebook/1/entropy"] == 0


# --- restarts -------------------------------------------------------------------------------------


def test_ages_and_dead_rows():
    codebook = fresh()
    ages = {f"age_{q}": np.zeros(size, np.int32) for q, size in enumerate(SIZES)}
    counts = tuple(np.where(np.arange(size) == 1, np.float32(2), 0) for size in SIZES)
    batch = codebooks.Statistics(counts, ())
    candidates = draw(jax.random.key(0), features(0), VALID)
    for step in range(1, AFTER):
        codebook2, ages = revive(codebook, ages, batch, candidates)
        assert all(np.array_equal(codebook2[name], codebook[name]) for name in codebook)
        assert ages["age_0"].tolist() == [step, 0, step, step, step, step]
    codebook2, ages = revive(codebook, ages, batch, candidates)
    # Five rows are dead, and a codebook has four candidates at most.
    assert ages["age_0"].tolist() == [0, 0, 0, 0, 0, AFTER]
    assert ages["age_1"].tolist() == [0, 0, 0, 0]
    table = np.asarray(codebook2["embed_0"])
    np.testing.assert_array_equal(table[[1, 5]], codebook["embed_0"][[1, 5]])
    assert (table[0] != codebook["embed_0"][0]).any()


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 4))
def test_restarts_keep_mass_and_use_rows_of_the_data(seed, steps):
    codebook, ages = fresh(seed), codebooks.initial_ages(SIZES, AFTER)
    for step in range(steps):
        z = features(seed + step)
        before, batch = learn(codebook, z, LENGTHS, ALL)
        candidates = draw(jax.random.fold_in(jax.random.key(seed), step), z, VALID)
        codebook, new_ages = revive(before, ages, batch, candidates)
        frames = z[VALID]
        residuals = frames
        for q, size in enumerate(SIZES):
            older = np.where(batch.counts[q] > 0, 0, np.asarray(ages[f"age_{q}"]) + 1)
            taken = (older >= AFTER) & (np.asarray(new_ages[f"age_{q}"]) == 0)
            assert taken.sum() == min((older >= AFTER).sum(), min(size, 4))
            mass, old_mass = (np.asarray(c[f"cluster_size_{q}"]) for c in (codebook, before))
            np.testing.assert_array_equal(mass, np.where(taken, 1, old_mass))
            for name in (f"embed_{q}", f"embed_avg_{q}"):
                kept = np.asarray(codebook[name])[~taken]
                np.testing.assert_array_equal(kept, np.asarray(before[name])[~taken])
            table = np.asarray(codebook[f"embed_{q}"])
            np.testing.assert_array_equal(table[taken], codebook[f"embed_avg_{q}"][taken])
            # The residual of a frame of this batch after the previous codebooks.
            for row in table[taken]:
                assert np.abs(residuals - row).max(1).min() < 1e-5
            nearest = ((residuals[:, None] - table[None]) ** 2).sum(-1).argmin(1)
            residuals = residuals - table[nearest]
        ages = new_ages


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_every_codebook_reduces_the_residual_of_its_training_data(seed):
    codebook, ages = fresh(seed), codebooks.initial_ages(SIZES, AFTER)
    z = features(seed)
    for step in range(40):
        codebook, batch = learn(codebook, z, LENGTHS, ALL)
        candidates = draw(jax.random.fold_in(jax.random.key(seed), step), z, VALID)
        codebook, ages = revive(codebook, ages, batch, candidates)
    result = quantize(codebook, z, LENGTHS)
    norms = [np.linalg.norm(r[VALID], axis=1).mean() for r in np.asarray(result.residuals_QBNE)]
    norms.append(np.linalg.norm((z - np.asarray(result.z_BNE))[VALID], axis=1).mean())
    assert all(after < before for before, after in zip(norms, norms[1:], strict=False)), norms


def test_kmeans_finds_clusters_and_counts_every_frame():
    rng = np.random.default_rng(0)
    coarse, fine = 10 * rng.normal(size=(4, 8)), rng.normal(size=(3, 8))
    frames = coarse[rng.integers(4, size=600)] + fine[rng.integers(3, size=600)]
    frames = frames.astype(np.float32)
    errors = []
    for sizes in ((8,), (8, 6), (8, 6, 12)):
        result = codebooks.kmeans(jax.random.key(1), frames, sizes, iterations=20)
        remainder = frames
        for q, size in enumerate(sizes):
            table, counts = result[f"embed_{q}"], result[f"cluster_size_{q}"]
            assert table.shape == (size, 8) and counts.sum() == 600
            np.testing.assert_allclose(result[f"embed_avg_{q}"], table * counts[:, None], rtol=1e-6)
            remainder = (
                remainder - table[((remainder[:, None] - table[None]) ** 2).sum(-1).argmin(1)]
            )
        errors.append((remainder**2).mean() / frames.var(axis=0).mean())
    assert errors[0] < 0.2 and errors[1] < errors[0] / 2 and errors[2] < errors[1], errors
    again = codebooks.kmeans(jax.random.key(1), frames, sizes, iterations=20)
    jax.tree.map(np.testing.assert_array_equal, result, again)
    with pytest.raises(ValueError, match="5 frames for 12 rows: expected at least as many"):
        codebooks.kmeans(jax.random.key(0), frames[:5], sizes)


def test_candidates_are_distinct_valid_frames_and_merge_to_a_draw_from_both():
    first, second = (draw(jax.random.key(i), features(i), VALID) for i in range(2))
    assert len(OWNERS) == 11 and np.bincount(OWNERS).tolist() == [4, 4, 3]
    assert set(OWNERS[:3].tolist()) == {0, 1, 2}  # few frames are shared out, too
    for i, drawn in enumerate((first, second)):
        rows = {tuple(row) for row in np.asarray(drawn.z_KE).tolist()}
        assert len(rows) == 11 and rows <= {tuple(row) for row in features(i)[VALID].tolist()}
    merged = merge_candidates(first, second)
    pool = np.concatenate([first.z_KE, second.z_KE])
    order = np.argsort(-np.concatenate([first.priority_K, second.priority_K]), kind="stable")
    np.testing.assert_array_equal(merged.z_KE, pool[order[:11]])
    nothing = jax.tree.map(np.zeros_like, first)
    np.testing.assert_array_equal(merge_candidates(nothing, first).z_KE, first.z_KE)


# --- the quantiser's draws ------------------------------------------------------------------------


def test_dropout_uses_the_first_k_codebooks_evenly():
    draw_all = jax.jit(draw_used, static_argnums=(1, 2, 3))
    used = np.asarray(draw_all(jax.random.key(0), 20000, 5, 0.4))
    depth = used.sum(1)
    assert (used == (np.arange(5)[None, :] < depth[:, None])).all()
    share = np.bincount(depth, minlength=6) / len(depth)
    np.testing.assert_allclose(share, [0, 0.1, 0.1, 0.1, 0.1, 0.6], atol=0.012)
    assert np.asarray(draw_all(jax.random.key(0), 20000, 5, 0.0)).all()


def test_items_without_later_codebooks_are_coarser():
    used = ALL.copy()
    used[0, 1:] = used[3, 2:] = False
    z, codebook = features(0), fresh()
    result, whole = jax.device_get(
        [quantize(codebook, z, LENGTHS, used), quantize(codebook, z, LENGTHS)]
    )
    np.testing.assert_array_equal(result.z_BNE[1], whole.z_BNE[1])
    row = codebook["embed_0"][whole.codes_BNQ[0, :, 0]]
    np.testing.assert_allclose(result.z_BNE[0], row, atol=1e-5)
    want = row[:4] * 0 + sum(codebook[f"embed_{q}"][whole.codes_BNQ[3, :4, q]] for q in (0, 1))
    np.testing.assert_allclose(result.z_BNE[3, :4], want, atol=1e-5)
    assert not result.codes_BNQ[0, :, 1:].any()


def test_sampling_is_gumbel_on_squared_distance():
    x = np.broadcast_to(np.array([1.0, 0.0], np.float32), (1, 40000, 2))
    table = np.array([[1.0, 0.0], [0.9, 0.5], [0.0, 1.0]], np.float32)
    energy = ((x[0, 0] - table) ** 2).sum(1)
    want = np.exp(-energy / 0.5)
    sample = jax.jit(sample_code, static_argnums=3)
    codes = np.asarray(sample(jax.random.key(0), x, table, 0.5))[0]
    np.testing.assert_allclose(np.bincount(codes) / len(codes), want / want.sum(), atol=0.01)
    assert not np.asarray(sample(jax.random.key(0), x, table, 0.0)).any()
    # The temperature is in shares of the vector's own energy.
    scaled = np.asarray(sample(jax.random.key(0), 10 * x, 10 * table, 0.5))[0]
    np.testing.assert_array_equal(scaled, codes)


def test_gradients_pass_straight_through_in_training():
    z = np.where(VALID[:, :, None], features(0), 0)
    weight = features(7)
    used = np.asarray(draw_used(jax.random.key(3), ITEMS, len(SIZES), 0.9))

    def loss(z, codebook):
        variables = {"params": {}, "codebook": codebook}
        result = BRIDGE.apply(
            variables,
            z,
            LENGTHS,
            used_BQ=used,
            key=jax.random.key(0),
            temperature=0.1,
            method="quantize",
        )
        return jnp.sum(jnp.where(VALID[:, :, None], result.z_BNE * weight, 0))

    grad, table_grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(z, fresh())
    np.testing.assert_array_equal(grad, np.where(VALID[:, :, None], weight, 0))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(table_grads))


# --- devices --------------------------------------------------------------------------------------

SHARDED = """
import sys
import jax, numpy as np
devices = int(sys.argv[1])
jax.config.update("jax_num_cpu_devices", devices)
from jax.sharding import NamedSharding, PartitionSpec
from tests.unit.models import test_codebook as here
mesh = jax.sharding.Mesh(jax.devices(), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
put = lambda x: jax.device_put(np.concatenate([x] * 2), rows)
codebook, ages = here.fresh(), here.codebooks.initial_ages(here.SIZES, here.AFTER)
for step in range(3):
    z, lengths, used = put(here.features(step)), put(here.LENGTHS), put(here.ALL)
    z = z * (1 + np.arange(8, dtype=np.float32))[:, None, None]
    codebook, batch = here.learn(codebook, z, lengths, used)
    drawn = here.draw(jax.random.key(step), z, put(here.VALID))
    codebook, ages = here.revive(codebook, ages, batch, drawn)
assert len(z.sharding.device_set) == devices
np.savez(sys.argv[2], **codebook, **ages)
"""


def test_1_and_8_devices_agree(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npz"
        done = subprocess.run(
            [sys.executable, "-c", SHARDED, str(devices), str(path)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        result.append(dict(np.load(path)))
    assert any((result[0][f"age_{q}"] > 0).any() for q in range(len(SIZES)))
    for name, value in result[0].items():
        np.testing.assert_allclose(result[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
