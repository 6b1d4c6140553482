"""Velocity estimator of the flow-matching decoder: a causal 1-D U-Net with chunked attention (3.2).

Matcha-TTS's estimator without resampling: the "down" and "up" blocks keep the length. Attention
is block-causal: a frame sees all frames before the end of its chunk of `chunk` frames, so a chunk
can be decoded as soon as it is complete.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers
from ba_jax.models.streaming import Blocks, Pieces, read_cache, write_cache
from ba_jax.sharding import constrain_rows


@dataclasses.dataclass(frozen=True)
class FlowUNetConfig:
    """Sizes of the U-Net.

    Attributes:
      mel_bins: channels of the mel, of mu and of the velocity.
      channels: channels of all blocks.
      blocks: transformer layers after each ResNet block.
      mid_blocks: ResNet blocks between the first and the last.
      heads, head_dim: number of attention heads, and features of a head.
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
    x = layers.zero_past(x_BTC, lengths_B)
    if pieces is None:
        return layers.conv(name, channels, _BEFORE + 1, padding=(_BEFORE, 0), **module.dtypes)(x)
    shape = (x.shape[0], _BEFORE, x.shape[2])
    x = jnp.concatenate([read_cache(module, f"{name}_tail", shape, x.dtype, pieces), x], axis=1)
    write_cache(module, f"{name}_tail", x[:, -_BEFORE:])
    return layers.conv(name, channels, _BEFORE + 1, **module.dtypes)(x)


class CausalBlock(layers.Layer):
    """Causal conv k3, LayerNorm over channels, Mish."""

    channels: int

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, lengths_B: jax.Array, pieces: Pieces | None = None
    ) -> jax.Array:
        x = causal_conv(self, "conv", self.channels, x_BTC, lengths_B, pieces)
        x = layers.mish(layers.layer_norm("norm", **self.dtypes)(constrain_rows(x)))
        return layers.zero_past(x, lengths_B)


class ResNetBlock(layers.Layer):
    """Two causal blocks with the flow time added between them, plus a 1x1 shortcut."""

    channels: int

    @nn.compact
    def __call__(
        self,
        x_BTC: jax.Array,
        time_BD: jax.Array,
        lengths_B: jax.Array,
        pieces: Pieces | None = None,
    ) -> jax.Array:
        x = layers.zero_past(x_BTC, lengths_B)
        h = CausalBlock(self.channels, **self.dtypes, name="block1")(x, lengths_B, pieces)
        time = layers.dense(self.channels, name="time", **self.dtypes)(layers.mish(time_BD))
        h = h + time[:, None, :]
        h = CausalBlock(self.channels, **self.dtypes, name="block2")(h, lengths_B, pieces)
        return h + layers.conv("shortcut", self.channels, 1, **self.dtypes)(x)


class UNetStage(layers.Layer):
    """A ResNet block and its transformer layers."""

    config: FlowUNetConfig
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
        resnet = ResNetBlock(c.channels, **self.dtypes, name="resnet")
        x = resnet(x_BTC, time_BD, lengths_B, pieces)
        stack = layers.transformer_stack(
            c.blocks,
            heads=c.heads,
            ffn_width=4 * c.channels,
            head_dim=c.head_dim,
            qv_bias=False,
            scan=self.scan,
            name="layers",
            **self.dtypes,
        )
        return stack(x, mask_B1TT, pieces)


class FlowUNet(layers.Layer):
    """Velocity v(x, t | mu)."""

    config: FlowUNetConfig
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
        time = time_embedding(t_B, 2 * c.mel_bins).astype(self.dtype)
        time = layers.dense(c.time_width, name="time_in", **self.dtypes)(time)
        time = layers.dense(c.time_width, name="time_out", **self.dtypes)(jax.nn.silu(time))
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
            return cls(c, **self.dtypes, scan=self.scan, name=name)

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
        x, _ = middle(c, **self.dtypes, scan=self.scan, name="middle")(
            x, time, lengths_B, mask, pieces
        )
        x = jnp.concatenate([x, skip], axis=-1)
        x, _ = stage("up")(x, time, lengths_B, mask, pieces)
        x = conv("up_conv", x)
        x = CausalBlock(c.channels, **self.dtypes, name="final")(x, lengths_B, pieces)
        velocity = layers.conv("out", c.mel_bins, 1, **self.dtypes)(x)
        return layers.zero_past(velocity, lengths_B)


_BEFORE = 2
"""Frames before its own that an output of a causal convolution depends on."""
