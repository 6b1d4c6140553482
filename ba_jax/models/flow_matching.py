"""Conditional flow matching: time schedule, noise, guided Euler sampling (paper 3.2).

Pure functions on arrays; the estimator is an argument. State and time are float32, whatever the
estimator's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models import layers

Velocity = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(x_BTM, mu_BTM, t_B, lengths_B) -> velocity_BTM."""


@dataclasses.dataclass(frozen=True)
class FlowMatchingConfig:
    """Constants of the flow.

    Attributes:
      steps: Euler steps when sampling.
      guidance: w of (1 + w) v(mu) - w v(0); 0 leaves the second estimate out.
      condition_dropout: share of training items whose mu is zeroed.
      sigma_min: noise left at t = 1.
      schedule: "cosine" (t = 1 - cos(pi/2 u)) or "linear".
      residual_std: deviation of mels from mu, in nats: above 0 the estimator predicts a remainder
        of the velocity, see `precondition`. The release has 0: its estimator predicts all of it.
      mel_mean, mel_std: mean and deviation of mels, in nats, in frames without mu; not used with
        residual_std 0.
    """

    steps: int = 10
    guidance: float = 0.7
    condition_dropout: float = 0.2
    sigma_min: float = 1e-6
    schedule: str = "cosine"
    residual_std: float = 0.0
    mel_mean: float = -4.0
    mel_std: float = 2.3

    def __post_init__(self):
        if self.residual_std < 0 or self.mel_std <= 0:
            raise ValueError(
                f"flow_matching: residual_std = {self.residual_std}, mel_std = {self.mel_std}: "
                "expected at least 0, and more than 0"
            )


def warp(u: jax.Array, schedule: str) -> jax.Array:
    """Map uniform u in [0, 1] to flow time.

    Raises:
      ValueError: an unknown schedule.
    """
    if schedule == "cosine":
        return 1 - jnp.cos(0.5 * jnp.pi * u)
    if schedule == "linear":
        return u
    raise ValueError(f"schedule {schedule!r}: expected 'cosine' or 'linear'")


def time_steps(steps: int, schedule: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and step sizes of Euler's method, both (steps,) float32.

    Times are accumulated in float32 as t + dt, as in the reference.

    Raises:
      ValueError: steps < 1, or an unknown schedule.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: expected at least 1")
    if schedule not in ("cosine", "linear"):
        raise ValueError(f"schedule {schedule!r}: expected 'cosine' or 'linear'")
    u = np.linspace(0, 1, steps + 1, dtype=np.float32)
    grid = 1 - np.cos(u * np.float32(0.5 * np.pi)) if schedule == "cosine" else u
    times, deltas = [], []
    t = grid[0]
    for upper in grid[1:]:
        times.append(t)
        deltas.append(upper - t)
        t = t + deltas[-1]
    return np.asarray(times, np.float32), np.asarray(deltas, np.float32)


def draw_noise(
    keys_B: jax.Array, frames: int, mel_bins: int, offset: int | jax.Array = 0
) -> jax.Array:
    """Standard normal noise (B, frames, mel_bins), float32.

    A frame's noise depends only on its item's key and its position: it is the same in every batch,
    bucket and chunk. `offset` is the position of the first frame, one number or one for each item.
    """

    def frame(key: jax.Array, t: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, t), (mel_bins,), jnp.float32)

    offset_B1 = jnp.broadcast_to(jnp.asarray(offset), keys_B.shape)[:, None]
    positions_BT = offset_B1 + jnp.arange(frames)[None, :]
    return jax.vmap(jax.vmap(frame, (None, 0)))(keys_B, positions_BT)


def euler_step(
    velocity: Velocity,
    x_BTM: jax.Array,
    time: tuple[jax.Array, jax.Array],
    mu_BTM: jax.Array,
    lengths_B: jax.Array,
    guidance: float,
) -> jax.Array:
    """The state after one step; `time` is the pair of the step's time and size.

    The conditional and the unconditional estimate are one call on a doubled batch.
    """
    t, delta = time
    batch, copies = len(x_BTM), guidance_copies(guidance)
    guided = copies > 1
    mu = jnp.concatenate([mu_BTM, jnp.zeros_like(mu_BTM)]) if guided else mu_BTM
    t_B = jnp.full((copies * batch,), t)
    v = velocity(jnp.tile(x_BTM, (copies, 1, 1)), mu, t_B, jnp.tile(lengths_B, copies))
    v = v.astype(jnp.float32)
    if guided:
        v = (1 + guidance) * v[:batch] - guidance * v[batch:]
    return x_BTM + delta * v


