"""Audio decoder: quantised features at 12.5 Hz to 50 Hz features and mels (paper 3.1)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models import layers
from ba_jax.models.blocks import CODE_FRAMES, Blocks, KeyValue, Place, no_key_values, piece_mask


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


REFINE_KERNEL = 5


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


class DecoderPast(NamedTuple):
    """What the decoder remembers of a segment: the norm's sums, (layers, ...) keys and values."""

    sums: layers.RunningSums
    layers: KeyValue


def empty_past(
    config: AudioDecoderConfig, batch: int, capacity: int, dtype: layers.Dtype
) -> DecoderPast:
    """Of segments that have not begun, for `capacity` frames of 20 ms."""
    head_dim = config.width // config.heads
    zeros_B = jnp.zeros((batch,), jnp.float32)
    return DecoderPast(
        layers.RunningSums(zeros_B, zeros_B, zeros_B),
        no_key_values((config.layers,), batch, capacity, config.heads, head_dim, dtype),
    )


class CausalUpsample(nn.Module):
    """Transposed convolution, normalisation over the item, cut to a causal length.

    The statistics run over the full output of the convolution, before the cut: an item's frames
    all depend on each other through them, in the reference too. With `lead` they are those so far:
    what comes of input frame i is normalised by what comes of the first max(i + 1, lead) frames
    (at the last frame, where the kernel is not longer than the stride, the whole item's).
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
        self,
        x_BTC: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array,
        lead: int | None = None,
        start_B: jax.Array | None = None,
        past: layers.RunningSums | None = None,
        prior: tuple[float, float, float] | None = None,
    ) -> tuple[jax.Array, layers.RunningSums | None]:
        """Upsamples a batch.

        Args:
          x_BTC, lengths_B, extent_B: frames, the valid ones, and those of the statistics.
          lead: frames that the first statistics are taken over; None: all within the extent.
          start_B: frames before these; None: these are the first.
          past: sums over the frames before.
          prior: what else counts, see `layers.ItemNorm`.

        Returns:
          The frames, (T - 1) * stride + kernel_size less the cut, or T * stride with `lead`; and
          the sums, None without `lead`. Frames past `out_length` hold anything.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        frames, stride = x_BTC.shape[1], self.stride
        conv = layers.ConvTranspose(self.features, self.kernel_size, stride, **dtypes, name="conv")
        norm = layers.ItemNorm(**dtypes, name="norm")
        x = layers.zero_past(x_BTC, lengths_B).astype(self.dtype)
        if lead is None:
            full_extent_B = (extent_B - 1) * stride + self.kernel_size
            x = norm(conv(x), full_extent_B)
            return x[:, : x.shape[1] - max(0, self.kernel_size - stride)], None
        # One frame more, for all `stride` frames that follow from the last one.
        x = conv(jnp.pad(x, ((0, 0), (0, 1), (0, 0))))[:, : frames * stride]
        start_B = jnp.zeros_like(lengths_B) if start_B is None else start_B
        source = jnp.arange(frames * stride)[None, :] // stride
        source = jnp.maximum(source, lead - 1 - start_B[:, None])
        source = jnp.clip(source, 0, jnp.maximum(lengths_B - 1, 0)[:, None])
        last_BT = source * stride + min(self.kernel_size, stride) - 1
        return norm(x, lengths_B * stride, last_BT, past, prior)


