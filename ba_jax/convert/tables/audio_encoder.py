"""Audio encoder: the release's names, and those of a Whisper folder."""

from __future__ import annotations

from ba_jax.convert.rows import Row, row
from ba_jax.convert.tables import parts
from ba_jax.models.audio_encoder import AudioEncoderConfig


def rows(config: AudioEncoderConfig, prefix: str = "audio_tokenizer.audio_model") -> list[Row]:
    """Names under `prefix`; Whisper's own differ only in prefix and position table."""
    return [*_common(config, prefix), _positions(f"{prefix}.positional_embedding")]


def whisper_rows(config: AudioEncoderConfig, prefix: str = "model.encoder") -> list[Row]:
    """Names of `transformers`' Whisper (encoder part)."""
    return [*_common(config, prefix), _positions(f"{prefix}.embed_positions.weight")]


def _positions(source: str) -> Row:
    return row(source, "buffers/audio_encoder/positional_embedding")


def _common(config: AudioEncoderConfig, prefix: str) -> list[Row]:
    return [
        *parts.conv(f"{prefix}.conv1", "audio_encoder/conv1"),
        *parts.conv(f"{prefix}.conv2", "audio_encoder/conv2"),
        *parts.transformer(f"{prefix}.layers", "audio_encoder", config.layers),
        *parts.norm(f"{prefix}.layer_norm", "audio_encoder/norm"),
    ]
