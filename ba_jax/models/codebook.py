"""Codebooks trained by EMA: statistics, update, restart of dead rows, usage (paper 3.1, eq. 4, 5).

Pure functions on the collection `codebook` of the bridge: for codebook q the arrays `embed_q`
(V, E), `embed_avg_q` (V, E) and `cluster_size_q` (V,). Statistics are plain sums over a batch: with
a sharded batch, under jit, they are sums over all devices and hosts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.vq_bridge import nearest_code

EPSILON = 1e-5
"""Laplace smoothing of the counts."""


class Statistics(NamedTuple):
    """Assignments of a batch to the rows of each codebook; statistics of batches can be added.

    Attributes:
      counts: (V,) float32, vectors assigned to each row.
      sums: (V, E) float32, the sum of these vectors.
    """

    counts: tuple[jax.Array, ...]
    sums: tuple[jax.Array, ...]


class Candidates(NamedTuple):
    """Unquantised frames drawn at random, from which dead rows restart.

    Attributes:
      z_KE: float32, 0 in slots without a frame.
      priority_K: float32, descending; above 1 for a frame, 0 in empty slots.
    """

    z_KE: jax.Array
    priority_K: jax.Array


def codebook_sizes(codebook: Mapping[str, jax.Array]) -> tuple[int, ...]:
    """Rows of each codebook of a bridge's collection, first to last."""
    number = sum(name.startswith("cluster_size_") for name in codebook)
    return tuple(codebook[f"embed_{q}"].shape[0] for q in range(number))


def statistics(
    codes_BNQ: jax.Array, residuals_QBNE: jax.Array, counted_BNQ: jax.Array, sizes: Sequence[int]
) -> Statistics:
    """Counts and sums of the vectors assigned to each row.

    Args:
      codes_BNQ: chosen rows.
      residuals_QBNE: input of each codebook.
      counted_BNQ: true where the choice counts: not at padding, nor in codebooks dropped by
        quantiser dropout.
      sizes: rows of each codebook.
    """
    width = residuals_QBNE.shape[-1]
    counts, sums = [], []
    for q, size in enumerate(sizes):
        counted = counted_BNQ[..., q].reshape(-1)
        codes = jnp.where(counted, codes_BNQ[..., q].reshape(-1), 0)
        rows = residuals_QBNE[q].astype(jnp.float32).reshape(-1, width)
        rows = jnp.where(counted[:, None], rows, 0)
        counts.append(jax.ops.segment_sum(counted.astype(jnp.float32), codes, size))
        sums.append(jax.ops.segment_sum(rows, codes, size))
    return Statistics(tuple(counts), tuple(sums))


def draw_candidates(key: jax.Array, z_BNE: jax.Array, valid_BN: jax.Array, size: int) -> Candidates:
    """Draw `size` of the valid frames without replacement; sharding does not change the draw."""
    z = z_BNE.astype(jnp.float32).reshape(-1, z_BNE.shape[-1])
    valid = valid_BN.reshape(-1)
    missing = max(size - len(valid), 0)
    priority = jnp.where(valid, 1 + jax.random.uniform(key, valid.shape), 0)
    priority, index = jax.lax.top_k(jnp.pad(priority, (0, missing)), size)
    rows = jnp.take(z, jnp.minimum(index, len(valid) - 1), axis=0)
    return Candidates(jnp.where((priority > 0)[:, None], rows, 0), priority)


def merge_candidates(first: Candidates, second: Candidates) -> Candidates:
    """A draw from the union of two populations, from a draw of the same size from each."""
    priority, index = jax.lax.top_k(
        jnp.concatenate([first.priority_K, second.priority_K]), len(first.priority_K)
    )
    return Candidates(jnp.concatenate([first.z_KE, second.z_KE])[index], priority)


def update(
    codebook: Mapping[str, jax.Array], batch: Statistics, decay: float, l2_shrink: float
) -> dict[str, jax.Array]:
    """One step of the moving averages.

    cluster_size <- a cluster_size + (1 - a) count,
    embed_avg <- (1 - b) (a embed_avg + (1 - a) sum), embed <- embed_avg / smoothed cluster_size,
    with a = `decay` and b = `l2_shrink`. The next step averages with the shrunk row (eq. 4, 5): a
    row that is always used has (1 - a) (1 - b) / (1 - a (1 - b)) of the norm of its data, a
    rarely used one less, so that rows near the origin take over its inputs. The smoothing keeps
    rows without mass finite. A codebook without any assignment (a batch of text, or dropped for all
    items) does not change.
    """
    new = dict(codebook)
    for q, (count_V, sum_VE) in enumerate(zip(batch.counts, batch.sums, strict=True)):
        size_V = decay * codebook[f"cluster_size_{q}"] + (1 - decay) * count_V
        avg_VE = decay * codebook[f"embed_avg_{q}"] + (1 - decay) * sum_VE
        avg_VE = (1 - l2_shrink) * avg_VE
        total = jnp.sum(size_V)
        smoothed_V = (size_V + EPSILON) * (total / (total + len(size_V) * EPSILON))
        embed_VE = avg_VE / jnp.maximum(smoothed_V, EPSILON**2)[:, None]
        seen = jnp.sum(count_V) > 0
        for name, value in (("embed", embed_VE), ("embed_avg", avg_VE), ("cluster_size", size_V)):
            old = codebook[f"{name}_{q}"]
            new[f"{name}_{q}"] = jnp.where(seen, value, old).astype(old.dtype)
    return new