def sample(
    velocity: Velocity,
    mu_BTM: jax.Array,
    lengths_B: jax.Array,
    noise_BTM: jax.Array,
    *,
    steps: int = 10,
    guidance: float = 0.7,
    schedule: str = "cosine",
) -> jax.Array:
    """Integrate the flow from noise to a mel with Euler's method.

    Args:
      velocity: the estimator.
      mu_BTM: condition.
      lengths_B: valid frames.
      noise_BTM: state at t = 0, see `draw_noise`.

    Returns:
      mel_BTM, float32; past the lengths the noise stays untouched.
    """

    def step(x: jax.Array, time: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return euler_step(velocity, x, time, mu_BTM, lengths_B, guidance), None

    return jax.lax.scan(step, noise_BTM.astype(jnp.float32), time_steps(steps, schedule))[0]


def precondition(estimator: Velocity, config: FlowMatchingConfig) -> Velocity:
    """The velocity from an estimator that predicts only its deviation from a prior.

    If mels were normal around mu with a deviation s, the velocity at a point x_t would have the
    mean mu + (t s^2 - (1 - sigma_min) a) / r^2 (x_t - t mu) and the deviation s / r, with the
    noise's share a = 1 - (1 - sigma_min) t and r^2 = a^2 + t^2 s^2. The estimator reads
    (x_t - t mu) / r and the normalised mu, and predicts by how many such deviations the velocity
    differs from that mean. So an untrained estimator already samples mels around mu, and it need
    not copy the noise, for which a small network is too narrow. Karras et al. 2022 ("Elucidating
    the design space", section 5) do the same with a mean of 0. In frames whose mu is 0 there is no
    condition: `mel_mean` and `mel_std` replace mu and s.

    With `config.residual_std` 0 the result is the estimator itself.
    """
    if not config.residual_std:
        return estimator

    def velocity(x_BTM, mu_BTM, t_B, lengths_B):
        x_BTM, mu_BTM = x_BTM.astype(jnp.float32), mu_BTM.astype(jnp.float32)
        t, kept = t_B.astype(jnp.float32)[:, None, None], 1 - config.sigma_min
        known = jnp.any(mu_BTM != 0, axis=2, keepdims=True)
        mean = jnp.where(known, mu_BTM, config.mel_mean)
        std = jnp.where(known, config.residual_std, config.mel_std)
        share = 1 - kept * t
        r = jnp.sqrt(jnp.square(share) + jnp.square(t * std))
        away = layers.zero_past(x_BTM - t * mean, lengths_B)
        mu = jnp.where(known, (mu_BTM - config.mel_mean) / config.mel_std, 0)
        deviations = estimator(away / r, mu, t_B, lengths_B).astype(jnp.float32)
        expected = mean + (t * jnp.square(std) - kept * share) / jnp.square(r) * away
        return layers.zero_past(expected + std / r * deviations, lengths_B)

    return velocity


def guidance_copies(guidance: float) -> int:
    """Copies of the batch that the estimator runs on: conditional and, if guided, unconditional."""
    return 2 if guidance > 0 else 1


def training_pair(
    mel_BTM: jax.Array, noise_BTM: jax.Array, t_B: jax.Array, sigma_min: float
) -> tuple[jax.Array, jax.Array]:
    """Point on the path at time t and the velocity to learn there.

    y = (1 - (1 - sigma_min) t) z + t x1 and u = x1 - (1 - sigma_min) z (Lipman et al. 2023,
    eq. 22, 23).
    """
    t = t_B[:, None, None]
    point = (1 - (1 - sigma_min) * t) * noise_BTM + t * mel_BTM
    return point, mel_BTM - (1 - sigma_min) * noise_BTM
