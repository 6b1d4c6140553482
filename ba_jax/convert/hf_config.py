"""A model's sizes from the config files that come with its weights, and such files from sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ba_jax.config import to_mapping
from ba_jax.convert.engine import ConversionError
from ba_jax.convert.safetensors_io import read_json
from ba_jax.models.audio_decoder import AudioDecoderConfig
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.flow_matching import FlowMatchingConfig
from ba_jax.models.flow_prenet import FlowPrenetConfig
from ba_jax.models.flow_unet import FlowUNetConfig
from ba_jax.models.llm import LLMConfig
from ba_jax.models.vocoder import VocoderConfig
from ba_jax.models.vq_bridge import VQBridgeConfig
from ba_jax.vocab import COMPONENTS, AudioTokens


class _Reader:
    """A config mapping whose look-ups name the file and the key when they fail."""

    def __init__(self, values: Mapping[str, Any], where: str):
        if not isinstance(values, Mapping):
            raise ConversionError(f"{where}: expected an object, got {values!r}")
        self.values, self.where = values, where

    def get(self, key: str, kind: type, *default: Any) -> Any:
        if key not in self.values or (self.values[key] is None and default):
            if default:
                return default[0]
            raise ConversionError(f"{self.where}: key {key!r} is missing")
        value = self.values[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConversionError(f"{self.where}: {key} = {value!r}, expected {kind.__name__}")
        if kind in (int, float) and value < 0:
            raise ConversionError(f"{self.where}: {key} = {value!r} is negative")
        return value

    def size(self, key: str, *default: int) -> int:
        value = self.get(key, int, *default)
        if value < 1:
            raise ConversionError(f"{self.where}: {key} = {value}, expected at least 1")
        return value

    def sizes(self, key: str) -> tuple[int, ...]:
        values = self.get(key, list)
        if not values or any(type(v) is not int or v < 1 for v in values):
            raise ConversionError(f"{self.where}: {key} = {values}, expected positive integers")
        return tuple(values)

    def must(self, key: str, expected: Any, *default: Any) -> None:
        """Fails unless a key has the only value this implementation knows."""
        value = self.values.get(key, *(default or (expected,)))
        if value != expected:
            raise ConversionError(
                f"{self.where}: {key} = {value!r} is not supported, expected {expected!r}"
            )

    def section(self, key: str) -> _Reader:
        return _Reader(self.get(key, dict), f"{self.where}: {key}")


def read_model_config(folder: Path, vocoder: VocoderConfig | None = None) -> BaichuanAudioConfig:
    """Config of a Baichuan-Audio or Omni-1.5 folder from its config.json.

    Args:
      folder: holds config.json.
      vocoder: config of the vocoder that comes with it, which config.json does not describe.

    Raises:
      ConversionError: naming file, key and value, for anything missing or not supported.
    """
    path = Path(folder) / "config.json"
    return baichuan_config(read_json(path, "a model's config"), vocoder, str(path))


def baichuan_config(
    values: Mapping[str, Any], vocoder: VocoderConfig | None = None, where: str = "config"
) -> BaichuanAudioConfig:
    """Config of the release's config.json, see `read_model_config`."""
    root = _Reader(values, where)
    root.must("model_type", "omni")
    root.must("use_norm_head", False)
    root.must("position_embedding_type", "rope")
    root.must("sparse_attention_layers", [])
    audio = root.section("audio_config")
    coarse = root.section("vocoder_config")
    flow = root.section("flow_matching_config")
    cfm = flow.section("cfm_params")
    quantizer = audio.section("vq_config")
    for section in (audio, coarse, flow, quantizer):
        section.must("enable", True)
    audio.must("activation_function", "gelu")
    audio.must("kernel_size", 3)
    audio.must("stride_size", 2)
    audio.must("n_fft", 400)
    flow.must("use_hidden_states_before_dconv2", True)
    flow.must("unet_use_omni_attn", False)
    flow.must("spk_emb_dim", 0)
    flow.must("act_fn", "gelu")
    flow.must("prenet_activation_function", "gelu")
    cfm.must("solver", "euler")

    channels = flow.sizes("channels")
    if len(channels) != 1:
        raise ConversionError(f"{flow.where}: channels = {channels}, expected a single entry")
    width, pooling = audio.size("d_model"), audio.size("avg_pooler")
    hop, rate = audio.size("hop_length"), audio.size("sampling_rate")
    frames = audio.size("max_audio_seconds") * rate // hop
    codebook_sizes = quantizer.sizes("codebook_sizes")
    language = llm_config(root)
    return BaichuanAudioConfig(
        audio_encoder=AudioEncoderConfig(
            mel_bins=audio.size("num_mel_bins"),
            width=width,
            layers=audio.size("encoder_layers"),
            heads=audio.size("encoder_attention_heads"),
            ffn_width=audio.size("encoder_ffn_dim"),
            max_positions=frames // 2,
        ),
        vq_bridge=VQBridgeConfig(width=width, pooling=pooling, codebook_sizes=codebook_sizes),
        audio_decoder=AudioDecoderConfig(
            width=width,
            layers=audio.size("decoder_layers"),
            heads=audio.size("decoder_attention_heads"),
            ffn_width=audio.size("decoder_ffn_dim"),
            mel_bins=coarse.size("num_mel_bins"),
            # The list's last entry is the projection back to mel bins, whatever it says.
            refine_channels=coarse.sizes("channels")[:-1],
            kernel_size=audio.size("decoder_kernel_size"),
            upsample_rates=(pooling, audio.size("decoder_stride_size")),
            max_positions=frames,
            coarse_hop=hop,
            coarse_sample_rate=rate,
            mel_hop=coarse.size("hop_length"),
            mel_sample_rate=coarse.size("sampling_rate"),
        ),
        flow_prenet=FlowPrenetConfig(
            in_width=flow.size("prenet_in_dim"),
            width=flow.size("prenet_d_model"),
            layers=flow.size("prenet_nlayers"),
            heads=flow.size("prenet_attention_heads"),
            ffn_width=flow.size("prenet_ffn_dim"),
            mel_bins=flow.size("prenet_out_dim"),
            length_ratio=flow.get("prenet_target_mel_length_scale_ratio", float),
            max_positions=flow.size("prenet_max_source_positions"),
        ),
        flow_unet=FlowUNetConfig(
            mel_bins=flow.size("in_channels"),
            channels=channels[0],
            blocks=flow.size("n_blocks"),
            mid_blocks=flow.size("num_mid_blocks"),
            heads=flow.size("num_heads"),
            head_dim=flow.size("attention_head_dim"),
        ),
        vocoder=vocoder,
        llm=language,
        audio_embed=AudioEmbedConfig(width=language.width, codebook_sizes=codebook_sizes),
        audio_head=AudioHeadConfig(
            width=language.width,
            layers=audio.size("audio_head_transformer_layers"),
            codebook_sizes=codebook_sizes,
        ),
        flow_matching=FlowMatchingConfig(
            steps=flow.size("diffusion_steps"),
            guidance=cfm.get("inference_cfg_rate", float),
            condition_dropout=cfm.get("training_cfg_rate", float),
            sigma_min=cfm.get("sigma_min", float, 1e-4),
            schedule=cfm.get("t_scheduler", str),
            residual_std=cfm.get("residual_std", float, 0.0),
        ),
        tokens=AudioTokens(
            **{
                name: audio.get(f"{name}_token_id", int)
                for name in AudioTokens.__dataclass_fields__
            }
        ),
    )


