"""Audio encoder: log-mel at 100 Hz to features at 50 Hz, Whisper-large's encoder (paper 3.1)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from ba_jax.audio.lengths import encoder_length
from ba_jax.models import layers


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes of the encoder.

    Attributes:
      mel_bins: bins of the log-mel (128; 80 for Whisper before large-v3).
      width, layers, heads, ffn_width: sizes of the transformer.
      max_positions: rows of the position table, frames at 50 Hz (1500 = 30 s).
    """

    mel_bins: int
    width: int
    layers: int
    heads: int
    ffn_width: int
    max_positions: int = 1500


class AudioEncoder(layers.Layer):
    """conv k3, GELU, conv k3 stride 2, GELU, + sinusoids, pre-norm transformer, LayerNorm."""

    config: AudioEncoderConfig
    remat: str = "none"
    scan: bool = True

    @nn.compact
    def __call__(
        self, mel_BTM: jax.Array, lengths_B: jax.Array, extent_B: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encode a padded batch.

        Args:
          mel_BTM: log-mel, T frames of 10 ms.
          lengths_B: valid frames.
          extent_B: see `layers`; frames that the second convolution sees.

        Returns:
          (features_BTD with ceil(T / 2) frames of 20 ms, zeros past the length; their lengths_B).

        Raises:
          ValueError: T exceeds 2 * max_positions, or the number of bins is not the config's.
        """
        c = self.config
        if mel_BTM.shape[-1] != c.mel_bins:
            raise ValueError(f"mel has shape {mel_BTM.shape}, expected {c.mel_bins} bins last")
        extent_B = lengths_B if extent_B is None else extent_B
        positions = layers.position_table(self, c.max_positions, c.width)
        x = layers.zero_past(mel_BTM, lengths_B).astype(self.dtype)
        x = layers.gelu(layers.conv("conv1", c.width, 3, padding=(1, 1), **self.dtypes)(x))
        # Past the length conv1 gives gelu(bias), plus the effect of the last frame next to it.
        x = layers.zero_past(x, extent_B)
        x = layers.gelu(
            layers.conv("conv2", c.width, 3, stride=2, padding=(1, 1), **self.dtypes)(x)
        )
        x = layers.add_positions(x, positions)
        out_lengths_B = encoder_length(lengths_B)
        x = layers.zero_past(x, out_lengths_B)
        mask = layers.attention_mask(out_lengths_B, x.shape[1], causal=False)
        stack = layers.transformer_stack(
            c.layers,
            heads=c.heads,
            ffn_width=c.ffn_width,
            remat=self.remat,
            scan=self.scan,
            name="layers",
            **self.dtypes,
        )
        x, _ = stack(x, mask, None)
        x = layers.layer_norm("norm", **self.dtypes)(x)
        return layers.zero_past(x, out_lengths_B), out_lengths_B
