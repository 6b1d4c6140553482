"""Velocity estimator of the flow-matching decoder: a causal 1-D U-Net with chunked attention (3.2).

Matcha-TTS's estimator without resampling: the "down" and "up" blocks keep the length. Attention
is block-causal: a frame sees all frames before the end of its own chunk of `chunk` frames, so a
chunk can be decoded as soon as it is complete.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers


@dataclasses.dataclass(frozen=True)
class FlowUNetConfig:
    """Sizes of the U-Net.

    Attributes:
      mel_bins: channels of the mel, of mu and of the velocity.
      channels: of all blocks.
      blocks: transformer layers after each ResNet block.
      mid_blocks: ResNet blocks between the first and the last.
      heads, head_dim: of the attention.
      chunk: frames of an attention chunk (100 = 2 s).
    """

    mel_bins: int
    channels: int
    blocks: int
    mid_blocks: int
    heads: int
    head_dim: int
    chunk: int = 100

    @property
    def time_width(self) -> int:
        """Width of the embedded flow time."""
        return 4 * self.channels


def time_embedding(t_B: jax.Array, width: int, scale: float = 1000.0) -> jax.Array:
    """Sinusoids (B, width) of scale * t, float32: sines, then cosines."""
    half = width // 2
    frequency = jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angle = scale * t_B.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def chunk_mask(lengths_B: jax.Array, size: int, chunk: int) -> jax.Array:
    """(B, 1, T, T) booleans: the key is valid and lies before the end of the query's chunk."""
    frame = jnp.arange(size)
    causal = frame[None, :] < (frame[:, None] // chunk + 1) * chunk
    return causal[None, None] & layers.length_mask(lengths_B, size)[:, None, None, :]


class CausalBlock(nn.Module):
    """Causal conv k3, LayerNorm over channels, Mish."""

    channels: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array, lengths_B: jax.Array) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.zero_past(x_BTC, lengths_B)
        x = layers.conv("conv", self.channels, 3, padding=(2, 0), **dtypes)(x)
        x = layers.mish(layers.layer_norm("norm", **dtypes)(x))
        return layers.zero_past(x, lengths_B)


class ResNetBlock(nn.Module):
    """Two causal blocks with the flow time added between them, plus a 1x1 shortcut."""

    channels: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array, time_BD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.zero_past(x_BTC, lengths_B)
        h = CausalBlock(self.channels, **dtypes, name="block1")(x, lengths_B)
        time = nn.Dense(self.channels, name="time", **dtypes)(layers.mish(time_BD))
        h = CausalBlock(self.channels, **dtypes, name="block2")(h + time[:, None, :], lengths_B)
        return h + layers.conv("shortcut", self.channels, 1, **dtypes)(x)


class UNetTransformerLayer(nn.Module):
    """Pre-norm layer; q, k, v without bias into heads * head_dim, GELU feed-forward of 4x width."""

    heads: int
    head_dim: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array, mask_B1TT: jax.Array) -> tuple[jax.Array, None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, frames, channels = x_BTC.shape
        inner = self.heads * self.head_dim

        def project(name: str, x: jax.Array) -> jax.Array:
            y = nn.Dense(inner, use_bias=False, name=name, **dtypes)(x)
            return y.reshape(batch, frames, self.heads, self.head_dim)

        y = layers.layer_norm("attention_norm", **dtypes)(x_BTC)
        y = layers.attention(project("query", y), project("key", y), project("value", y), mask_B1TT)
        x = x_BTC + nn.Dense(channels, name="out", **dtypes)(y.reshape(batch, frames, inner))
        y = layers.layer_norm("ffn_norm", **dtypes)(x)
        y = layers.gelu(nn.Dense(4 * channels, name="ffn_in", **dtypes)(y))
        return x + nn.Dense(channels, name="ffn_out", **dtypes)(y), None


class UNetStage(nn.Module):
    """A ResNet block and its transformer layers."""

    config: FlowUNetConfig
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32
    scan: bool = True

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, time_BD: jax.Array, lengths_B: jax.Array, mask_B1TT: jax.Array
    ) -> tuple[jax.Array, None]:
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = ResNetBlock(c.channels, **dtypes, name="resnet")(x_BTC, time_BD, lengths_B)
        stack = layers.stacked(UNetTransformerLayer, c.blocks, in_axes=nn.broadcast, scan=self.scan)
        return stack(c.heads, c.head_dim, **dtypes, name="layers")(x, mask_B1TT)


class FlowUNet(nn.Module):
    """Velocity v(x, t | mu)."""

    config: FlowUNetConfig
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32
    remat: str = "none"
    scan: bool = True

    @nn.compact
    def __call__(
        self, x_BTM: jax.Array, mu_BTM: jax.Array, t_B: jax.Array, lengths_B: jax.Array
    ) -> jax.Array:
        """Estimates the velocity.

        Args:
          x_BTM: state of the flow, mel frames at 50 Hz.
          mu_BTM: condition, the prenet's output; zeros for the unconditional estimate.
          t_B: flow time in [0, 1].
          lengths_B: valid frames.

        Returns:
          velocity_BTM, 0 past the lengths.
        """
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        time = time_embedding(t_B, 2 * c.mel_bins).astype(self.dtype)
        time = nn.Dense(c.time_width, name="time_in", **dtypes)(time)
        time = nn.Dense(c.time_width, name="time_out", **dtypes)(jax.nn.silu(time))
        x = jnp.concatenate([x_BTM.astype(self.dtype), mu_BTM.astype(self.dtype)], axis=-1)
        x = layers.zero_past(x, lengths_B)
        mask = chunk_mask(lengths_B, x.shape[1], c.chunk)

        def stage(name: str) -> nn.Module:
            cls = UNetStage
            if self.remat != "none":
                cls = nn.remat(cls, policy=layers.REMAT_POLICIES[self.remat])
            return cls(c, **dtypes, scan=self.scan, name=name)

        def causal_conv(name: str, x: jax.Array) -> jax.Array:
            x = layers.zero_past(x, lengths_B)
            return layers.conv(name, c.channels, 3, padding=(2, 0), **dtypes)(x)

        x = skip = stage("down")(x, time, lengths_B, mask)[0]
        x = causal_conv("down_conv", x)
        middle = layers.stacked(
            UNetStage, c.mid_blocks, in_axes=nn.broadcast, remat=self.remat, scan=self.scan
        )
        x, _ = middle(c, **dtypes, scan=self.scan, name="middle")(x, time, lengths_B, mask)
        x = stage("up")(jnp.concatenate([x, skip], axis=-1), time, lengths_B, mask)[0]
        x = causal_conv("up_conv", x)
        x = CausalBlock(c.channels, **dtypes, name="final")(x, lengths_B)
        velocity = layers.conv("out", c.mel_bins, 1, **dtypes)(x)
        return layers.zero_past(velocity, lengths_B)