class RefineNet(nn.Module):
    """[conv k5, norm, Mish] x 4, conv k1, plus the input: coarse to refined mel."""

    mel_bins: int
    channels: tuple[int, ...]
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, mel_BTM: jax.Array, extent_B: jax.Array, lead: int | None = None, priors=()
    ) -> jax.Array:
        """The refined mel; with `lead`, frame t is normalised by frames up to max(t + 1, lead).

        `priors` are what else counts in each norm, see `layers.ItemNorm`; () is nothing.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = mel_BTM.astype(self.dtype)
        last_BT = None
        if lead is not None:
            last_BT = jnp.maximum(jnp.arange(x.shape[1]), lead - 1)[None, :]
            last_BT = jnp.clip(last_BT, 0, jnp.maximum(extent_B - 1, 0)[:, None])
        for i, channels in enumerate(self.channels):
            # The reference's buffer ends at the extent: convolutions see zeros past it.
            x = layers.zero_past(x, extent_B)
            x = layers.conv(f"conv_{i}", channels, REFINE_KERNEL, padding=(2, 2), **dtypes)(x)
            norm = layers.ItemNorm(**dtypes, name=f"norm_{i}")
            if last_BT is None:
                x = norm(x, extent_B)
            else:
                x, _ = norm(x, extent_B, last_BT, None, priors[i] if priors else None)
            x = layers.mish(x)
        return mel_BTM + layers.conv("out", self.mel_bins, 1, **dtypes)(x)


class AudioDecoder(nn.Module):
    """Upsample, causal transformer, upsample, refine."""

    config: AudioDecoderConfig
    dtype: layers.Dtype = jnp.float32
    param_dtype: layers.Dtype = jnp.float32
    remat: str = "none"
    scan: bool = True

    def setup(self):
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        rates, kernel = c.upsample_rates, c.kernel_size
        self.positions = layers.position_table(self, c.max_positions, c.width)
        self.upsample1 = CausalUpsample(c.width, kernel, rates[0], **dtypes)
        self.layers = layers.transformer_stack(
            layers=c.layers,
            heads=c.heads,
            ffn_width=c.ffn_width,
            remat=self.remat,
            scan=self.scan,
            **dtypes,
        )
        self.norm = layers.layer_norm(None, **dtypes)
        self.upsample2 = CausalUpsample(c.mel_bins, kernel, rates[1], **dtypes)
        self.refine_net = RefineNet(c.mel_bins, c.refine_channels, **dtypes)

    def __call__(
        self,
        x_BND: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array | None = None,
        blocks: Blocks | None = None,
    ) -> AudioDecoderOutput:
        """Decodes a padded batch.

        Args:
          x_BND: projected quantised features, 12.5 Hz.
          lengths_B: valid frames.
          extent_B: see `layers`; frames over which the norms and the resizing run.
          blocks: what frames depend on, if not what the reference has; then extents are lengths.

        Raises:
          ValueError: if 4 N exceeds the position table.
        """
        extent_B = lengths_B if extent_B is None else extent_B
        lead = None if blocks is None else blocks.lead
        rate = self.config.upsample_rates[0]
        prior = None if blocks is None else blocks.prior(0, rate)
        frames = x_BND.shape[1] * rate - 1
        lengths_T = self.upsample1.out_length(lengths_B)
        if blocks is None:
            mask = layers.attention_mask(lengths_T, frames, causal=True)
        else:
            mask = blocks.mask(lengths_T, frames, causal=True)
        x, _ = self.upsample1(x_BND, lengths_B, extent_B, lead, prior=prior)
        hidden, _ = self._transform(x[:, :frames], lengths_T, mask)
        hidden_extent_B = self.upsample1.out_length(extent_B)
        return self.mels(hidden, lengths_T, hidden_extent_B, blocks)

    def piece(
        self,
        x_BND: jax.Array,
        lengths_B: jax.Array,
        place: Place,
        past: DecoderPast,
        blocks: Blocks,
    ) -> tuple[jax.Array, jax.Array, DecoderPast]:
        """Features of a piece of each segment, as the whole would have given with these blocks.

        Args:
          x_BND, lengths_B: as the whole's.
          place: of the pieces. Frames past the position table take its last row.
          past: what is remembered of the frames before, see `blocks.advance`.
          blocks: with a lead.

        Returns:
          hidden_BTD with 4 N frames, valid lengths_B (4 a frame of codes, one less where the
          segment ends), and what to remember.
        """
        rate = self.config.upsample_rates[0]
        x, sums = self.upsample1(
            x_BND,
            lengths_B,
            lengths_B,
            blocks.lead,
            place.start_B // rate,
            past.sums,
            blocks.prior(0, rate),
        )
        lengths_T = jnp.where(place.ends_B, self.upsample1.out_length(lengths_B), lengths_B * rate)
        capacity = past.layers.key.shape[-3]
        mask = piece_mask(place.start_B, capacity, lengths_T, x.shape[1], causal=True)
        hidden, own = self._transform(x, lengths_T, mask, place.start_B, past.layers)
        return hidden, lengths_T, DecoderPast(sums, own)

    def _transform(self, x_BTD, lengths_B, mask_B1TP, start_B=None, past=None):
        x = layers.zero_past(x_BTD, lengths_B)
        x = layers.zero_past(layers.add_positions(x, self.positions, start_B), lengths_B)
        x, own = self.layers(x, mask_B1TP, past)
        return layers.zero_past(self.norm(x), lengths_B), own

    def mels(
        self,
        hidden_BTD: jax.Array,
        hidden_lengths_B: jax.Array,
        extent_B: jax.Array,
        blocks: Blocks | None = None,
    ) -> AudioDecoderOutput:
        """The mels of features.

        Args:
          hidden_BTD, hidden_lengths_B: features and how many are valid.
          extent_B: frames over which the norms and the resizing run.
          blocks: if they have a lead, the statistics are those so far and the resizing takes
            every 8 / 5th frame, so that what comes later changes only the last two frames of the
            refined mel for each of `refine_channels`, and those within the lead.
        """
        c, rate = self.config, self.config.upsample_rates[1]
        lead = prior = refine_lead = None
        priors = ()
        if blocks is not None and blocks.lead is not None:
            lead = blocks.lead * CODE_FRAMES
            prior = blocks.prior(1, CODE_FRAMES * rate)
            refine_lead = c.mel_length(lead * rate)
            per_code = c.mel_length(CODE_FRAMES * rate)
            priors = [blocks.prior(2 + i, per_code) for i in range(len(c.refine_channels))]
        coarse, _ = self.upsample2(hidden_BTD, hidden_lengths_B, extent_B, lead, prior=prior)
        coarse_lengths_B = self.upsample2.out_length(hidden_lengths_B)
        coarse = layers.zero_past(coarse, coarse_lengths_B)
        coarse_extent_B = self.upsample2.out_length(extent_B)
        mel_extent_B = c.mel_length(coarse_extent_B)
        mel_lengths_B = c.mel_length(coarse_lengths_B)
        size = c.mel_length(coarse.shape[1])
        if lead is None:
            coarse = layers.nearest_resize(coarse, coarse_extent_B, mel_extent_B, size)
        else:
            step = (c.coarse_sample_rate * c.mel_hop, c.coarse_hop * c.mel_sample_rate)
            # The reference's ratio depends on the length: it is ahead of 8 / 5 by nothing at the
            # start and by 1.2 frames at the end. This is its mean.
            coarse = coarse[:, (np.arange(size) * step[0] + step[1] * 3 // 5) // step[1]]
        refined = self.refine_net(coarse, mel_extent_B, refine_lead, priors)
        return AudioDecoderOutput(
            hidden_BTD=hidden_BTD,
            hidden_lengths_B=hidden_lengths_B,
            coarse_mel_BTM=layers.zero_past(coarse, mel_lengths_B),
            refined_mel_BTM=layers.zero_past(refined, mel_lengths_B),
            mel_lengths_B=mel_lengths_B,
        )
