"""Audio head: a depth transformer that predicts the 8 codes of a frame one after the other (3.3).

Depth 0 reads the language model's hidden state, depth i the sum of the embeddings of codes
0..i-1. Attention is causal over the depth, and every depth has separate feed-forward weights,
each a parameter (in, out): a frame reads each exactly once, in place.

Two properties of the released model are easily mistaken for errors: the residual around the
feed-forward starts from the normalised input, and the biases of the feed-forward layers exist in
the checkpoint but are never added. They are kept in the collection `buffers`, for export.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers
from ba_jax.models.cpu_layout import Dense
from ba_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class AudioHeadConfig:
    """Sizes of the head.

    Attributes:
      width: width of the language model.
      layers: depth-transformer layers.
      codebook_sizes: classes of each depth, without the extra class "end of audio".
      head_dim: attention heads are width / head_dim.
    """

    width: int
    layers: int
    codebook_sizes: tuple[int, ...]
    head_dim: int = 128

    def __post_init__(self):
        if self.width % self.head_dim:
            raise ValueError(f"width {self.width} is not a multiple of head_dim {self.head_dim}")

    @property
    def depth(self) -> int:
        """Codes a frame."""
        return len(self.codebook_sizes)


class AudioHeadLayer(layers.Layer):
    """One layer, for all depths of a frame at once or for one depth at a time."""

    config: AudioHeadConfig
    quantization: str = "none"

    def setup(self):
        c = self.config
        options = {"quantization": self.quantization, **self.dtypes}
        self.attention_norm = layers.rms_norm(None, 1e-6, **self.dtypes)
        self.query = Dense(c.width, **options)
        self.key = Dense(c.width, **options)
        self.value = Dense(c.width, **options)
        self.out = Dense(c.width, **options)
        self.ffn_norm = layers.rms_norm(None, 1e-6, **self.dtypes)
        wide, narrow = 2 * c.width, c.width
        self.ffn_in = [Dense(wide, use_bias=False, **options) for _ in range(c.depth)]
        self.ffn_out = [Dense(narrow, use_bias=False, **options) for _ in range(c.depth)]
        self.variable("buffers", "ffn_in_bias", jnp.zeros, (wide,), self.param_dtype)
        self.variable("buffers", "ffn_out_bias", jnp.zeros, (narrow,), self.param_dtype)

    def _project(self, x_XQD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, split = self.attention_norm(x_XQD), "x q (h d) -> x q h d"
        q, k, v = (
            einops.rearrange(dense(y), split, d=self.config.head_dim)
            for dense in (self.query, self.key, self.value)
        )
        return q, k, v

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        mask = jnp.broadcast_to(mask[None, None], (q.shape[0], 1, *mask.shape))
        y = layers.attention(q, k, v, mask)
        return self.out(einops.rearrange(y, "x q h d -> x q (h d)"))

    def _ffn(self, depth: int, r_XD: jax.Array) -> jax.Array:
        return r_XD + self.ffn_out[depth](layers.gelu(self.ffn_in[depth](r_XD)))

    def __call__(self, x_XQD: jax.Array) -> jax.Array:
        """The first Q' depths of a frame: (X, Q', D) to (X, Q', D), causal over Q'."""
        depths = x_XQD.shape[1]
        causal = jnp.tril(jnp.ones((depths, depths), bool))
        r = self.ffn_norm(x_XQD + self._attend(*self._project(x_XQD), causal))
        return jnp.stack([self._ffn(i, r[:, i]) for i in range(depths)], axis=1)

    def step(
        self, x_XD: jax.Array, cache: tuple[tuple[jax.Array, jax.Array], ...]
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
        """The next depth, (X, D), after the cached (key, value) pairs; also the longer cache."""
        depth = len(cache)
        q, k, v = self._project(x_XD[:, None])
        cache = (*cache, (k, v))
        keys, values = (jnp.concatenate(a, axis=1) for a in zip(*cache, strict=True))
        y = self._attend(q, keys, values, jnp.ones((1, depth + 1), bool))
        r = self.ffn_norm(x_XD[:, None] + y)[:, 0]
        return self._ffn(depth, r), cache


class AudioHead(layers.Layer):
    """The depth transformer and a classifier for each depth."""

    config: AudioHeadConfig
    remat: str = "none"
    quantization: str = "none"

    def setup(self):
        c = self.config
        layer = AudioHeadLayer
        if self.remat != "none":
            policy = layers.REMAT_POLICIES[self.remat]
            layer = nn.remat(layer, policy=policy, methods=["__call__"])
        options = {"quantization": self.quantization, **self.dtypes}
        self.layers = [layer(c, **options) for _ in range(c.layers)]
        self.norm = layers.rms_norm(None, 1e-6, **self.dtypes)
        self.classifiers = [Dense(size + 1, **self.dtypes) for size in c.codebook_sizes]

    def __call__(
        self, hidden_XD: jax.Array, embeddings_XQD: jax.Array, depths: int | None = None
    ) -> list[jax.Array]:
        """Teacher-forced logits of the first `depths` depths (None: all) in one pass.

        Args:
          hidden_XD: the language model's normed hidden state at X positions.
          embeddings_XQD: embeddings of the true codes; those of the first `depths - 1` are read.
          depths: number of depths.

        Returns:
          Logits (X, codebook_size + 1) of each depth, float32.
        """
        depths = self.config.depth if depths is None else depths
        hidden_XD = constrain(hidden_XD, "frames", None)
        embeddings_XQD = constrain(embeddings_XQD, "frames", None, None)
        before = jnp.cumsum(embeddings_XQD[:, : depths - 1], axis=1)
        x = jnp.concatenate([hidden_XD[:, None], before.astype(hidden_XD.dtype)], axis=1)
        x = x.astype(self.dtype)
        for layer in self.layers:
            x = constrain(layer(x), "frames", None, None)
        x = self.norm(x)
        return [
            classify(x[:, i]).astype(jnp.float32)
            for i, classify in enumerate(self.classifiers[:depths])
        ]

    def generate(
        self,
        hidden_XD: jax.Array,
        embed: Callable[[int, jax.Array], jax.Array],
        choose: Callable[[int, jax.Array], jax.Array],
    ) -> jax.Array:
        """Codes of one frame, depth by depth with a cache.

        Args:
          hidden_XD: the language model's normed hidden state.
          embed: (codebook, codes_X) to embeddings (X, D), see `AudioEmbed.code`.
          choose: (codebook, logits (X, codebook_size + 1) float32) to codes_X.

        Returns:
          codes_XQ, int32.
        """
        x = hidden_XD.astype(self.dtype)
        total = jnp.zeros_like(x)
        caches: list[tuple] = [() for _ in self.layers]
        codes = []
        for depth, classify in enumerate(self.classifiers):
            for i, layer in enumerate(self.layers):
                x, caches[i] = layer.step(x, caches[i])
            codes.append(choose(depth, classify(self.norm(x)).astype(jnp.float32)))
            if depth + 1 < self.config.depth:
                total = total + embed(depth, codes[-1]).astype(self.dtype)
                x = total
        return jnp.stack(codes, axis=-1).astype(jnp.int32)
