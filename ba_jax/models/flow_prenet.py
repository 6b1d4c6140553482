"""Flow prenet: 50 Hz decoder features to mu, the condition and prior of the flow decoder (3.2)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers
from ba_jax.models.streaming import Blocks, Pieces


@dataclasses.dataclass(frozen=True)
class FlowPrenetConfig:
    """Sizes of the prenet.

    Attributes:
      in_width: width of the audio decoder's features.
      width, layers, heads, ffn_width: sizes of the causal transformer.
      mel_bins: bins of mu.
      length_ratio: mel frames an input frame (1: both run at 50 Hz).
      max_positions: rows of the stored position table, which the reference never adds.
    """

    in_width: int
    width: int
    layers: int
    heads: int
    ffn_width: int
    mel_bins: int
    length_ratio: float = 1.0
    max_positions: int = 5000


class FlowPrenet(layers.Layer):
    """MLP, causal pre-norm transformer with RMSNorm, linear to mel bins."""

    config: FlowPrenetConfig
    remat: str = "none"
    scan: bool = True

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        lengths_B: jax.Array,
        extent_B: jax.Array | None = None,
        blocks: Blocks | None = None,
        pieces: Pieces | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(mu_BTM, lengths_B) of a padded batch.

        Args:
          x_BTD, lengths_B: features, and how many are valid.
          extent_B: see `layers`; matters unless length_ratio is 1.
          blocks: frames that a frame attends to; None: all before it.
          pieces: the frames are pieces of segments, see `streaming`.

        Raises:
          ValueError: pieces, or blocks, with a length_ratio other than 1.
        """
        c = self.config
        layers.stored_positions(self, c.max_positions, c.width)  # stored but never added
        x = layers.zero_past(x_BTD, lengths_B).astype(self.dtype)
        if c.length_ratio != 1.0:
            if blocks is not None or pieces is not None:
                raise ValueError(f"flow_prenet: blocks need length_ratio 1, not {c.length_ratio}")
            extent_B = lengths_B if extent_B is None else extent_B

            def scaled(n):
                return jnp.floor(n.astype(jnp.float32) * c.length_ratio).astype(jnp.int32)

            size = int(x.shape[1] * c.length_ratio)
            x = layers.nearest_resize(x, extent_B, scaled(extent_B), size)
            lengths_B = scaled(lengths_B)
        mask = layers.attention_mask(
            lengths_B, x.shape[1], causal=True, blocks=blocks, pieces=pieces
        )
        x = layers.dense(4 * c.width, name="mlp_in", **self.dtypes)(x)
        x = layers.dense(c.width, name="mlp_out", **self.dtypes)(jax.nn.silu(x))
        x = layers.zero_past(x, lengths_B)
        stack = layers.transformer_stack(
            c.layers,
            heads=c.heads,
            ffn_width=c.ffn_width,
            norm="rms",
            remat=self.remat,
            scan=self.scan,
            name="layers",
            **self.dtypes,
        )
        x, _ = stack(x, mask, pieces)
        x = layers.rms_norm("norm", 1e-6, **self.dtypes)(layers.zero_past(x, lengths_B))
        mu = layers.dense(c.mel_bins, use_bias=False, name="out", **self.dtypes)(x)
        return layers.zero_past(mu, lengths_B), lengths_B
