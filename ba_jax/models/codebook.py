"""Codebooks learnt by moving averages: statistics, update, restart, use (paper 3.1, eq. 4 and 5).

Pure functions on the collection `codebook` of the bridge: for codebook q the arrays `embed_q`
(V, E), `embed_avg_q` (V, E) and `cluster_size_q` (V,). Statistics are plain sums over a batch, so
under jit with the batch sharded they are sums over all devices and hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.vq_bridge import nearest_code

EPSILON = 1e-5
"""Of the Laplace smoothing of the counts."""


class Statistics(NamedTuple):
    """What a batch assigned to the rows, an entry a codebook; add those of several batches.

    Attributes:
      counts: (V,) float32, vectors.
      sums: (V, E) float32, their sum.
    """

    counts: tuple[jax.Array, ...]
    sums: tuple[jax.Array, ...]


class Candidates(NamedTuple):
    """Unquantised frames drawn at random, which dead rows may restart from.

    Attributes:
      z_KE: float32, 0 where fewer than K were there.
      priority_K: float32, falling; above 1 for a frame, 0 for none. All zeros is the empty draw.
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
    """Counts and sums of what each row was chosen for.

    Args:
      codes_BNQ: chosen rows.
      residuals_QBNE: what each codebook had to quantise.
      counted_BNQ: true where the choice counts: not at padding, nor where dropout left a codebook
        out.
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
    """`size` of the valid frames, drawn without replacement; the same however they are sharded."""
    z = z_BNE.astype(jnp.float32).reshape(-1, z_BNE.shape[-1])
    valid = valid_BN.reshape(-1)
    missing = max(size - len(valid), 0)
    priority = jnp.where(valid, 1 + jax.random.uniform(key, valid.shape), 0)
    priority, index = jax.lax.top_k(jnp.pad(priority, (0, missing)), size)
    rows = jnp.take(z, jnp.minimum(index, len(valid) - 1), axis=0)
    return Candidates(jnp.where((priority > 0)[:, None], rows, 0), priority)


def merge_candidates(first: Candidates, second: Candidates) -> Candidates:
    """A draw from the frames that both were drawn from; both of the same size."""
    priority, index = jax.lax.top_k(
        jnp.concatenate([first.priority_K, second.priority_K]), len(first.priority_K)
    )
    return Candidates(jnp.concatenate([first.z_KE, second.z_KE])[index], priority)


def update(
    codebook: Mapping[str, jax.Array], batch: Statistics, decay: float, l2_shrink: float
) -> dict[str, jax.Array]:
    """One step of the moving averages.

    cluster_size <- a cluster_size + (1 - a) count, embed_avg <- a embed_avg + (1 - a) sum,
    embed <- (1 - b) embed_avg / smoothed cluster_size, with a = `decay` and b = `l2_shrink`. The
    smoothing keeps a row without mass finite. A codebook that nothing was assigned to (a batch of
    text, or all items dropped) keeps its arrays.
    """
    new = dict(codebook)
    for q, (count_V, sum_VE) in enumerate(zip(batch.counts, batch.sums, strict=True)):
        size_V = decay * codebook[f"cluster_size_{q}"] + (1 - decay) * count_V
        avg_VE = decay * codebook[f"embed_avg_{q}"] + (1 - decay) * sum_VE
        total = jnp.sum(size_V)
        smoothed_V = (size_V + EPSILON) * (total / (total + len(size_V) * EPSILON))
        embed_VE = (1 - l2_shrink) * avg_VE / jnp.maximum(smoothed_V, EPSILON**2)[:, None]
        seen = jnp.sum(count_V) > 0
        for name, value in (("embed", embed_VE), ("embed_avg", avg_VE), ("cluster_size", size_V)):
            old = codebook[f"{name}_{q}"]
            new[f"{name}_{q}"] = jnp.where(seen, value, old).astype(old.dtype)
    return new


def kmeans(
    key: jax.Array, frames_KE: np.ndarray, sizes: Sequence[int], *, iterations: int = 10
) -> dict[str, np.ndarray]:
    """A codebook collection fitted to frames: residual k-means, codebook after codebook.

    Rows start at frames drawn at random (SoundStream, arXiv 2107.03312, 3.3); a row that loses all
    its frames starts again from one. `cluster_size_q` are the counts of the K frames, so scale them
    and `embed_avg_q` to what a batch brings.

    Args:
      key: of the draws.
      frames_KE: float32, what the first codebook has to quantise.
      sizes: rows of each codebook.

    Raises:
      ValueError: fewer frames than rows.
    """
    if len(frames_KE) < max(sizes):
        raise ValueError(
            f"{len(frames_KE)} frames for {max(sizes)} rows: expected at least as many"
        )
    residual_KE, found = jnp.asarray(frames_KE, jnp.float32), {}
    for q, size in enumerate(sizes):
        draws = jax.random.split(jax.random.fold_in(key, q), iterations + 1)
        table_VE = residual_KE[jax.random.choice(draws[0], len(residual_KE), (size,), False)]
        for draw in draws[1:]:
            sums_VE, counts_V, _ = _assign(residual_KE, table_VE)
            others_VE = residual_KE[jax.random.choice(draw, len(residual_KE), (size,), False)]
            means_VE = sums_VE / jnp.maximum(counts_V, 1)[:, None]
            table_VE = jnp.where(counts_V[:, None] > 0, means_VE, others_VE)
        _, counts_V, codes_K = _assign(residual_KE, table_VE)
        residual_KE = residual_KE - table_VE[codes_K]
        found[f"embed_{q}"] = np.asarray(table_VE)
        found[f"embed_avg_{q}"] = np.asarray(table_VE * counts_V[:, None])
        found[f"cluster_size_{q}"] = np.asarray(counts_V)
    return found


_CHUNK = 1 << 14  # frames whose distances to all rows are there at once


@jax.jit
def _assign(frames_KE: jax.Array, table_VE: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sums, counts) of the frames nearest to each row, and each frame's row."""
    chunks = [
        nearest_code(frames_KE[None, first : first + _CHUNK], table_VE)[0]
        for first in range(0, len(frames_KE), _CHUNK)
    ]
    codes_K = jnp.concatenate(chunks)
    counts_V = jax.ops.segment_sum(jnp.ones(len(codes_K), jnp.float32), codes_K, len(table_VE))
    return jax.ops.segment_sum(frames_KE, codes_K, len(table_VE)), counts_V, codes_K


