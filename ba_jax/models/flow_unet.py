"""Velocity estimator of the flow-matching decoder: a causal 1-D U-Net with chunked attention (3.2).

Matcha-TTS's estimator without resampling: the "down" and "up" blocks keep the length. Attention
is block-causal: a frame sees all frames before the end of its chunk of `chunk` frames, so a chunk
can be decoded as soon as it is complete.
"""

from __future__ import annotations

import dataclasses

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers
from ba_jax.models.streaming import Blocks, Pieces, read_cache, write_cache
from ba_jax.sharding import constrain, constrain_rows


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


def causal_conv(
    module: nn.Module,
    name: str,
    channels: int,
    x_BTC: jax.Array,
    lengths_B: jax.Array,
    pieces: Pieces | None,
) -> jax.Array:
    """Conv k3 over the valid frames, each frame with the two before it.

    Called inside a compact method of `module`, which holds the last two frames in its cache.
    """
    dtypes = {"dtype": module.dtype, "param_dtype": module.param_dtype}
    x = layers.zero_past(x_BTC, lengths_B)
    if pieces is None:
        return layers.conv(name, channels, _BEFORE + 1, padding=(_BEFORE, 0), **dtypes)(x)
    shape = (x.shape[0], _BEFORE, x.shape[2])
    x = jnp.concatenate([read_cache(module, f"{name}_tail", shape, x.dtype, pieces), x], axis=1)
    write_cache(module, f"{name}_tail", x[:, -_BEFORE:])
    return layers.conv(name, channels, _BEFORE + 1, **dtypes)(x)


class CausalBlock(nn.Module):
    """Causal conv k3, LayerNorm over channels, Mish."""

    channels: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, lengths_B: jax.Array, pieces: Pieces | None = None
    ) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = causal_conv(self, "conv", self.channels, x_BTC, lengths_B, pieces)
        x = layers.mish(layers.layer_norm("norm", **dtypes)(constrain_rows(x)))
        return layers.zero_past(x, lengths_B)


class ResNetBlock(nn.Module):
    """Two causal blocks with the flow time added between them, plus a 1x1 shortcut."""

    channels: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTC: jax.Array,
        time_BD: jax.Array,
        lengths_B: jax.Array,
        pieces: Pieces | None = None,
    ) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.zero_past(x_BTC, lengths_B)
        h = CausalBlock(self.channels, **dtypes, name="block1")(x, lengths_B, pieces)
        time = nn.Dense(self.channels, name="time", **dtypes)(layers.mish(time_BD))
        h = h + time[:, None, :]
        h = CausalBlock(self.channels, **dtypes, name="block2")(h, lengths_B, pieces)
        return h + layers.conv("shortcut", self.channels, 1, **dtypes)(x)


class UNetTransformerLayer(nn.Module):
    """Pre-norm layer; q, k, v without bias into heads * head_dim, GELU feed-forward of 4x width."""

    heads: int
    head_dim: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, mask_B1TT: jax.Array, pieces: Pieces | None = None
    ) -> tuple[jax.Array, None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels, inner = x_BTC.shape[-1], self.heads * self.head_dim

        def project(name: str, x: jax.Array) -> jax.Array:
            y = nn.Dense(inner, use_bias=False, name=name, **dtypes)(x)
            return einops.rearrange(y, "b t (h d) -> b t h d", h=self.heads)

        y = layers.layer_norm("attention_norm", **dtypes)(x_BTC)
        q, k, v = project("query", y), project("key", y), project("value", y)
        y = layers.attend(self, q, k, v, mask_B1TT, pieces)
        y = einops.rearrange(y, "b t h d -> b t (h d)")
        y = nn.Dense(channels, name="out", **dtypes)(y)
        x = constrain_rows(x_BTC + y)
        y = layers.layer_norm("ffn_norm", **dtypes)(x)
        y = layers.gelu(nn.Dense(4 * channels, name="ffn_in", **dtypes)(y))
        y = nn.Dense(channels, name="ffn_out", **dtypes)(constrain(y, "batch", None, "mlp"))
        return constrain_rows(x + y), None


class UNetStage(nn.Module):
    """A ResNet block and its transformer layers."""

    config: FlowUNetConfig
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32
    scan: bool = True

    @nn.compact
    def __call__(
        self,
        x_BTC: jax.Array,
        time_BD: jax.Array,
        lengths_B: jax.Array,
        mask_B1TT: jax.Array,
        pieces: Pieces | None = None,
    ) -> tuple[jax.Array, None]:
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        resnet = ResNetBlock(c.channels, **dtypes, name="resnet")
        x = resnet(x_BTC, time_BD, lengths_B, pieces)
        in_axes = (nn.broadcast, nn.broadcast)
        stack = layers.stack_layers(UNetTransformerLayer, c.blocks, in_axes=in_axes, scan=self.scan)
        return stack(c.heads, c.head_dim, **dtypes, name="layers")(x, mask_B1TT, pieces)


class FlowUNet(nn.Module):
    """Velocity v(x, t | mu)."""

    config: FlowUNetConfig
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32
    remat: str = "none"
    scan: bool = True

    @nn.compact
    def __call__(
        self,
        x_BTM: jax.Array,
        mu_BTM: jax.Array,
        t_B: jax.Array,
        lengths_B: jax.Array,
        blocks: Blocks | None = None,
        pieces: Pieces | None = None,
    ) -> jax.Array:
        """Estimate the velocity.

        Args:
          x_BTM: state of the flow, mel frames at 50 Hz.
          mu_BTM: condition, from the prenet; zeros for the unconditional estimate.
          t_B: flow time in [0, 1].
          lengths_B: valid frames.
          blocks: frames that a frame attends to; None: all before the end of its `chunk`.
          pieces: the frames are pieces of segments, each a block, see `streaming`.

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
        frames = x.shape[1]
        if blocks is None and pieces is None:
            mask = chunk_mask(lengths_B, frames, c.chunk)
        else:
            mask = layers.attention_mask(
                lengths_B, frames, causal=False, blocks=blocks, pieces=pieces
            )

        def stage(name: str) -> nn.Module:
            cls = UNetStage
            if self.remat != "none":
                cls = nn.remat(cls, policy=layers.REMAT_POLICIES[self.remat])
            return cls(c, **dtypes, scan=self.scan, name=name)

        def conv(name: str, x: jax.Array) -> jax.Array:
            return causal_conv(self, name, c.channels, x, lengths_B, pieces)

        skip, _ = stage("down")(x, time, lengths_B, mask, pieces)
        x = conv("down_conv", skip)
        middle = layers.stack_layers(
            UNetStage,
            c.mid_blocks,
            in_axes=(nn.broadcast,) * 4,
            remat=self.remat,
            scan=self.scan,
        )
        x, _ = middle(c, **dtypes, scan=self.scan, name="middle")(x, time, lengths_B, mask, pieces)
        x = jnp.concatenate([x, skip], axis=-1)
        x, _ = stage("up")(x, time, lengths_B, mask, pieces)
        x = conv("up_conv", x)
        x = CausalBlock(c.channels, **dtypes, name="final")(x, lengths_B, pieces)
        velocity = layers.conv("out", c.mel_bins, 1, **dtypes)(x)
        return layers.zero_past(velocity, lengths_B)


_BEFORE = 2
"""Frames before its own that an output of a causal convolution depends on."""
