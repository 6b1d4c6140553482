"""Audio embeddings."""

from __future__ import annotations

from ba_jax.convert.rows import Row, row
from ba_jax.models.audio_embed import AudioEmbedConfig


def rows(config: AudioEmbedConfig) -> list[Row]:
    """One table a codebook."""
    return [
        row(f"model.audio_embed_layers.{q}.weight", f"params/audio_embed/embedding_{q}")
        for q in range(len(config.codebook_sizes))
    ]
