"""Table of the audio decoder with its refine net."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.audio_decoder import AudioDecoderConfig


def rows(
    config: AudioDecoderConfig, prefix: str = "audio_tokenizer.audio_decoder"
) -> list[WeightRow]:
    """Return the rows; the refine net is a flat Sequential: conv, norm, activation, ..., conv."""
    table = [
        row(f"{prefix}.positional_embedding", "buffers/audio_decoder/positional_embedding"),
        *parts.transformer(f"{prefix}.layers", "audio_decoder", config.layers),
        *parts.norm(f"{prefix}.layer_norm", "audio_decoder/norm"),
    ]
    for i in (1, 2):
        source, target = f"{prefix}.dconv{i}", f"audio_decoder/upsample{i}"
        table += parts.conv(f"{source}.conv", f"{target}/conv", parts.CONV_TRANSPOSE)
        table += parts.norm(f"{source}.norm", f"{target}/norm")
    refine = "audio_decoder/refine_net"
    count = len(config.refine_channels)
    for i in range(count):
        table += parts.conv(f"{prefix}.post_net.layers.{3 * i}", f"{refine}/conv_{i}")
        table += parts.norm(f"{prefix}.post_net.layers.{3 * i + 1}", f"{refine}/norm_{i}")
    return table + parts.conv(f"{prefix}.post_net.layers.{3 * count}", f"{refine}/out")