def initial_ages(sizes: Sequence[int], restart_after: int) -> dict[str, jax.Array]:
    """Steps since each row was last used, int32, as if none had been for `restart_after` steps.

    So the rows that the first batches do not use start from those batches' data.
    """
    return {f"age_{q}": jnp.full((size,), restart_after, jnp.int32) for q, size in enumerate(sizes)}


def candidate_owners(sizes: Sequence[int], most: int) -> np.ndarray:
    """The codebook that each of the candidates belongs to, (K,) int.

    A codebook gets min(size, most) of them. No frame is a candidate of two codebooks: what a row of
    the first was restarted from would leave nothing for the second. They are dealt out evenly, so
    that a batch with fewer frames leaves each codebook its share.
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
    """Counts the steps that rows go unused, and gives dead ones a residual of the batch.

    A row unused for `restart_after` steps takes the residual that the codebooks before it, already
    updated and restarted, leave of a candidate: embed and embed_avg are the residual, cluster_size
    is 1, the age 0. Rows for which no candidate is left stay dead until a later step.

    Args:
      codebook: after `update`.
      ages: of `initial_ages`, before this batch.
      batch: the batch's statistics; a codebook that nothing was assigned to ages by nothing.
      candidates: as many as `owners_K`.
      restart_after: steps.
      owners_K: of `candidate_owners`.

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
        there_K = candidates.priority_K > 0
        for q in range(len(sizes)):
            own = np.flatnonzero(owners == q)
            rows_CE, there_C = residual_KE[own], there_K[own]
            dead_V = ages[f"age_{q}"] >= restart_after
            rank_V = jnp.cumsum(dead_V) - 1  # priorities fall: those that are there come first
            take_V = dead_V & (rank_V < jnp.sum(there_C))
            rows_VE = rows_CE[jnp.clip(rank_V, 0, len(own) - 1)]
            for name in ("embed", "embed_avg"):
                old = new[f"{name}_{q}"]
                new[f"{name}_{q}"] = jnp.where(take_V[:, None], rows_VE, old).astype(old.dtype)
            new[f"cluster_size_{q}"] = jnp.where(take_V, 1.0, new[f"cluster_size_{q}"])
            ages[f"age_{q}"] = jnp.where(take_V, 0, ages[f"age_{q}"])
            later = np.flatnonzero(owners > q)
            if len(later):
                residual_KE, owners, there_K = residual_KE[later], owners[later], there_K[later]
                table_VE = new[f"embed_{q}"].astype(jnp.float32)
                residual_KE = residual_KE - table_VE[nearest_code(residual_KE[None], table_VE)[0]]
        return new, ages

    some = [jnp.any(ages[f"age_{q}"] >= restart_after) for q in range(len(sizes))]
    state = (dict(codebook), ages)
    return jax.lax.cond(jnp.any(jnp.stack(some)), fill, lambda state: state, state)


def usage(batch: Statistics, ages: Mapping[str, Any], restart_after: int) -> dict[str, jax.Array]:
    """How well codebooks are used, float32 scalars `codebook/Q/...` from a batch's counts.

    `use` is the share of rows chosen at all, `entropy` that of the choices as a share of log V,
    `perplexity` its exponential, `dead` the number of rows at least `restart_after` steps old.
    """
    metrics = {}
    for q, count_V in enumerate(batch.counts):
        share_V = count_V / jnp.maximum(jnp.sum(count_V), 1)
        entropy = -jnp.sum(
            jnp.where(share_V > 0, share_V * jnp.log(jnp.maximum(share_V, 1e-30)), 0)
        )
        dead = jnp.sum(ages[f"age_{q}"] >= restart_after)
        metrics[f"codebook/{q}/use"] = jnp.mean((count_V > 0).astype(jnp.float32))
        metrics[f"codebook/{q}/entropy"] = entropy / max(np.log(len(count_V)), 1e-9)
        metrics[f"codebook/{q}/perplexity"] = jnp.exp(entropy)
        metrics[f"codebook/{q}/dead"] = dead.astype(jnp.float32)
    return metrics
