"""Table of the flow prenet."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.flow_prenet import FlowPrenetConfig


def rows(
    config: FlowPrenetConfig, prefix: str = "audio_tokenizer.audio_flow_matching_decoder.prenet"
) -> list[WeightRow]:
    """Return the rows; the position table is stored but never added."""
    return [
        row(f"{prefix}.positional_embedding", "buffers/flow_prenet/positional_embedding"),
        *parts.linear(f"{prefix}.in_mlp.0", "flow_prenet/mlp_in"),
        *parts.linear(f"{prefix}.in_mlp.2", "flow_prenet/mlp_out"),
        *parts.transformer(f"{prefix}.transformer_layers", "flow_prenet", config.layers, rms=True),
        *parts.norm(f"{prefix}.final_norm", "flow_prenet/norm", bias=False),
        *parts.linear(f"{prefix}.out_proj", "flow_prenet/out", bias=False),
    ]
