"""Table of the audio embeddings."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.models.audio_embed import AudioEmbedConfig


def rows(config: AudioEmbedConfig) -> list[WeightRow]:
    """Return the rows: an embedding per codebook."""
    return [
        row(f"model.audio_embed_layers.{q}.weight", f"params/audio_embed/embedding_{q}")
        for q in range(len(config.codebook_sizes))
    ]