def kmeans(
    key: jax.Array, frames_KE: np.ndarray, sizes: Sequence[int], *, iterations: int = 10
) -> dict[str, np.ndarray]:
    """Fit a codebook collection to frames by residual k-means, codebook after codebook.

    Rows start at random frames (SoundStream, arXiv 2107.03312, 3.3); a row that loses all its
    frames restarts from another. `cluster_size_q` counts the K frames: scale it and `embed_avg_q`
    to the size of a batch.

    Args:
      key: random key.
      frames_KE: float32, input of the first codebook.
      sizes: rows of each codebook.
      iterations: k-means steps for each codebook.

    Raises:
      ValueError: fewer frames than rows.
    """
    if len(frames_KE) < max(sizes):
        raise ValueError(
            f"{len(frames_KE)} frames for {max(sizes)} rows: expected at least as many"
        )
    residual_KE, codebook = jnp.asarray(frames_KE, jnp.float32), {}
    for q, size in enumerate(sizes):
        draws = jax.random.split(jax.random.fold_in(key, q), iterations + 1)
        table_VE, counts_V, residual_KE = _fit(draws, residual_KE, size)
        table_VE, counts_V = np.asarray(table_VE), np.asarray(counts_V)
        codebook[f"embed_{q}"] = table_VE
        codebook[f"embed_avg_{q}"] = table_VE * counts_V[:, None]
        codebook[f"cluster_size_{q}"] = counts_V
    return codebook


@functools.partial(jax.jit, static_argnums=2)
def _fit(
    draws: jax.Array, frames_KE: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows (V, E) of k-means with a key for the start and for each step, their counts_V, and what
    remains of each frame."""

    def some(draw: jax.Array) -> jax.Array:
        return frames_KE[jax.random.choice(draw, len(frames_KE), (size,), False)]

    def step(table_VE: jax.Array, draw: jax.Array) -> tuple[jax.Array, None]:
        sums_VE, counts_V, _ = _assign(frames_KE, table_VE)
        means_VE = sums_VE / jnp.maximum(counts_V, 1)[:, None]
        return jnp.where(counts_V[:, None] > 0, means_VE, some(draw)), None

    table_VE, _ = jax.lax.scan(step, some(draws[0]), draws[1:])
    _, counts_V, codes_K = _assign(frames_KE, table_VE)
    return table_VE, counts_V, frames_KE - table_VE[codes_K]


_CHUNK = 1 << 14  # frames whose distances to all rows are in memory at once


@jax.jit
def _assign(frames_KE: jax.Array, table_VE: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sums_VE, counts_V) of the frames nearest to each row, and codes_K, each frame's row."""
    chunks = [
        nearest_code(frames_KE[None, first : first + _CHUNK], table_VE)[0]
        for first in range(0, len(frames_KE), _CHUNK)
    ]
    codes_K = jnp.concatenate(chunks)
    counts_V = jax.ops.segment_sum(jnp.ones(len(codes_K), jnp.float32), codes_K, len(table_VE))
    return jax.ops.segment_sum(frames_KE, codes_K, len(table_VE)), counts_V, codes_K


def initial_ages(sizes: Sequence[int], restart_after: int) -> dict[str, jax.Array]:
    """Initial steps since each row was last used, int32: `restart_after`.

    Rows that the first batches do not use then restart from those batches.
    """
    return {f"age_{q}": jnp.full((size,), restart_after, jnp.int32) for q, size in enumerate(sizes)}


def candidate_owners(sizes: Sequence[int], most: int) -> np.ndarray:
    """The codebook that each candidate belongs to, (K,) int; min(size, most) for each codebook.

    No frame is a candidate of two codebooks: the residual of a frame that a row of the first
    restarted from would be 0 in the second. The codebooks alternate evenly, so that a batch with
    fewer frames has candidates for each.
    """
    counts = [min(size, most) for size in sizes]
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(sizes)), counts)[np.argsort(place, kind="stable")]


