"""Audio decoder: quantised features at 12.5 Hz to 50 Hz features and mels (paper 3.1)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers


@dataclasses.dataclass(frozen=True)
class AudioDecoderConfig:
    """Sizes of the decoder and its refine net.

    Attributes:
      width, layers, heads, ffn_width: of the causal transformer.
      mel_bins: of both output mels.
      refine_channels: output channels of the refine net's convolutions before the last.
      kernel_size: of both transposed convolutions.
      upsample_rates: their strides: 12.5 -> 50 Hz, 50 -> 100 Hz.
      max_positions: rows of the position table (3000).
      coarse_hop, coarse_sample_rate: grid of the coarse mel (160 at 16 kHz: 100 Hz).
      mel_hop, mel_sample_rate: grid of the refined mel (256 at 16 kHz: 62.5 Hz).
    """

    width: int
    layers: int
    heads: int
    ffn_width: int
    mel_bins: int
    refine_channels: tuple[int, ...]
    kernel_size: int = 3
    upsample_rates: tuple[int, int] = (4, 2)
    max_positions: int = 3000
    coarse_hop: int = 160
    coarse_sample_rate: int = 16000
    mel_hop: int = 256
    mel_sample_rate: int = 16000

    def mel_length(self, coarse_length):
        """Frames of the refined mel for coarse frames, truncated; ints or integer arrays."""
        numerator = self.coarse_hop * self.mel_sample_rate
        return coarse_length * numerator // (self.coarse_sample_rate * self.mel_hop)


class AudioDecoderOutput(NamedTuple):
    """What the decoder gives.

    Attributes:
      hidden_BTD, hidden_lengths_B: features before the second upsampling, 4 N - 1 frames of
        20 ms: the flow decoder's input.
      coarse_mel_BTM: mel before refinement, resized to the refined mel's grid.
      refined_mel_BTM, mel_lengths_B: refined log-mel at 62.5 Hz.
    """

    hidden_BTD: jax.Array
    hidden_lengths_B: jax.Array
    coarse_mel_BTM: jax.Array
    refined_mel_BTM: jax.Array
    mel_lengths_B: jax.Array


class CausalUpsample(nn.Module):
    """Transposed convolution, normalisation over the item, cut to a causal length.

    The statistics run over the full output of the convolution, before the cut: an item's frames
    all depend on each other through them, in the reference too.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    def out_length(self, length):
        """Valid frames after upsampling; 0 stays 0."""
        cut = max(0, self.kernel_size - self.stride)
        return jnp.where(length > 0, (length - 1) * self.stride + self.kernel_size - cut, 0)

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, lengths_B: jax.Array, extent_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.zero_past(x_BTC, lengths_B).astype(self.dtype)
        x = layers.ConvTranspose(
            self.features, self.kernel_size, self.stride, **dtypes, name="conv"
        )(x)
        full_extent_B = (extent_B - 1) * self.stride + self.kernel_size
        x = layers.ItemNorm(**dtypes, name="norm")(x, full_extent_B)
        x = x[:, : x.shape[1] - max(0, self.kernel_size - self.stride)]
        out_lengths_B = self.out_length(lengths_B)
        return layers.zero_past(x, out_lengths_B), out_lengths_B


class RefineNet(nn.Module):
    """[conv k5, norm, Mish] x 4, conv k1, plus the input: coarse to refined mel."""

    mel_bins: int
    channels: tuple[int, ...]
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, mel_BTM: jax.Array, extent_B: jax.Array) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = mel_BTM.astype(self.dtype)
        for i, channels in enumerate(self.channels):
            # The reference's buffer ends at the extent: convolutions see zeros past it.
            x = layers.zero_past(x, extent_B)
            x = layers.conv(f"conv_{i}", channels, 5, padding=(2, 2), **dtypes)(x)
            x = layers.mish(layers.ItemNorm(**dtypes, name=f"norm_{i}")(x, extent_B))
        return mel_BTM + layers.conv("out", self.mel_bins, 1, **dtypes)(x)


class AudioDecoder(nn.Module):
    """Upsample, causal transformer, upsample, refine."""

    config: AudioDecoderConfig
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32
    remat: str = "none"
    scan: bool = True

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, lengths_B: jax.Array, extent_B: jax.Array | None = None
    ) -> AudioDecoderOutput:
        """Decodes a padded batch.

        Args:
          x_BND: projected quantised features, 12.5 Hz.
          lengths_B: valid frames.
          extent_B: see `layers`; frames over which the norms and the resizing run.

        Raises:
          ValueError: if 4 N exceeds the position table.
        """
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        extent_B = lengths_B if extent_B is None else extent_B
        positions = layers.position_table(self, c.max_positions, c.width)
        rates, kernel = c.upsample_rates, c.kernel_size
        up1 = CausalUpsample(c.width, kernel, rates[0], **dtypes, name="upsample1")
        up2 = CausalUpsample(c.mel_bins, kernel, rates[1], **dtypes, name="upsample2")
        x, hidden_lengths_B = up1(x_BND, lengths_B, extent_B)
        x = layers.zero_past(layers.add_positions(x, positions), hidden_lengths_B)
        x = layers.transformer(
            x,
            hidden_lengths_B,
            layers=c.layers,
            heads=c.heads,
            ffn_width=c.ffn_width,
            causal=True,
            remat=self.remat,
            scan=self.scan,
            **dtypes,
        )
        hidden = layers.zero_past(layers.layer_norm("norm", **dtypes)(x), hidden_lengths_B)

        hidden_extent_B = up1.out_length(extent_B)
        coarse, coarse_lengths_B = up2(hidden, hidden_lengths_B, hidden_extent_B)
        coarse_extent_B = up2.out_length(hidden_extent_B)
        mel_extent_B = c.mel_length(coarse_extent_B)
        mel_lengths_B = c.mel_length(coarse_lengths_B)
        coarse = layers.nearest_resize(
            coarse, coarse_extent_B, mel_extent_B, c.mel_length(coarse.shape[1])
        )
        refined = RefineNet(c.mel_bins, c.refine_channels, **dtypes, name="refine_net")(
            coarse, mel_extent_B
        )
        return AudioDecoderOutput(
            hidden_BTD=hidden,
            hidden_lengths_B=hidden_lengths_B,
            coarse_mel_BTM=layers.zero_past(coarse, mel_lengths_B),
            refined_mel_BTM=layers.zero_past(refined, mel_lengths_B),
            mel_lengths_B=mel_lengths_B,
        )