def baichuan_values(config: BaichuanAudioConfig) -> dict[str, Any]:
    """The release's config.json for a model: the inverse of `baichuan_config`.

    The vocoder is not described there. Vision is switched off.

    Raises:
      ConversionError: a component is missing, or the release's format cannot say what the model is.
    """
    absent = [c for c in COMPONENTS if c != "vocoder" and getattr(config, c) is None]
    if absent:
        raise ConversionError(f"config.json describes whole models: this one has no {absent}")
    encoder, decoder = config.audio_encoder, config.audio_decoder
    prenet, unet, flow, llm = config.flow_prenet, config.flow_unet, config.flow_matching, config.llm
    pooling, stride = decoder.upsample_rates
    seconds = decoder.max_positions * decoder.coarse_hop // decoder.coarse_sample_rate
    token_ids = dataclasses.asdict(config.tokens)
    values = {
        "architectures": ["OmniForCausalLM"],
        "model_type": "omni",
        "attention_qkv_bias": llm.qkv_bias,
        "attention_qkv_pack": llm.qkv_packed,
        "audio_config": {
            "enable": True,
            "num_mel_bins": encoder.mel_bins,
            "d_model": encoder.width,
            "encoder_layers": encoder.layers,
            "encoder_attention_heads": encoder.heads,
            "encoder_ffn_dim": encoder.ffn_width,
            "decoder_layers": decoder.layers,
            "decoder_attention_heads": decoder.heads,
            "decoder_ffn_dim": decoder.ffn_width,
            "decoder_kernel_size": decoder.kernel_size,
            "decoder_stride_size": stride,
            "avg_pooler": pooling,
            "kernel_size": 3,
            "stride_size": 2,
            "n_fft": 400,
            "hop_length": decoder.coarse_hop,
            "sampling_rate": decoder.coarse_sample_rate,
            "max_audio_seconds": seconds,
            "split_overlap": 0.0,
            "audio_head_transformer_layers": config.audio_head.layers,
            "vq_config": {
                "enable": True,
                "codebook_sizes": list(config.vq_bridge.codebook_sizes),
            },
            **{f"{name}_token_id": value for name, value in token_ids.items()},
        },
        "flow_matching_config": {
            "enable": True,
            "use_hires_mel": True,
            "use_hidden_states_before_dconv2": True,
            "sampling_rate": 24000,
            "hop_length": 480,
            "max_audio_seconds": seconds,
            "prenet_in_dim": prenet.in_width,
            "prenet_out_dim": prenet.mel_bins,
            "prenet_d_model": prenet.width,
            "prenet_attention_heads": prenet.heads,
            "prenet_ffn_dim": prenet.ffn_width,
            "prenet_nlayers": prenet.layers,
            "prenet_activation_function": "gelu",
            "prenet_max_source_positions": prenet.max_positions,
            "prenet_target_mel_length_scale_ratio": prenet.length_ratio,
            "unet_use_omni_attn": False,
            "in_channels": unet.mel_bins,
            "spk_emb_dim": 0,
            "diffusion_steps": flow.steps,
            "channels": [unet.channels],
            "dropout": 0.0,
            "attention_head_dim": unet.head_dim,
            "n_blocks": unet.blocks,
            "num_mid_blocks": unet.mid_blocks,
            "num_heads": unet.heads,
            "act_fn": "gelu",
            "cfm_params": {
                "sigma_min": flow.sigma_min,
                "solver": "euler",
                "t_scheduler": flow.schedule,
                "training_cfg_rate": flow.condition_dropout,
                "inference_cfg_rate": flow.guidance,
                "reg_loss_type": "l1",
                # Not a key of the release, whose models have none.
                **({"residual_std": flow.residual_std} if flow.residual_std else {}),
            },
        },
        "head_dim": llm.head_dim,
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "intermediate_size": llm.ffn_width,
        "max_position_embeddings": 8192,
        "multimodal": ["audio", "audiogen"],
        "multimodal_special_token_list": sorted(token_ids.values()),
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "position_embedding_type": "rope",
        "rms_norm_eps": llm.norm_epsilon,
        "rope_theta": llm.rope_theta,
        "sparse_attention_heads": None,
        "sparse_attention_layers": [],
        "tie_word_embeddings": llm.tied_embeddings,
        "use_norm_head": False,
        "video_config": {"enable": False},
        "visual_config": {"enable": False},
        "vocab_size": llm.vocab_size,
        "vocoder_config": {
            "enable": True,
            "sampling_rate": decoder.mel_sample_rate,
            "hop_length": decoder.mel_hop,
            "n_fft": 1024,
            "num_mel_bins": decoder.mel_bins,
            # The last entry stands for the projection back to mel bins and is not read.
            "channels": [*decoder.refine_channels, decoder.refine_channels[-1]],
        },
    }
    try:
        said = baichuan_config(values, config.vocoder)
    except ConversionError:
        raise
    except ValueError as error:  # sizes that fit together only with settings it has no key for
        raise ConversionError(f"config.json cannot describe this model: {error}") from error
    if config.vq_bridge.decoder_width == config.vq_bridge.width:
        bridge = dataclasses.replace(config.vq_bridge, decoder_width=None)
        config = dataclasses.replace(config, vq_bridge=bridge)
    if said != config:
        differ = [
            f.name
            for f in dataclasses.fields(config)
            if getattr(said, f.name) != getattr(config, f.name)
        ]
        raise ConversionError(f"config.json cannot describe this model's {differ}")
    return values


