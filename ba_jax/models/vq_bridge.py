"""Bridge and residual vector quantiser: 50 Hz features to 8 codes at 12.5 Hz and back (paper 3.1).

The codebooks and their EMA statistics live in the collection `codebook`, not among the
parameters: they are not trained by gradient.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.audio.lengths import bridge_length
from ba_jax.models import layers


@dataclasses.dataclass(frozen=True)
class VQBridgeConfig:
    """Sizes of the bridge.

    Attributes:
      width: width of the encoder's features.
      pooling: encoder frames per code frame (4).
      codebook_sizes: rows of each codebook, first to last.
      decoder_width: width of the decoder's input; None: `width`.
    """

    width: int
    pooling: int
    codebook_sizes: tuple[int, ...]
    decoder_width: int | None = None

    @property
    def code_width(self) -> int:
        """Width of the quantised features."""
        return self.width * self.pooling


class Quantized(NamedTuple):
    """Result of residual quantisation.

    Attributes:
      z_BNE: sum of the chosen rows, float32, with straight-through gradients to the input.
      codes_BNQ: int32, 0 past the length.
      residuals_QBNE: input of each codebook (for EMA statistics), without gradient.
      used_BQ: codebooks that an item used, as requested of `quantize`.
    """

    z_BNE: jax.Array
    codes_BNQ: jax.Array
    residuals_QBNE: jax.Array
    used_BQ: jax.Array


def nearest_code(x_BNE: jax.Array, table_VE: jax.Array) -> jax.Array:
    """Index (B, N) of the row nearest to each vector in Euclidean distance, float32 throughout.

    |x|^2 is the same for all rows and omitted. Products have the highest precision: bfloat16
    passes, TPUs' default for float32, would confuse neighbouring rows.
    """
    product = jnp.einsum("bne,ve->bnv", x_BNE, table_VE, precision=jax.lax.Precision.HIGHEST)
    half_norm_V = 0.5 * jnp.sum(table_VE**2, axis=-1)
    return jnp.argmin(half_norm_V[None, None] - product, axis=-1).astype(jnp.int32)


def sample_code(
    key: jax.Array, x_BNE: jax.Array, table_VE: jax.Array, temperature: float
) -> jax.Array:
    """Sample the index (B, N) of a row by the Gumbel trick; nearer rows are more likely.

    The logits are -|x - row|^2 / (temperature |x|^2): relative to the vector's energy, so that one
    temperature suits all codebooks, whose residuals shrink. Temperature 0 gives the nearest row.
    """
    if temperature == 0:
        return nearest_code(x_BNE, table_VE)
    product = jnp.einsum("bne,ve->bnv", x_BNE, table_VE, precision=jax.lax.Precision.HIGHEST)
    half_norm_V = 0.5 * jnp.sum(table_VE**2, axis=-1)
    energy_BN = jnp.maximum(jnp.sum(x_BNE**2, axis=-1), 1e-12)[:, :, None]
    logits = 2 * (product - half_norm_V[None, None]) / energy_BN
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def draw_used(key: jax.Array, items: int, codebooks: int, dropout: float) -> jax.Array:
    """Draw the codebooks that each item uses in training (quantiser dropout), (items, Q) booleans.

    With probability `dropout` the first k, k uniform in 1..Q - 1; otherwise all.
    """
    if dropout == 0 or codebooks == 1:
        return jnp.ones((items, codebooks), bool)
    drop_key, depth_key = jax.random.split(key)
    drop_B = jax.random.bernoulli(drop_key, dropout, (items,))
    depth_B = jax.random.randint(depth_key, (items,), 1, codebooks)
    depth_B = jnp.where(drop_B, depth_B, codebooks)
    return jnp.arange(codebooks)[None, :] < depth_B[:, None]


class PooledDense(layers.Layer):
    """Convolution with kernel = stride = pooling and no bias, as one matrix product.

    Windows do not overlap: each output frame is a product with `pooling` concatenated input frames,
    (B, N, pooling * D) to (B, N, E). Kernel (pooling, D, E).
    """

    features: int
    pooling: int

    @nn.compact
    def __call__(self, x_BNE: jax.Array) -> jax.Array:
        width = x_BNE.shape[-1] // self.pooling
        shape = (self.pooling, width, self.features)
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, shape, self.param_dtype).astype(self.dtype)
        return x_BNE @ kernel.reshape(-1, self.features)


class VQBridge(layers.Layer):
    """Pooling bridge, RVQ, and the projection that feeds the audio decoder."""

    config: VQBridgeConfig

    def setup(self):
        c = self.config
        wide = c.code_width
        self.gate = PooledDense(wide, c.pooling, **self.dtypes)
        self.up = PooledDense(wide, c.pooling, **self.dtypes)
        # With zeros the bridge starts as the norm alone: random mixing loses information of a
        # trained encoder, above all on voices outside the training data.
        zeros = nn.initializers.zeros
        self.down = layers.dense(wide, use_bias=False, kernel_init=zeros, **self.dtypes)
        self.norm = layers.layer_norm(None, **self.dtypes)
        self.decoder_proj = layers.dense(c.decoder_width or c.width, **self.dtypes)

        def codebook(q: int, size: int) -> nn.module.Variable:
            def init() -> jax.Array:
                key = self.make_rng("params")
                return nn.initializers.he_uniform()(key, (size, wide), jnp.float32)

            embed = self.variable("codebook", f"embed_{q}", init)
            self.variable("codebook", f"embed_avg_{q}", lambda: embed.value)
            self.variable("codebook", f"cluster_size_{q}", jnp.ones, (size,), jnp.float32)
            return embed

        self.embeds = [codebook(q, size) for q, size in enumerate(c.codebook_sizes)]

    def features(self, x_BTD: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pool encoder features.

        Args:
          x_BTD: encoder output; frames past the length count as zeros, as in the reference.
          lengths_B: valid encoder frames.

        Returns:
          (z_BNE before quantisation with N = ceil(T / pooling); bridge lengths_B, without a last
          incomplete group). Groups past the bridge length are 0.
        """
        c = self.config
        x = layers.zero_past(x_BTD, lengths_B).astype(self.dtype)
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % c.pooling), (0, 0)))
        x = einops.rearrange(x, "b (n p) d -> b n (p d)", p=c.pooling)
        z = self.norm(self.down(jax.nn.silu(self.gate(x)) * self.up(x)) + x)
        out_lengths_B = bridge_length(lengths_B, c.pooling)
        return layers.zero_past(z, out_lengths_B), out_lengths_B

    def quantize(
        self,
        z_BNE: jax.Array,
        lengths_B: jax.Array,
        *,
        used_BQ: jax.Array | None = None,
        key: jax.Array | None = None,
        temperature: float = 0.0,
    ) -> Quantized:
        """Residual quantisation, one codebook after the other.

        Args:
          z_BNE, lengths_B: see `features`.
          used_BQ: codebooks that each item uses, the first k of them; None: all. The codes of the
            others are 0, and their residuals are the remainder after the used ones.
          key: random key of `sample_code`; None: the nearest rows.
          temperature: temperature of `sample_code`; static.
        """
        z = layers.zero_past(z_BNE, lengths_B).astype(jnp.float32)
        residual = jax.lax.stop_gradient(z)
        codes, residuals = [], []
        for q, embed in enumerate(self.embeds):
            residuals.append(residual)
            table = embed.value.astype(jnp.float32)
            if key is None:
                codes.append(nearest_code(residual, table))
            else:
                codes.append(sample_code(jax.random.fold_in(key, q), residual, table, temperature))
            remainder = residual - table[codes[-1]]
            if used_BQ is not None:
                used = used_BQ[:, q, None]
                remainder = jnp.where(used[:, :, None], remainder, residual)
                codes[-1] = jnp.where(used, codes[-1], 0)
            residual = remainder
        valid = layers.length_mask(lengths_B, z.shape[1])[:, :, None]
        quantized = jnp.where(valid, jax.lax.stop_gradient(z) - residual, 0)
        z_BNE = z + jax.lax.stop_gradient(quantized - z)
        codes_BNQ = jnp.where(valid, jnp.stack(codes, axis=-1), 0)
        if used_BQ is None:
            used_BQ = jnp.ones((z.shape[0], len(codes)), bool)
        return Quantized(z_BNE, codes_BNQ, jnp.stack(residuals), used_BQ)

    def dequantize(
        self, codes_BNQ: jax.Array, lengths_B: jax.Array, codebooks_B: jax.Array | None = None
    ) -> jax.Array:
        """Sum of the codes' rows, z_BNE in float32, 0 past the length; adds the last one first.

        With `codebooks_B` an item has that many of its first codebooks.
        """
        valid = layers.length_mask(lengths_B, codes_BNQ.shape[1])[:, :, None]
        codes_BNQ = jnp.where(valid, codes_BNQ, 0)
        rows = []
        for q, embed in reversed(list(enumerate(self.embeds))):
            row = embed.value.astype(jnp.float32)[codes_BNQ[..., q]]
            if codebooks_B is not None:
                row = jnp.where(q < codebooks_B[:, None, None], row, 0)
            rows.append(row)
        return jnp.where(valid, sum(rows), 0)

    def project(self, z_BNE: jax.Array) -> jax.Array:
        """Quantised features to the audio decoder's input (B, N, D)."""
        return self.decoder_proj(z_BNE.astype(self.dtype))

    def __call__(self, x_BTD: jax.Array, lengths_B: jax.Array, **training):
        """(decoder input BND, Quantized, bridge lengths_B) in one pass; options of `quantize`."""
        z_BNE, out_lengths_B = self.features(x_BTD, lengths_B)
        quantized = self.quantize(z_BNE, out_lengths_B, **training)
        return self.project(quantized.z_BNE), quantized, out_lengths_B
