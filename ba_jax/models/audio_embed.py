"""Audio embeddings: one table per codebook, summed over the codebooks of a frame (paper 3.3).

They embed audio for the language model, and the sampled codes that the audio head feeds back.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers


@dataclasses.dataclass(frozen=True)
class AudioEmbedConfig:
    """Sizes of the tables.

    Attributes:
      width: width of the language model.
      codebook_sizes: rows of each table, without its last row, which means "end of audio".
    """

    width: int
    codebook_sizes: tuple[int, ...]


class AudioEmbed(layers.Layer):
    """Tables `embedding_0` .. of shape (codebook_size + 1, width)."""

    config: AudioEmbedConfig

    def setup(self):
        init = nn.initializers.normal(0.02)
        self.tables = [
            self.param(f"embedding_{q}", init, (size + 1, self.config.width), self.param_dtype)
            for q, size in enumerate(self.config.codebook_sizes)
        ]

    def code(self, q: int, codes: jax.Array) -> jax.Array:
        """Rows of table `q`: codes (...) to (..., D)."""
        return layers.look_up(self.tables[q], codes, self.dtype)

    def depths(self, codes_XQ: jax.Array) -> jax.Array:
        """Rows of all tables: (..., Q) to (..., Q, D)."""
        rows = [self.code(q, codes_XQ[..., q]) for q in range(len(self.tables))]
        return jnp.stack(rows, axis=-2)

    def __call__(self, codes_XQ: jax.Array, codebooks: int | None = None) -> jax.Array:
        """Frame embeddings: the sum over the first `codebooks`, or all, (..., Q) to (..., D)."""
        return sum(self.code(q, codes_XQ[..., q]) for q in range(len(self.tables))[:codebooks])
