"""Table of the audio head.

q, k and v are packed as in torch's MultiheadAttention; a single feed-forward matrix serves all
depths, read as (rows, depth, columns).
"""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.audio_head import AudioHeadConfig


def rows(config: AudioHeadConfig) -> list[WeightRow]:
    """Return the rows; feed-forward biases are stored but never added: they go to `buffers`."""
    width, depth = config.width, config.depth
    table = parts.norm("audio_head.headnorm", "audio_head/norm", bias=False)
    for i in range(config.layers):
        source, target = f"audio_head.transformer_layers.{i}", f"audio_head/layers_{i}"
        attention = f"{source}.self_attention"
        thirds = (0, (width,) * 3)

        def packed(leaf: str, target: str = target) -> tuple[str, ...]:
            return tuple(f"params/{target}/{name}/{leaf}" for name in ("query", "key", "value"))

        def depths(name: str, target: str = target) -> tuple[str, ...]:
            return tuple(f"params/{target}/{name}_{d}/kernel" for d in range(depth))

        table += [
            *parts.norm(f"{source}.layernorm1", f"{target}/attention_norm", bias=False),
            WeightRow(f"{attention}.in_proj_weight", packed("kernel"), parts.LINEAR, thirds),
            WeightRow(f"{attention}.in_proj_bias", packed("bias"), "", thirds),
            *parts.linear(f"{attention}.out_proj", f"{target}/out"),
            *parts.norm(f"{source}.layernorm2", f"{target}/ffn_norm", bias=False),
            WeightRow(
                f"{source}.linear1.weight", depths("ffn_in"), parts.LINEAR, (1, (width,) * depth)
            ),
            row(f"{source}.linear1.bias", f"buffers/{target}/ffn_in_bias"),
            WeightRow(
                f"{source}.linear2.weight",
                depths("ffn_out"),
                parts.LINEAR,
                (1, (2 * width,) * depth),
            ),
            row(f"{source}.linear2.bias", f"buffers/{target}/ffn_out_bias"),
        ]
    for q in range(depth):
        table += parts.linear(f"audio_head.heads.{q}", f"audio_head/classifiers_{q}")
    return table
