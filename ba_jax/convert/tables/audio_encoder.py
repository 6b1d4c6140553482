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


def ctranslate2_rows(config: AudioEncoderConfig) -> list[Row]:
    """Names of a CTranslate2 Whisper (encoder part): q, k and v fused, k's bias stored as zeros."""
    source, target = "encoder/layer_{layer}", "audio_encoder/layers"
    stack = (("layer", config.layers),)
    thirds = (0, (config.width,) * 3)

    def linear(name: str, place: str) -> list[Row]:
        return [
            row(f"{name}/weight", f"params/{place}/kernel", parts.LINEAR, stack=stack),
            row(f"{name}/bias", f"params/{place}/bias", stack=stack),
        ]

    def norm(name: str, place: str, stack: parts.Stack = ()) -> list[Row]:
        return [
            row(f"{name}/gamma", f"params/{place}/scale", stack=stack),
            row(f"{name}/beta", f"params/{place}/bias", stack=stack),
        ]

    qkv = tuple(f"params/{target}/{name}" for name in ("query", "key", "value"))
    fused = f"{source}/self_attention/linear_0"
    return [
        *(
            r
            for i in (1, 2)
            for r in (
                row(f"encoder/conv{i}/weight", f"params/audio_encoder/conv{i}/kernel", parts.CONV),
                row(f"encoder/conv{i}/bias", f"params/audio_encoder/conv{i}/bias"),
            )
        ),
        _positions("encoder/position_encodings/encodings"),
        *norm(f"{source}/self_attention/layer_norm", f"{target}/attention_norm", stack),
        Row(f"{fused}/weight", tuple(f"{t}/kernel" for t in qkv), parts.LINEAR, thirds, stack),
        Row(f"{fused}/bias", (f"{qkv[0]}/bias", "", f"{qkv[2]}/bias"), "", thirds, stack),
        *linear(f"{source}/self_attention/linear_1", f"{target}/out"),
        *norm(f"{source}/ffn/layer_norm", f"{target}/ffn_norm", stack),
        *linear(f"{source}/ffn/linear_0", f"{target}/ffn_in"),
        *linear(f"{source}/ffn/linear_1", f"{target}/ffn_out"),
        *norm("encoder/layer_norm", "audio_encoder/norm"),
    ]
