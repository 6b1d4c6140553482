"""The language model: Qwen2.5's decoder (paper 3.3).

RMSNorm, grouped-query attention with RoPE (rotate-half, float32) and biased q/k/v, SwiGLU. Layers
are scanned; q, k and v are separate parameters (the release packs them, see the conversion
table), so that each is sharded over its heads.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models import cpu_layout, layers, lora
from ba_jax.models.packed_attention import is_splash, packed_attention
from ba_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """Sizes of the language model.

    Attributes:
      vocab_size: rows of the embedding and of the output layer, text and audio markers.
      width: features of a hidden state (D).
      layers: number of decoder layers (E).
      heads, kv_heads: query heads, and key and value heads; kv_heads divides heads.
      head_dim: features of a head; heads * head_dim need not be width.
      ffn_width: features inside the SwiGLU feed-forward.
      rope_theta: base of the rotary frequencies.
      norm_epsilon: epsilon of all RMSNorms.
      qkv_bias: q, k and v have a bias.
      tied_embeddings: the output layer is the embedding (small Qwen2.5 models).
      qkv_packed: checkpoint files hold q, k and v in one matrix, as the release does; here they are
        always three parameters.
      lora_rank, lora_alpha, lora_targets: settings of the low-rank adapters, see `lora`; rank 0:
        none.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    qkv_bias: bool = True
    tied_embeddings: bool = False
    qkv_packed: bool = True
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = lora.TARGETS

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"llm: kv_heads = {self.kv_heads} does not divide heads = {self.heads}"
            )
        if self.head_dim % 2 or self.head_dim < 2:
            kind = "odd" if self.head_dim % 2 else "too small"
            raise ValueError(f"head_dim = {self.head_dim} is {kind}; RoPE rotates pairs")
        targets = set(self.lora_targets) & set(lora.TARGETS)
        if self.lora_rank < 0 or not targets or len(targets) != len(self.lora_targets):
            raise ValueError(
                f"llm: lora_rank = {self.lora_rank}, lora_targets = {self.lora_targets}: expected "
                f"at least 0, and some of {lora.TARGETS}, each once"
            )


class KVCache(NamedTuple):
    """Keys and values of all layers, with a fixed capacity; each row fills from slot 0.

    Attributes:
      k_EBKPD, v_EBKPD: (layers, batch, kv heads, capacity, head_dim), so that attention reads a
        layer's slice in place; slots at or past a row's length are undefined and never read.
      lengths_B: filled slots of each row, int32.
    """

    k_EBKPD: jax.Array
    v_EBKPD: jax.Array
    lengths_B: jax.Array

    @property
    def capacity(self) -> int:
        """Slots a row."""
        return self.k_EBKPD.shape[3]


def init_cache(config: LLMConfig, batch: int, capacity: int, dtype: layers.Dtype) -> KVCache:
    """An empty cache."""
    shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
    zeros = _shard_cache(jnp.zeros(shape, dtype))
    return KVCache(zeros, zeros, jnp.zeros((batch,), jnp.int32))


def _shard_cache(stored_EBKPD: jax.Array) -> jax.Array:
    return constrain(stored_EBKPD, None, "batch", "kv_heads", None, None)


