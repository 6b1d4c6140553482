"""Excitation of the vocoder: a neural source filter (arXiv 1904.12088).

f0 becomes a sum of harmonics with noise. This module has the random draws, the phase and the mixing
of harmonics; `Vocoder.source` puts them together.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.layers import Dtype
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.models.weight_norm import kernel_init


def item_keys(key: jax.Array, batch: int) -> jax.Array:
    """Keys (B,): `key` folded with each row's number, or `key` itself if it holds B keys.

    Raises:
      ValueError: another number of keys.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"random keys of shape {key.shape}: expected () or ({batch},)")
    return key


def draw_source_phase(key: jax.Array, batch: int, config: VocoderConfig) -> jax.Array:
    """Random initial phases phase_BH in radians, uniform in +-pi; 0 for the fundamental.

    `key` is one random key, or one for each item.
    """

    def item(key: jax.Array) -> jax.Array:
        phase_H = jax.random.uniform(key, (config.harmonics,), jnp.float32, -math.pi, math.pi)
        return jnp.pad(phase_H, (1, 0))

    return jax.vmap(item)(item_keys(key, batch))


def draw_source_noise(
    key: jax.Array, batch: int, frames: int, config: VocoderConfig, first_frame_B=0
) -> jax.Array:
    """Standard normal noise_BSH for mel frames first_frame ... first_frame + frames - 1.

    A frame's noise depends only on the key and the frame's position, so that noise drawn in chunks
    equals noise drawn at once.

    Args:
      key: one random key, or one for each item.
      first_frame_B: position of the first frame, one number or one for each item.
    """
    positions = jnp.broadcast_to(jnp.asarray(first_frame_B), (batch,))[:, None]
    positions = positions + jnp.arange(frames)[None]

    def frame(key: jax.Array, position: jax.Array) -> jax.Array:
        shape = (config.frame_samples, config.harmonics + 1)
        return jax.random.normal(jax.random.fold_in(key, position), shape, jnp.float32)

    noise = jax.vmap(jax.vmap(frame, (None, 0)))(item_keys(key, batch), positions)
    return noise.reshape(batch, -1, config.harmonics + 1)


def _phase_unit(config: VocoderConfig) -> tuple[int, int]:
    """(bits, modulus) of integer phases: the unit is 2^-bits Hz, and a cycle is `modulus` units."""
    bits = int(math.log2(2**31 / ((config.harmonics + 1) * config.frame_rate)))
    return bits, config.frame_rate << bits  # harmonic * phase stays below 2^31


def fundamental_phase(
    f0_BT: jax.Array,
    config: VocoderConfig,
    anchor_B: jax.Array | None = None,
    phase_B: jax.Array | None = None,
) -> jax.Array:
    """Phase of the fundamental before each frame, start_BT, int32 in the units of `_phase_unit`.

    f0 is constant inside a frame, so that a frame advances the fundamental by f0 / frame_rate
    cycles, of which only f0 modulo frame_rate counts. That remainder is exact in float32 and is
    summed in integers of 2^-bits Hz: rounding does not accumulate, however long the clip, and
    neither the order of the additions nor the length of the batch changes the result.

    Args:
      f0_BT: Hz.
      config: config of the vocoder.
      anchor_B, phase_B: a frame of each item and the phase before it; None: 0 before the first
        frame.
    """
    rate = config.frame_rate
    bits, modulus = _phase_unit(config)
    f0 = f0_BT.astype(jnp.float32)
    remainder = f0 - jnp.floor(f0 / rate) * rate
    advance = jnp.round(remainder * 2.0**bits).astype(jnp.int32) % modulus

    def add(a: jax.Array, b: jax.Array) -> jax.Array:
        total = a + b
        return jnp.where(total >= modulus, total - modulus, total)

    start = (jax.lax.associative_scan(add, advance, axis=1) - advance) % modulus
    if anchor_B is None:
        return start
    anchor_phase_B1 = jnp.take_along_axis(start, anchor_B[:, None], axis=1)
    return (start - anchor_phase_B1 + phase_B[:, None]) % modulus


def frame_phase(
    f0_BT: jax.Array, config: VocoderConfig, fundamental_BT: jax.Array | None = None
) -> jax.Array:
    """Phase of each harmonic before each frame, start_BTH in cycles, [0, 1).

    `fundamental_BT` is the result of `fundamental_phase`; None: starting from 0.
    """
    if fundamental_BT is None:
        fundamental_BT = fundamental_phase(f0_BT, config)
    _, modulus = _phase_unit(config)
    harmonic = jnp.arange(1, config.harmonics + 2, dtype=jnp.int32)
    start = (fundamental_BT[:, :, None] * harmonic[None, None]) % modulus
    return start.astype(jnp.float32) / modulus


def _sine(x: jax.Array) -> jax.Array:
    """sin(x) for |x| <= pi / 2 within 2e-7: an odd polynomial."""
    square = x * x
    sine = -2.3889859e-8
    for coefficient in (2.7525562e-6, -1.9840874e-4, 8.3333310e-3, -1 / 6, 1.0):
        sine = sine * square + np.float32(coefficient)
    return x * sine


def sine_of_cycles(cycles: jax.Array) -> jax.Array:
    """sin(2 pi cycles), float32; like `sine_squared`, several times faster than XLA's on CPU."""
    turn = cycles - jnp.round(cycles)
    folded = jnp.where(jnp.abs(turn) > 0.25, jnp.sign(turn) * 0.5 - turn, turn)
    return _sine(np.float32(2 * np.pi) * folded)


def sine_squared(x: jax.Array) -> jax.Array:
    """sin(x)^2 within 1e-6 for |x| up to 1e4, float32; several times faster than XLA's sine on CPU.

    The period is pi: x is reduced to +-pi/2 with pi in three parts, so that no digits are lost. For
    larger x, where float32 does not resolve a period, the clip keeps the result in [0, 1].
    """
    count = jnp.round(x * np.float32(1 / np.pi))
    x = x - count * np.float32(3.140625)
    x = x - count * np.float32(9.67502593994e-4)
    x = jnp.clip(x - count * np.float32(1.50995799e-7), -np.pi / 2, np.pi / 2)
    return jnp.square(_sine(x))


class HarmonicMixer(nn.Module):
    """tanh of a weighted sum over harmonics, (B, S, H) to (B, S, 1), float32.

    A multiply and a sum instead of a matrix product: they fuse with the sines, which are then never
    stored.
    """

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, sines_BSH: jax.Array) -> jax.Array:
        count = sines_BSH.shape[-1]
        kernel = self.param("kernel", kernel_init(count), (count, 1), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,), self.param_dtype)
        kernel, bias = kernel.astype(jnp.float32), bias.astype(jnp.float32)
        mixed = jnp.sum(sines_BSH * kernel[None, None, :, 0], axis=-1, keepdims=True)
        return jnp.tanh(mixed + bias[None, None])