def write_model_config(folder: Path, config: BaichuanAudioConfig) -> None:
    """Writes config.json, and vocoder_config.json if there is a vocoder, for `export`.

    Raises:
      ConversionError: as `baichuan_values`.
    """
    files = {"config.json": baichuan_values(config)}
    if config.vocoder is not None:
        files["vocoder_config.json"] = to_mapping(config.vocoder)
    for name, values in files.items():
        (Path(folder) / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def llm_config(root: _Reader) -> LLMConfig:
    """The language model's part of either config."""
    root.must("hidden_act", "silu")
    qwen2 = root.get("model_type", str) == "qwen2"
    heads, width = root.size("num_attention_heads"), root.size("hidden_size")
    return LLMConfig(
        vocab_size=root.size("vocab_size"),
        width=width,
        layers=root.size("num_hidden_layers"),
        heads=heads,
        kv_heads=root.size("num_key_value_heads", heads),
        head_dim=root.size("head_dim", width // heads),
        ffn_width=root.size("intermediate_size"),
        rope_theta=root.get("rope_theta", float),
        norm_epsilon=root.get("rms_norm_eps", float),
        qkv_bias=qwen2 or root.get("attention_qkv_bias", bool, False),
        tied_embeddings=root.get("tie_word_embeddings", bool, False),
        qkv_packed=not qwen2 and root.get("attention_qkv_pack", bool, True),
    )


def qwen2_config(values: Mapping[str, Any], where: str = "config") -> BaichuanAudioConfig:
    """The llm alone, from a Qwen2.5 folder's config.json."""
    root = _Reader(values, where)
    root.must("model_type", "qwen2")
    root.must("rope_scaling", None)
    root.must("use_sliding_window", False)
    if "rope_theta" not in values and isinstance(values.get("rope_parameters"), Mapping):
        # transformers 5 moved it
        rope = root.section("rope_parameters")
        rope.must("rope_type", "default")
        root = _Reader({**values, "rope_theta": rope.get("rope_theta", float)}, where)
    return BaichuanAudioConfig(llm=llm_config(root))


def whisper_config(values: Mapping[str, Any], where: str = "config") -> BaichuanAudioConfig:
    """The audio encoder alone, from a Whisper folder's config.json."""
    root = _Reader(values, where)
    root.must("model_type", "whisper")
    root.must("activation_function", "gelu")
    root.must("scale_embedding", False)
    return BaichuanAudioConfig(
        audio_encoder=AudioEncoderConfig(
            mel_bins=root.size("num_mel_bins"),
            width=root.size("d_model"),
            layers=root.size("encoder_layers"),
            heads=root.size("encoder_attention_heads"),
            ffn_width=root.size("encoder_ffn_dim"),
            max_positions=root.size("max_source_positions"),
        )
    )
