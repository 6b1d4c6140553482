"""Audio decoder: quantised features at 12.5 Hz to 50 Hz features and mels (paper 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models import layers
from ba_jax.models.streaming import CODE_FRAMES, Blocks, Pieces, RunningNorm


@dataclasses.dataclass(frozen=True)
class AudioDecoderConfig:
    """Sizes of the decoder and its refine net.

    Attributes:
      width, layers, heads, ffn_width: sizes of the causal transformer.
      mel_bins: bins of both output mels.
      refine_channels: output channels of the refine net's convolutions before the last.
      kernel_size: taps of both transposed convolutions.
      upsample_rates: strides of these: 12.5 -> 50 Hz, 50 -> 100 Hz.
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

    def hidden_length(self, codes):
        """Frames of the 50 Hz features for frames of codes; ints or integer arrays."""
        return upsampled_length(codes, self.kernel_size, self.upsample_rates[0])

    def coarse_length(self, codes):
        """Frames of the coarse mel, before it is resized, for frames of codes; as above."""
        hidden = self.hidden_length(codes)
        return upsampled_length(hidden, self.kernel_size, self.upsample_rates[1])

    def decoded_frames(self, codes):
        """Frames of the refined mel for frames of codes; ints or integer arrays."""
        return self.mel_length(self.coarse_length(codes))

    def mel_length(self, coarse_length):
        """Frames of the refined mel for coarse frames, truncated; ints or integer arrays."""
        numerator = self.coarse_hop * self.mel_sample_rate
        return coarse_length * numerator // (self.coarse_sample_rate * self.mel_hop)


def upsampled_length(length, kernel_size: int, stride: int):
    """Frames after a causal transposed convolution; 0 stays 0. Ints or integer arrays."""
    return (length > 0) * ((length - 1) * stride + min(kernel_size, stride))


REFINE_KERNEL = 5


class AudioDecoderOutput(NamedTuple):
    """Output of the decoder.

    Attributes:
      hidden_BTD, hidden_lengths_B: features before the second upsampling, 4 N - 1 frames of
        20 ms: the flow decoder's input.
      coarse_mel_BTM: mel before refinement, resized to the refined mel's grid.
      refined_mel_BTM, mel_lengths_B: refined log-mel at 62.5 Hz.
      unresized_mel_BTM, unresized_lengths_B: mel before refinement on its own grid, 100 Hz.
    """

    hidden_BTD: jax.Array
    hidden_lengths_B: jax.Array
    coarse_mel_BTM: jax.Array
    refined_mel_BTM: jax.Array
    mel_lengths_B: jax.Array
    unresized_mel_BTM: jax.Array
    unresized_lengths_B: jax.Array


class CausalUpsample(layers.Layer):
    """Transposed convolution, normalisation over the item, cut to a causal length.

    The statistics run over the full output of the convolution, before the cut: through them all
    frames of an item depend on each other, as in the reference. With a `RunningNorm` they are the
    statistics so far: the outputs of input frame i are normalised by those of the first
    max(i + 1, lead) frames (at the last frame, where the kernel is not longer than the stride, by
    the whole item's).
    """

    features: int
    kernel_size: int
    stride: int

    def out_length(self, length):
        """Valid frames after upsampling."""
        return upsampled_length(length, self.kernel_size, self.stride)

    @nn.compact
    def __call__(
        self,
        x_BTC: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array,
        running: RunningNorm | None = None,
        pieces: Pieces | None = None,
    ) -> jax.Array:
        """Upsample a batch.

        Args:
          x_BTC, lengths_B, extent_B: frames, the valid ones, and those of the statistics.
          running: with `lead` in input frames; None: statistics over the extent.
          pieces: with `running`, positions of the frames in their segments.

        Returns:
          The frames, (T - 1) * stride + kernel_size less the cut, or T * stride with `running`.
          Frames past `out_length` are undefined.
        """
        frames, stride = x_BTC.shape[1], self.stride
        conv = layers.ConvTranspose(
            self.features, self.kernel_size, stride, **self.dtypes, name="conv"
        )
        norm = layers.ItemNorm(**self.dtypes, name="norm")
        x = layers.zero_past(x_BTC, lengths_B).astype(self.dtype)
        if running is None:
            full_extent_B = (extent_B - 1) * stride + self.kernel_size
            x = norm(conv(x), full_extent_B)
            return x[:, : x.shape[1] - max(0, self.kernel_size - stride)]
        # One more input frame, so that all `stride` outputs of the last one are complete.
        x = conv(jnp.pad(x, ((0, 0), (0, 1), (0, 0))))[:, : frames * stride]
        start_B = jnp.zeros_like(lengths_B) if pieces is None else pieces.start_B // stride
        source = jnp.arange(frames * stride)[None, :] // stride
        source = jnp.maximum(source, running.lead - 1 - start_B[:, None])
        source = jnp.clip(source, 0, jnp.maximum(lengths_B - 1, 0)[:, None])
        last_BT = source * stride + min(self.kernel_size, stride) - 1
        return norm(x, lengths_B * stride, last_BT, running.prior, pieces)


