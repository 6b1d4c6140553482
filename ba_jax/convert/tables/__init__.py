"""Conversion tables: a file per component, each with `rows(config)` for the release's names."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow
from ba_jax.convert.tables import (
    audio_decoder,
    audio_embed,
    audio_encoder,
    audio_head,
    flow_prenet,
    flow_unet,
    llm,
    vocoder,
    vq_bridge,
)
from ba_jax.models.baichuan_audio import BaichuanAudioConfig

TABLES = {
    "audio_encoder": audio_encoder.rows,
    "vq_bridge": vq_bridge.rows,
    "audio_decoder": audio_decoder.rows,
    "flow_prenet": flow_prenet.rows,
    "flow_unet": flow_unet.rows,
    "vocoder": vocoder.rows,
    "llm": llm.rows,
    "audio_embed": audio_embed.rows,
    "audio_head": audio_head.rows,
}


def rows_for(
    config: BaichuanAudioConfig, components: tuple[str, ...] | None = None
) -> list[WeightRow]:
    """Return the release's table for some components; None: all that the config has."""
    names = config.components if components is None else components
    return [row for name in names for row in TABLES[name](getattr(config, name))]
