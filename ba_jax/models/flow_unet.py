"""Velocity estimator of the flow-matching decoder: a causal 1-D U-Net with chunked attention (3.2).

Matcha-TTS's estimator without resampling: the "down" and "up" blocks keep the length. Attention
is block-causal: a frame sees all frames before the end of its own chunk of `chunk` frames, so a
chunk can be decoded as soon as it is complete.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers
from ba_jax.models.blocks import Blocks, KeyValue, no_key_values, piece_mask
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


class StagePast(NamedTuple):
    """What a stage remembers: the last inputs of both convolutions, (layers, ...) keys, values."""

    block1_B2C: jax.Array
    block2_B2C: jax.Array
    layers: KeyValue


class UNetPast(NamedTuple):
    """What the U-Net remembers of a segment at one flow time; `middle` is stacked over stages."""

    down: StagePast
    down_conv_B2C: jax.Array
    middle: StagePast
    up: StagePast
    up_conv_B2C: jax.Array
    final_B2C: jax.Array


def empty_past(config: FlowUNetConfig, batch: int, capacity: int, dtype: layers.Dtype) -> UNetPast:
    """Of segments that have not begun, for `capacity` frames of 20 ms."""
    c = config

    def tail(*shape: int) -> jax.Array:
        return jnp.zeros((*shape[:-1], batch, _TAIL, shape[-1]), dtype)

    def stage(channels: int, *shape: int) -> StagePast:
        return StagePast(
            tail(*shape, channels),
            tail(*shape, c.channels),
            no_key_values((*shape, c.blocks), batch, capacity, c.heads, c.head_dim, dtype),
        )

    return UNetPast(
        stage(2 * c.mel_bins),
        tail(c.channels),
        stage(c.channels, c.mid_blocks),
        stage(2 * c.channels),
        tail(c.channels),
        tail(c.channels),
    )


def causal_conv(
    name: str,
    channels: int,
    x_BTC: jax.Array,
    lengths_B: jax.Array,
    past_B2C: jax.Array | None,
    **dtypes: layers.Dtype,
) -> tuple[jax.Array, jax.Array | None]:
    """Conv k3 over the past and the valid frames; with a past, also the last two inputs.

    Called inside a compact method.
    """
    x = layers.zero_past(x_BTC, lengths_B)
    if past_B2C is None:
        return layers.conv(name, channels, _TAIL + 1, padding=(_TAIL, 0), **dtypes)(x), None
    x = jnp.concatenate([past_B2C.astype(x.dtype), x], axis=1)
    return layers.conv(name, channels, _TAIL + 1, **dtypes)(x), x[:, -_TAIL:]


class CausalBlock(nn.Module):
    """Causal conv k3, LayerNorm over channels, Mish."""

    channels: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, lengths_B: jax.Array, past_B2C: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x, tail = causal_conv("conv", self.channels, x_BTC, lengths_B, past_B2C, **dtypes)
        x = layers.mish(layers.layer_norm("norm", **dtypes)(constrain_rows(x)))
        return layers.zero_past(x, lengths_B), tail


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
        past: tuple[jax.Array | None, jax.Array | None] = (None, None),
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.zero_past(x_BTC, lengths_B)
        h, tail1 = CausalBlock(self.channels, **dtypes, name="block1")(x, lengths_B, past[0])
        time = nn.Dense(self.channels, name="time", **dtypes)(layers.mish(time_BD))
        h = h + time[:, None, :]
        h, tail2 = CausalBlock(self.channels, **dtypes, name="block2")(h, lengths_B, past[1])
        return h + layers.conv("shortcut", self.channels, 1, **dtypes)(x), (tail1, tail2)


class UNetTransformerLayer(nn.Module):
    """Pre-norm layer; q, k, v without bias into heads * head_dim, GELU feed-forward of 4x width."""

    heads: int
    head_dim: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, mask_B1TP: jax.Array, past: KeyValue | None = None
    ) -> tuple[jax.Array, KeyValue | None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, frames, channels = x_BTC.shape
        inner = self.heads * self.head_dim

        def project(name: str, x: jax.Array) -> jax.Array:
            y = nn.Dense(inner, use_bias=False, name=name, **dtypes)(x)
            return y.reshape(batch, frames, self.heads, self.head_dim)

        y = layers.layer_norm("attention_norm", **dtypes)(x_BTC)
        q, k, v = project("query", y), project("key", y), project("value", y)
        y, own = layers.attend(q, k, v, mask_B1TP, past)
        y = nn.Dense(channels, name="out", **dtypes)(y.reshape(batch, frames, inner))
        x = constrain_rows(x_BTC + y)
        y = layers.layer_norm("ffn_norm", **dtypes)(x)
        y = layers.gelu(nn.Dense(4 * channels, name="ffn_in", **dtypes)(y))
        y = nn.Dense(channels, name="ffn_out", **dtypes)(constrain(y, "batch", None, "mlp"))
        return constrain_rows(x + y), own


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
        mask_B1TP: jax.Array,
        past: StagePast | None = None,
    ) -> tuple[jax.Array, StagePast | None]:
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tails = (None, None) if past is None else past[:2]
        resnet = ResNetBlock(c.channels, **dtypes, name="resnet")
        x, tails = resnet(x_BTC, time_BD, lengths_B, tails)
        in_axes = (nn.broadcast, 0)
        stack = layers.stacked(UNetTransformerLayer, c.blocks, in_axes=in_axes, scan=self.scan)
        stack = stack(c.heads, c.head_dim, **dtypes, name="layers")
        x, own = stack(x, mask_B1TP, None if past is None else past.layers)
        return x, None if past is None else StagePast(*tails, own)


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
        start_B: jax.Array | None = None,
        past: UNetPast | None = None,
    ) -> jax.Array | tuple[jax.Array, UNetPast]:
        """Estimates the velocity.

        Args:
          x_BTM: state of the flow, mel frames at 50 Hz.
          mu_BTM: condition, the prenet's output; zeros for the unconditional estimate.
          t_B: flow time in [0, 1].
          lengths_B: valid frames.
          blocks: what frames attend to; None: all before the end of their `chunk`.
          start_B, past: of pieces of segments, each a block of them: frames before the piece and
            what is remembered of them, see `blocks.advance`.

        Returns:
          velocity_BTM, 0 past the lengths; given a past, also what to remember.
        """
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        time = time_embedding(t_B, 2 * c.mel_bins).astype(self.dtype)
        time = nn.Dense(c.time_width, name="time_in", **dtypes)(time)
        time = nn.Dense(c.time_width, name="time_out", **dtypes)(jax.nn.silu(time))
        x = jnp.concatenate([x_BTM.astype(self.dtype), mu_BTM.astype(self.dtype)], axis=-1)
        x = layers.zero_past(x, lengths_B)
        frames = x.shape[1]
        before = UNetPast(*(None,) * len(UNetPast._fields)) if past is None else past
        if past is not None:
            capacity = past.down.layers.key.shape[-3]
            mask = piece_mask(start_B, capacity, lengths_B, frames, causal=False)
        elif blocks is not None:
            mask = blocks.mask(lengths_B, frames, causal=False)
        else:
            mask = chunk_mask(lengths_B, frames, c.chunk)

        def stage(name: str) -> nn.Module:
            cls = UNetStage
            if self.remat != "none":
                cls = nn.remat(cls, policy=layers.REMAT_POLICIES[self.remat])
            return cls(c, **dtypes, scan=self.scan, name=name)

        def conv(name: str, x: jax.Array, past_B2C: jax.Array | None):
            return causal_conv(name, c.channels, x, lengths_B, past_B2C, **dtypes)

        skip, down = stage("down")(x, time, lengths_B, mask, before.down)
        x, down_conv = conv("down_conv", skip, before.down_conv_B2C)
        middle = layers.stacked(
            UNetStage,
            c.mid_blocks,
            in_axes=(nn.broadcast,) * 3 + (0,),
            remat=self.remat,
            scan=self.scan,
        )
        middle = middle(c, **dtypes, scan=self.scan, name="middle")
        x, between = middle(x, time, lengths_B, mask, before.middle)
        x = jnp.concatenate([x, skip], axis=-1)
        x, up = stage("up")(x, time, lengths_B, mask, before.up)
        x, up_conv = conv("up_conv", x, before.up_conv_B2C)
        final = CausalBlock(c.channels, **dtypes, name="final")
        x, last = final(x, lengths_B, before.final_B2C)
        velocity = layers.conv("out", c.mel_bins, 1, **dtypes)(x)
        velocity = layers.zero_past(velocity, lengths_B)
        if past is None:
            return velocity
        return velocity, UNetPast(down, down_conv, between, up, up_conv, last)


_TAIL = 2
"""Frames that a causal convolution remembers: its kernel is one longer."""
