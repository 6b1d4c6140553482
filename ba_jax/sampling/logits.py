"""Sampling from logits: pure functions on (B, V), each row independent of the others.

A row's choice depends on its logits and its key alone.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters; static under jit, so that an option that is off costs nothing.

    Attributes:
      temperature: 0 takes the most likely class (greedy) and ignores top_k and top_p.
      top_k: sample among the k most likely classes; 0: all.
      top_p: sample among the fewest classes that hold this share of the probability.
      repetition_penalty: makes classes that were chosen before less likely; 1 is off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        good = 0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1
        if not good or not 0 < self.repetition_penalty < math.inf:  # NaN compares as false
            raise ValueError(
                f"{self}: expected finite temperature >= 0, top_k >= 0, 0 < top_p <= 1 and finite "
                "repetition_penalty > 0"
            )

    @property
    def penalises(self) -> bool:
        """Whether a choice depends on the classes chosen before."""
        return self.repetition_penalty != 1.0


GREEDY = Sampling()


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """Divide positive logits of seen classes by `penalty`, multiply negative ones (CTRL, 2019)."""
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, penalised_BV, logits_BV)


def keep_allowed(logits_BV: jax.Array, allowed_BV: jax.Array) -> jax.Array:
    """Set logits to -inf where `allowed_BV` is false."""
    return jnp.where(allowed_BV, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """Set logits to -inf outside the fewest classes that hold the share p; ties are kept."""
    if p >= 1:
        return logits_BV
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    share_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    last_B1 = jnp.min(jnp.where(before_BV < p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)


def draw(keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """Draw a class per row from the softmax of its logits, int32 (B,)."""
    classes = logits_BV.shape[-1:]
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, classes, jnp.float32))(keys_B)
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


def choose(
    keys_B: jax.Array,
    logits_BV: jax.Array,
    sampling: Sampling,
    *,
    seen_BV: jax.Array | None = None,
    allowed_BV: jax.Array | None = None,
) -> jax.Array:
    """Choose a class per row, int32 (B,): penalty, mask, temperature, top k, top p, draw.

    Args:
      keys_B: a random key per row; unused if greedy.
      logits_BV: float32.
      sampling: see `Sampling`.
      seen_BV: classes that each row chose before; read if `sampling.penalises`.
      allowed_BV: classes that may be chosen, at least one per row; None: all.

    Raises:
      ValueError: a penalty without `seen_BV`.
    """
    if sampling.penalises:
        if seen_BV is None:
            raise ValueError(f"{sampling}: expected seen_BV with a repetition penalty")
        logits_BV = penalise(logits_BV, seen_BV, sampling.repetition_penalty)
    if allowed_BV is not None:
        logits_BV = keep_allowed(logits_BV, allowed_BV)
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if not 0 < sampling.top_k < logits_BV.shape[-1]:
        return draw(keys_B, keep_top_p(logits_BV, sampling.top_p))
    # Over k classes instead of V, there is no sort and no noise over the vocabulary. Ties at the
    # k-th place go to the lower classes.
    top_BK, classes_BK = jax.lax.top_k(logits_BV, sampling.top_k)
    chosen_B = draw(keys_B, keep_top_p(top_BK, sampling.top_p))
    return jnp.take_along_axis(classes_BK, chosen_B[:, None], axis=1)[:, 0].astype(jnp.int32)
