"""Tables of the audio encoder: the release's names, and those of Whisper folders."""

from __future__ import annotations

from ba_jax.convert.engine import WeightRow, row
from ba_jax.convert.tables import parts
from ba_jax.models.audio_encoder import AudioEncoderConfig


def rows(
    config: AudioEncoderConfig, prefix: str = "audio_tokenizer.audio_model"
) -> list[WeightRow]:
    """Return the rows for the release's names."""
    return [*_common(config, prefix), _positions(f"{prefix}.positional_embedding")]


def whisper_rows(config: AudioEncoderConfig, prefix: str = "model.encoder") -> list[WeightRow]:
    """Return the rows for the encoder of a `transformers` Whisper."""
    return [*_common(config, prefix), _positions(f"{prefix}.embed_positions.weight")]


def _positions(source: str) -> WeightRow:
    return row(source, "buffers/audio_encoder/positional_embedding")


def _common(config: AudioEncoderConfig, prefix: str) -> list[WeightRow]:
    return [
        *parts.conv(f"{prefix}.conv1", "audio_encoder/conv1"),
        *parts.conv(f"{prefix}.conv2", "audio_encoder/conv2"),
        *parts.transformer(f"{prefix}.layers", "audio_encoder", config.layers),
        *parts.norm(f"{prefix}.layer_norm", "audio_encoder/norm"),
    ]


def ctranslate2_rows(config: AudioEncoderConfig) -> list[WeightRow]:
    """Return the rows for a CTranslate2 encoder: q, k and v are fused, k's bias is stored as 0."""
    source, layers = "encoder/layer_{layer}", "audio_encoder/layers"
    stack = (("layer", config.layers),)
    thirds = (0, (config.width,) * 3)

    def linear(name: str, target: str) -> list[WeightRow]:
        return [
            row(f"{name}/weight", f"params/{target}/kernel", parts.LINEAR, stack=stack),
            row(f"{name}/bias", f"params/{target}/bias", stack=stack),
        ]

    def norm(name: str, target: str, stack: parts.Stack = ()) -> list[WeightRow]:
        return [
            row(f"{name}/gamma", f"params/{target}/scale", stack=stack),
            row(f"{name}/beta", f"params/{target}/bias", stack=stack),
        ]

    qkv = tuple(f"params/{layers}/{name}" for name in ("query", "key", "value"))
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
        *norm(f"{source}/self_attention/layer_norm", f"{layers}/attention_norm", stack),
        WeightRow(
            f"{fused}/weight", tuple(f"{t}/kernel" for t in qkv), parts.LINEAR, thirds, stack
        ),
        WeightRow(f"{fused}/bias", (f"{qkv[0]}/bias", "", f"{qkv[2]}/bias"), "", thirds, stack),
        *linear(f"{source}/self_attention/linear_1", f"{layers}/out"),
        *norm(f"{source}/ffn/layer_norm", f"{layers}/ffn_norm", stack),
        *linear(f"{source}/ffn/linear_0", f"{layers}/ffn_in"),
        *linear(f"{source}/ffn/linear_1", f"{layers}/ffn_out"),
        *norm("encoder/layer_norm", "audio_encoder/norm"),
    ]