def restart(
    codebook: Mapping[str, jax.Array],
    ages: Mapping[str, jax.Array],
    batch: Statistics,
    candidates: Candidates,
    restart_after: int,
    owners_K: np.ndarray,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Count the steps that rows are unused, and restart dead rows from residuals of the batch.

    A row unused for `restart_after` steps is set to a candidate's residual after the previous
    codebooks, already updated and restarted: embed and embed_avg are the residual, cluster_size is
    1, the age 0. Without enough candidates, some rows stay dead until a later step.

    Args:
      codebook: after `update`.
      ages: see `initial_ages`, before this batch.
      batch: the batch's statistics; a codebook without any assignment does not age.
      candidates: frames to restart from, one per entry of `owners_K`.
      restart_after: steps.
      owners_K: see `candidate_owners`.

    Returns:
      (codebook, ages).
    """
    sizes = codebook_sizes(codebook)
    ages = dict(ages)
    for q, count_V in enumerate(batch.counts):
        older = ages[f"age_{q}"] + (jnp.sum(count_V) > 0).astype(jnp.int32)
        ages[f"age_{q}"] = jnp.where(count_V > 0, 0, older)

    def fill(state: tuple[dict, dict]) -> tuple[dict, dict]:
        new, ages = dict(state[0]), dict(state[1])
        residual_KE, owners = candidates.z_KE, owners_K
        present_K = candidates.priority_K > 0
        for q in range(len(sizes)):
            mine = np.flatnonzero(owners == q)
            rows_CE, present_C = residual_KE[mine], present_K[mine]
            dead_V = ages[f"age_{q}"] >= restart_after
            rank_V = jnp.cumsum(dead_V) - 1  # priorities descend: present candidates come first
            take_V = dead_V & (rank_V < jnp.sum(present_C))
            rows_VE = rows_CE[jnp.clip(rank_V, 0, len(mine) - 1)]
            for name in ("embed", "embed_avg"):
                old = new[f"{name}_{q}"]
                new[f"{name}_{q}"] = jnp.where(take_V[:, None], rows_VE, old).astype(old.dtype)
            new[f"cluster_size_{q}"] = jnp.where(take_V, 1.0, new[f"cluster_size_{q}"])
            ages[f"age_{q}"] = jnp.where(take_V, 0, ages[f"age_{q}"])
            later = np.flatnonzero(owners > q)
            if len(later):
                residual_KE, owners, present_K = residual_KE[later], owners[later], present_K[later]
                table_VE = new[f"embed_{q}"].astype(jnp.float32)
                residual_KE = residual_KE - table_VE[nearest_code(residual_KE[None], table_VE)[0]]
        return new, ages

    any_dead = [jnp.any(ages[f"age_{q}"] >= restart_after) for q in range(len(sizes))]
    state = (dict(codebook), ages)
    return jax.lax.cond(jnp.any(jnp.stack(any_dead)), fill, lambda state: state, state)


def usage(
    codebook: Mapping[str, jax.Array],
    batch: Statistics,
    ages: Mapping[str, Any],
    restart_after: int,
) -> dict[str, jax.Array]:
    """Metrics of the codebooks' usage, float32 scalars `codebook/Q/...` from a batch's counts.

    `use` is the share of rows used at all, `entropy` that of the choices as a share of log V,
    `perplexity` the exponential of the entropy, `dead` the number of rows unused for at least
    `restart_after` steps, `norm` the mean Euclidean norm of the chosen rows.
    """
    metrics = {}
    for q, count_V in enumerate(batch.counts):
        share_V = count_V / jnp.maximum(jnp.sum(count_V), 1)
        entropy = -jnp.sum(
            jnp.where(share_V > 0, share_V * jnp.log(jnp.maximum(share_V, 1e-30)), 0)
        )
        dead = jnp.sum(ages[f"age_{q}"] >= restart_after)
        norm_V = jnp.linalg.norm(codebook[f"embed_{q}"].astype(jnp.float32), axis=1)
        metrics[f"codebook/{q}/norm"] = jnp.sum(share_V * norm_V)
        metrics[f"codebook/{q}/use"] = jnp.mean((count_V > 0).astype(jnp.float32))
        metrics[f"codebook/{q}/entropy"] = entropy / max(np.log(len(count_V)), 1e-9)
        metrics[f"codebook/{q}/perplexity"] = jnp.exp(entropy)
        metrics[f"codebook/{q}/dead"] = dead.astype(jnp.float32)
    return metrics