class RefineNet(layers.Layer):
    """[conv k5, norm, Mish] x 4, conv k1, plus the input: coarse to refined mel."""

    mel_bins: int
    channels: tuple[int, ...]

    @nn.compact
    def __call__(
        self,
        mel_BTM: jax.Array,
        extent_B: jax.Array,
        running: Sequence[RunningNorm | None] = (),
    ) -> jax.Array:
        """The refined mel.

        Args:
          mel_BTM, extent_B: coarse mel, and its frames.
          running: statistics so far, for each norm; (): those of the whole item.
        """
        x = mel_BTM.astype(self.dtype)
        for i, channels in enumerate(self.channels):
            # The reference's buffer ends at the extent: convolutions see zeros past it.
            x = layers.zero_past(x, extent_B)
            x = layers.conv(f"conv_{i}", channels, REFINE_KERNEL, padding=(2, 2), **self.dtypes)(x)
            last_BT, prior = None, None
            if running:
                last_BT = jnp.maximum(jnp.arange(x.shape[1]), running[i].lead - 1)[None, :]
                last_BT = jnp.clip(last_BT, 0, jnp.maximum(extent_B - 1, 0)[:, None])
                prior = running[i].prior
            x = layers.ItemNorm(**self.dtypes, name=f"norm_{i}")(x, extent_B, last_BT, prior)
            x = layers.mish(x)
        return mel_BTM + layers.conv("out", self.mel_bins, 1, **self.dtypes)(x)