def rope_table(positions_BL: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines (B, L, head_dim / 2), float32."""
    inverse = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angle = positions_BL.astype(jnp.float32)[:, :, None] * inverse.astype(np.float32)[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(
    x_BLHD: jax.Array, table: tuple[jax.Array, jax.Array], by_product: bool = False
) -> jax.Array:
    """Rotate the two halves of each head by the positions' angles, in float32.

    Whole heads are multiplied, and the halves exchanged in the type that they come in. With
    `by_product` a permutation matrix exchanges them, exactly: on TPUs halves of 64 lanes would be
    copies in memory, 4 ms of a text step of 620 on v5p.
    """
    cos, sin = (t[:, :, None, :] for t in table)
    if by_product:
        size = x_BLHD.shape[-1]
        matrix = jnp.asarray(np.roll(np.eye(size), size // 2, axis=1), x_BLHD.dtype)
        exchanged = jnp.matmul(x_BLHD, matrix, precision=jax.lax.Precision.HIGHEST)
    else:
        first, second = jnp.split(x_BLHD, 2, axis=-1)
        exchanged = jnp.concatenate([second, first], axis=-1)
    exchanged = exchanged.astype(jnp.float32)
    cos = jnp.concatenate([cos, cos], axis=-1)
    sin = jnp.concatenate([-sin, sin], axis=-1)
    return (x_BLHD.astype(jnp.float32) * cos + exchanged * sin).astype(x_BLHD.dtype)


def packed_mask(segments_BL: jax.Array) -> jax.Array:
    """(B, 1, L, L) booleans: causal, within a segment; segment 0 is padding and sees nothing."""
    length = segments_BL.shape[1]
    same = segments_BL[:, :, None] == segments_BL[:, None, :]
    real = (segments_BL > 0)[:, None, :]
    return (same & real & jnp.tril(jnp.ones((length, length), bool))[None])[:, None]


class LLMLayer(layers.Layer):
    """One decoder layer; with a cache, it reads and writes its slice of the carried arrays.

    `masks` has one entry. Its key, static inside the scan, is the kind of attention: "chunk" over
    the keys computed here with a mask, "cache" over the whole capacity with a mask, or a kind of
    `packed_attention` with the segments. For `quantization` see `quantized`.
    """

    config: LLMConfig
    quantization: str = "none"

    @nn.compact
    def __call__(self, carry, index, rope, masks, slots_BL):
        """The next carry (x_BLD, (k_EBKPD, v_EBKPD) or None), and None.

        Args:
          carry: hidden states and the cache's arrays.
          index: index of the layer in the cache.
          rope: see `rope_table`.
          masks: see the class.
          slots_BL: cache slots of the tokens; those at the capacity are not stored.
        """
        c = self.config
        x_BLD, cache = carry
        batch, length, _ = x_BLD.shape

        ((kind, mask),) = masks.items()
        on_tpu = is_splash(kind)  # which no other accelerator has

        def dense(name: str, y: jax.Array, features, use_bias: bool = False, in_axes: int = 1):
            options = {"use_bias": use_bias, "quantization": self.quantization, **self.dtypes}
            options |= {"in_axes": in_axes, "by_axes": on_tpu}
            product = cpu_layout.Dense(features, name=name, **options)(y)
            if c.lora_rank and name in c.lora_targets:
                options = {"rank": c.lora_rank, "alpha": c.lora_alpha}
                flat, count = y.reshape(batch, length, -1), product[0, 0].size
                adapted = lora.adapt(self, name, flat, count, **options)
                product = product + adapted.reshape(product.shape)
            return product

        def project(name: str, y: jax.Array, heads: int) -> jax.Array:
            return dense(name, y, (heads, c.head_dim), c.qkv_bias)

        y = layers.rms_norm("attention_norm", c.norm_epsilon, **self.dtypes)(x_BLD)
        q = apply_rope(project("query", y, c.heads), rope, on_tpu)
        k = apply_rope(project("key", y, c.kv_heads), rope, on_tpu)
        v = project("value", y, c.kv_heads)
        if cache is not None:
            indices = (jnp.arange(batch)[:, None], slice(None), slots_BL)
            if length == 1:
                # Index the heads too: XLA:TPU then writes in place. With a slice over them it
                # copies the cache into another layout and back, which is cheaper for a prompt.
                row_B11 = jnp.arange(batch)[:, None, None]
                heads_11K = jnp.arange(c.kv_heads)[None, None]
                indices = (row_B11, heads_11K, slots_BL[:, :, None])
            # Slots at the capacity (padding, or an overfull row) are dropped, not clamped.
            cache = tuple(
                _shard_cache(stored.at[index, *indices].set(new.astype(stored.dtype), mode="drop"))
                for stored, new in zip(cache, (k, v), strict=True)
            )
            if "cache" in masks:
                own = [jax.lax.dynamic_index_in_dim(a, index, keepdims=False) for a in cache]
                k, v = (jnp.swapaxes(a, 1, 2).astype(self.dtype) for a in own)
        # Queries stay on the device of their positions; keys and values are gathered to them.
        q = constrain(q, "batch", "length", "heads", None)
        k, v = (constrain(a, "batch", None, "kv_heads", None) for a in (k, v))
        if kind in ("chunk", "cache"):
            y = layers.attention(q, k, v, mask)
        else:
            y = packed_attention(kind, q, k, v, mask)
        x_BLD = x_BLD + dense("out", y, c.width, in_axes=2)
        x_BLD = constrain(x_BLD, "batch", "length", None)
        y = layers.rms_norm("ffn_norm", c.norm_epsilon, **self.dtypes)(x_BLD)
        y = jax.nn.silu(dense("gate", y, c.ffn_width)) * dense("up", y, c.ffn_width)
        y = constrain(y, "batch", "length", "mlp")
        x_BLD = constrain(x_BLD + dense("down", y, c.width), "batch", "length", None)
        return (x_BLD, cache), None


class LLM(layers.Layer):
    """Embedding, layers, final norm, output layer; each callable on its own.

    The layers' variables are stacked, for the scan, or in the layout of `cpu_layout`. `attention`
    is the kind for packed rows without a cache, see `packed_attention`; `quantization` that of the
    layers' products, see `quantized`.
    """

    config: LLMConfig
    remat: str = "none"
    scan: bool = True
    attention: str = "xla"
    quantization: str = "none"

    def setup(self):
        c = self.config
        shape = (c.vocab_size, c.width)
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, shape, self.param_dtype)
        if not c.tied_embeddings:
            self.lm_head = self.param("lm_head", init, shape, self.param_dtype)
        self.norm = layers.rms_norm(None, c.norm_epsilon, **self.dtypes)
        self.apart = self.has_variable("params", "layers_0")
        if self.apart:
            self.layers = [LLMLayer(c, **self.dtypes) for _ in range(c.layers)]
            return
        stack = layers.stack_layers(
            LLMLayer,
            c.layers,
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            remat=self.remat,
            scan=self.scan,
        )
        self.layers = stack(c, quantization=self.quantization, **self.dtypes)

    def embed(self, ids_BL: jax.Array) -> jax.Array:
        """Token embeddings (B, L, D). Check on the host that ids are in range."""
        return layers.look_up(self.embedding, ids_BL, self.dtype)

    def logits(self, hidden_XD: jax.Array) -> jax.Array:
        """Text logits (..., V), float32, from normed hidden states."""
        table = self.embedding if self.config.tied_embeddings else self.lm_head
        hidden_XD, table_VD = hidden_XD.astype(self.dtype), table.astype(self.dtype)
        if self.apart:
            return cpu_layout.product(table_VD, hidden_XD, jnp.float32)
        logits = jnp.einsum(
            "...d,vd->...v", hidden_XD, table_VD, preferred_element_type=jnp.float32
        )
        return constrain(logits, "batch", *("length",) * (logits.ndim - 2), "vocab")

    def __call__(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        cache: KVCache | None = None,
        *,
        fresh: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """Run the layers and the final norm.

        Args:
          x_BLD: input embeddings.
          positions_BL: RoPE positions; default the index among the row's real tokens, from the
            cache's length on.
          segments_BL: 0 for padding (anywhere in the row), else the example's number; default all
            1. With a cache all real tokens of a row belong to one example.
          cache: keys and values so far; the real tokens of each row are appended.
          fresh: the cache is known to be empty (prefill): attention is within this chunk instead of
            over the whole capacity. Static.

        Returns:
          (hidden_BLD after the final norm, 0 at padding; the extended cache or None). Tokens that
          exceed a row's capacity are lost: check lengths on the host.
        """
        c = self.config
        batch, length, _ = x_BLD.shape
        if segments_BL is None:
            segments_BL = jnp.ones((batch, length), jnp.int32)
        real_BL = segments_BL > 0
        x = jnp.where(real_BL[:, :, None], x_BLD, 0).astype(self.dtype)
        x = constrain(x, "batch", "length", None)
        start_B = jnp.zeros((batch,), jnp.int32) if cache is None else cache.lengths_B
        slots_BL = start_B[:, None] + jnp.cumsum(real_BL, axis=1, dtype=jnp.int32) - 1
        positions_BL = slots_BL if positions_BL is None else positions_BL
        positions_BL = jnp.where(real_BL, positions_BL, 0)
        rope = rope_table(positions_BL, c.head_dim, c.rope_theta)
        # The kernels do not accept the short rows of initialisation.
        if cache is None and self.attention != "xla" and not self.is_initializing():
            masks = {self.attention: segments_BL}
        elif cache is None or fresh:
            mask = constrain(packed_mask(segments_BL), "batch", None, "length", None)
            masks = {"chunk": mask}
        else:
            seen = jnp.arange(cache.capacity)[None, None] <= slots_BL[:, :, None]
            masks = {"cache": seen[:, None]}
        stored = None
        if cache is not None:
            slots_BL = jnp.where(real_BL, slots_BL, cache.capacity)
            stored = (cache.k_EBKPD, cache.v_EBKPD)
        carry = (x, stored)
        if self.apart:
            for index, layer in enumerate(self.layers):
                carry, _ = layer(carry, index, rope, masks, slots_BL)
        else:
            carry, _ = self.layers(carry, jnp.arange(c.layers), rope, masks, slots_BL)
        x, stored = carry
        hidden = jnp.where(real_BL[:, :, None], self.norm(x), 0)
        if cache is not None:
            lengths_B = jnp.minimum(
                start_B + jnp.sum(real_BL, axis=1, dtype=jnp.int32), cache.capacity
            )
            cache = KVCache(*stored, lengths_B)
        return hidden, cache
