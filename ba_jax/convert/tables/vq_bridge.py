"""Table of the bridge and its quantizer."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.vq_bridge import VQBridgeConfig


def rows(
    config: VQBridgeConfig, prefix: str = "audio_tokenizer.audio_bridge_model"
) -> list[WeightRow]:
    """Return the rows; codebooks and their EMA statistics are in the collection `codebook`."""
    table = [
        row(f"{prefix}.gate_proj.weight", "params/vq_bridge/gate/kernel", parts.CONV),
        row(f"{prefix}.up_proj.weight", "params/vq_bridge/up/kernel", parts.CONV),
        *parts.linear(f"{prefix}.down_proj", "vq_bridge/down", bias=False),
        *parts.norm(f"{prefix}.layer_norm", "vq_bridge/norm"),
        *parts.linear(f"{prefix}.proj_decoder", "vq_bridge/decoder_proj"),
    ]
    for q in range(len(config.codebook_sizes)):
        source = f"{prefix}.vq_list.{q}.codebook"
        for name in ("embed", "embed_avg", "cluster_size"):
            table.append(row(f"{source}.{name}", f"codebook/vq_bridge/{name}_{q}"))
    return table