class AudioDecoder(layers.Layer):
    """Upsample, causal transformer, upsample, refine."""

    config: AudioDecoderConfig
    remat: str = "none"
    scan: bool = True

    def setup(self):
        c = self.config
        rates, kernel = c.upsample_rates, c.kernel_size
        self.positions = layers.position_table(self, c.max_positions, c.width)
        self.upsample1 = CausalUpsample(c.width, kernel, rates[0], **self.dtypes)
        self.layers = layers.transformer_stack(
            c.layers,
            heads=c.heads,
            ffn_width=c.ffn_width,
            remat=self.remat,
            scan=self.scan,
            **self.dtypes,
        )
        self.norm = layers.layer_norm(None, **self.dtypes)
        self.upsample2 = CausalUpsample(c.mel_bins, kernel, rates[1], **self.dtypes)
        self.refine_net = RefineNet(c.mel_bins, c.refine_channels, **self.dtypes)

    def __call__(
        self,
        x_BND: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array | None = None,
        blocks: Blocks | None = None,
    ) -> AudioDecoderOutput:
        """Decode a padded batch.

        Args:
          x_BND: projected quantised features, 12.5 Hz.
          lengths_B: valid frames.
          extent_B: see `layers`; frames over which the norms and the resizing run.
          blocks: frames that a frame depends on; None: as in the reference. With a lead, extents
            are the lengths.

        Raises:
          ValueError: if 4 N exceeds the position table.
        """
        extent_B = lengths_B if extent_B is None else extent_B
        hidden, hidden_lengths_B = self.hidden(x_BND, lengths_B, extent_B, blocks)
        return self.mels(hidden, hidden_lengths_B, self.upsample1.out_length(extent_B), blocks)

    def hidden(
        self,
        x_BND: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array,
        blocks: Blocks | None = None,
        pieces: Pieces | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """50 Hz features, before the second upsampling.

        Args:
          x_BND, lengths_B, extent_B, blocks: as in `__call__`.
          pieces: the frames are pieces of segments, see `streaming`; needs blocks with a lead.
            Frames past the position table use its last row.

        Returns:
          hidden_BTD, zeros past their lengths, with 4 N - 1 frames, or 4 N of pieces; and
          lengths_B: 4 a code frame, one less where the segment ends.
        """
        rate = self.config.upsample_rates[0]
        frames, start_B = x_BND.shape[1] * rate - 1, None
        lengths_T = self.upsample1.out_length(lengths_B)
        if pieces is not None:
            frames, start_B = x_BND.shape[1] * rate, pieces.start_B
            lengths_T = jnp.where(pieces.ends_B, lengths_T, lengths_B * rate)
        running = None if blocks is None else blocks.running_norm(0, blocks.lead, rate)
        x = self.upsample1(x_BND, lengths_B, extent_B, running, pieces)[:, :frames]
        mask = layers.attention_mask(lengths_T, frames, causal=True, blocks=blocks, pieces=pieces)
        x = layers.zero_past(x, lengths_T)
        x = layers.zero_past(layers.add_positions(x, self.positions, start_B), lengths_T)
        x, _ = self.layers(x, mask, pieces)
        return layers.zero_past(self.norm(x), lengths_T), lengths_T

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
          blocks: with a lead, statistics are those so far and the resizing takes every 8 / 5th
            frame, so that later input changes only the last two frames of the refined mel for each
            of `refine_channels`, and those within the lead.
        """
        c, rate = self.config, self.config.upsample_rates[1]
        running, refine_running = None, ()
        if blocks is not None and blocks.lead is not None:
            lead = blocks.lead * CODE_FRAMES
            running = blocks.running_norm(1, lead, CODE_FRAMES * rate)
            refine_lead, per_code = c.mel_length(lead * rate), c.mel_length(CODE_FRAMES * rate)
            refine_running = [
                blocks.running_norm(2 + i, refine_lead, per_code)
                for i in range(len(c.refine_channels))
            ]
        coarse = self.upsample2(hidden_BTD, hidden_lengths_B, extent_B, running)
        coarse_lengths_B = self.upsample2.out_length(hidden_lengths_B)
        coarse = layers.zero_past(coarse, coarse_lengths_B)
        coarse_extent_B = self.upsample2.out_length(extent_B)
        mel_extent_B = c.mel_length(coarse_extent_B)
        mel_lengths_B = c.mel_length(coarse_lengths_B)
        size, unresized = c.mel_length(coarse.shape[1]), coarse
        if running is None:
            coarse = layers.nearest_resize(coarse, coarse_extent_B, mel_extent_B, size)
        else:
            step = (c.coarse_sample_rate * c.mel_hop, c.coarse_hop * c.mel_sample_rate)
            # The reference's ratio depends on the length: compared with 8 / 5 it is 0 frames ahead
            # at the start and 1.2 at the end. This is the mean.
            coarse = coarse[:, (np.arange(size) * step[0] + step[1] * 3 // 5) // step[1]]
        refined = self.refine_net(coarse, mel_extent_B, refine_running)
        return AudioDecoderOutput(
            hidden_BTD=hidden_BTD,
            hidden_lengths_B=hidden_lengths_B,
            coarse_mel_BTM=layers.zero_past(coarse, mel_lengths_B),
            refined_mel_BTM=layers.zero_past(refined, mel_lengths_B),
            mel_lengths_B=mel_lengths_B,
            unresized_mel_BTM=unresized,
            unresized_lengths_B=coarse_lengths_B,
        )
