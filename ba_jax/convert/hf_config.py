"""Model configs from the config files that come with weights, and the release's file from a config.

Each format is a table of keys; the release's table runs both ways, like those of the weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.config import from_mapping, to_mapping
from ba_jax.convert.engine import ConversionError, report_problems
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.vocab import COMPONENTS, AudioTokens

MISSING = object()
MAX_SIZE = 2**31 - 1
MAX_LAYERS = 256
MAX_TABLE = 2**26  # numbers of a table of positions, which is made while shapes are traced


# --- kinds of values ------------------------------------------------------------------------------


def _typed(value: Any, kind: type) -> Any:
    if kind is float and type(value) is int and value.bit_length() < 1024:
        value = float(value)
    if type(value) is not kind:
        raise ConversionError(f"{value!r:.60}, expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ConversionError(f"{value!r}, expected a finite number")
    if kind in (int, float) and value < 0:
        raise ConversionError(f"{value!r} is negative")
    return value


def _positive(value: Any) -> float:
    value = _typed(value, float)
    if not value:
        raise ConversionError(f"{value!r}, expected more than 0")
    return value


def _size(value: Any, most: int = MAX_SIZE) -> int:
    if _typed(value, int) < 1:
        raise ConversionError(f"{value}, expected at least 1")
    if value > most:
        raise ConversionError(f"{value!r:.60}, expected at most {most}")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not _typed(values, list) or any(
        type(v) is not int or not 1 <= v <= MAX_SIZE for v in values
    ):
        raise ConversionError(f"{values!r:.60}, expected positive integers")
    return tuple(values)


def _single(values: Any) -> int:
    if len(_sizes(values)) != 1:
        raise ConversionError(f"{tuple(values)}, expected a single entry")
    return values[0]


@dataclasses.dataclass(frozen=True)
class ValueKind:
    """Check and convert a JSON value (`parse`), and convert ours to JSON (`format`)."""

    parse: Callable[[Any], Any]
    format: Callable[[Any], Any] = lambda value: value


def _schedule(value: Any) -> str:
    if value not in ("cosine", "linear"):
        raise ConversionError(f"{value!r:.60}, expected 'cosine' or 'linear'")
    return value


SIZE = ValueKind(_size)
LAYERS = ValueKind(lambda value: _size(value, MAX_LAYERS))
SIZES = ValueKind(_sizes, list)
SINGLE = ValueKind(_single, lambda value: [value])
# The list's last entry stands for the projection back to mel bins and is not used.
ALL_BUT_LAST = ValueKind(lambda values: _sizes(values)[:-1], lambda values: [*values, values[-1]])
TOKEN_ID, NUMBER, FLAG = (
    ValueKind(lambda value, kind=kind: _typed(value, kind)) for kind in (int, float, bool)
)
POSITIVE, SCHEDULE = ValueKind(_positive), ValueKind(_schedule)


# --- values in several places ---------------------------------------------------------------------

Lookup = Callable[[Mapping[str, Any]], Any]
# Settings of RoPE that leave the rotation as it is.
PLAIN_ROPE = {
    "rope_type": "default",
    "type": "default",
    "factor": 1.0,
    "attention_factor": 1.0,
    "partial_rotary_factor": 1.0,
}


def _unsupported(where: str, value: Any, expected: Any) -> ConversionError:
    return ConversionError(f"{where} = {value!r:.80} is not supported, expected {expected!r}")


def _equal(a: Any, b: Any) -> bool:
    """Compare JSON values, in which `true` is no number."""
    return a == b and (type(a) is bool) == (type(b) is bool)


def _agreed(places: Mapping[str, Any]) -> Any:
    """Return the value that all places give, or `MISSING` if none gives any."""
    given = {where: value for where, value in places.items() if value is not None}
    value, *others = given.values() or [MISSING]
    if any(other != value for other in others):
        listing = ", ".join(f"{where} = {other!r:.60}" for where, other in given.items())
        raise ConversionError(f"{listing}: expected the same value")
    return value


def _rope_settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the settings of transformers 4 (`rope_scaling`) and 5, those of layer types apart."""
    for name in ("rope_scaling", "rope_parameters"):
        settings = values.get(name) or {}
        if type(settings) is not dict:
            raise ConversionError(f"{name} = {settings!r:.60}, expected dict")
        for key, inner in settings.items():
            if type(inner) is dict:
                yield f"{name}: {key}: ", inner
        yield f"{name}: ", {k: v for k, v in settings.items() if type(v) is not dict}


def _rope_theta(values: Mapping[str, Any]) -> Any:
    """Look up the base of RoPE; whatever else would change the rotation is refused."""
    thetas = {"rope_theta": values.get("rope_theta")}
    for where, settings in _rope_settings(values):
        thetas[f"{where}rope_theta"] = settings.get("rope_theta")
        for key in sorted(settings, key=lambda key: key not in ("rope_type", "type")):
            value, plain = settings[key], PLAIN_ROPE.get(key)
            if key in ("rope_type", "type") and value == "linear" and settings.get("factor") == 1:
                continue  # positions are divided by 1
            if key != "rope_theta" and value is not None and not _equal(value, plain):
                raise _unsupported(f"{where}{key}", value, plain)
    return _agreed(thetas)


def _qkv_bias(values: Mapping[str, Any]) -> Any:
    return _agreed({key: values.get(key) for key in ("attention_qkv_bias", "attention_bias")})


def _window(values: Mapping[str, Any]) -> Any:
    """Look up the window, which `use_sliding_window: false` switches off."""
    return None if values.get("use_sliding_window") is False else values.get("sliding_window")


def _layer_types(values: Mapping[str, Any]) -> Any:
    """Look up the kinds of attention other than full attention."""
    kinds = values.get("layer_types")
    if type(kinds) is list:
        kinds = [kind for kind in kinds if kind != "full_attention"]
    return kinds or None


# --- tables ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ConfigKey:
    """A key of a config file and the fields that it sets.

    Attributes:
      path: sections and key, joined by dots.
      fields: `component.field`, or several separated by spaces; the first is the one written back.
        Names without a component are resolved in `_complete`.
      kind: how the value is checked and converted.
      default: value if the key is missing or null; `MISSING`: the key is required.
      write_default: write the key even if the field has its default.
      lookup: how the value is read, of its section, if not by the key.
    """

    path: str
    fields: str
    kind: ValueKind = SIZE
    default: Any = MISSING
    write_default: bool = True
    lookup: Lookup | None = None


@dataclasses.dataclass(frozen=True)
class FixedKey:
    """A key with a constant value, the only one supported, beside null, if `checked`."""

    path: str
    value: Any
    checked: bool = True
    written: bool = True
    lookup: Lookup | None = None


ConfigTable = Sequence[ConfigKey | FixedKey]


def _section(name: str, *rows: ConfigKey | FixedKey) -> list[ConfigKey | FixedKey]:
    return [dataclasses.replace(row, path=f"{name}.{row.path}") for row in rows]


# Settings of other decoders, with the values that leave the computation as it is.
PLAIN_DECODER = {
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "use_mrope": False,
    "is_causal": True,
    "add_cross_attention": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "dual_chunk_attention_config": None,
    "use_qk_norm": False,
    "mlp_bias": False,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "final_logit_softcapping": None,
    "quantization_config": None,
    "text_config": None,
}
LLM_KEYS = (
    *(FixedKey(key, value, written=False) for key, value in PLAIN_DECODER.items()),
    FixedKey("layer_types", "full_attention", written=False, lookup=_layer_types),
    FixedKey("hidden_act", "silu"),
    ConfigKey("vocab_size", "llm.vocab_size"),
    ConfigKey("hidden_size", "llm.width"),
    ConfigKey("intermediate_size", "llm.ffn_width"),
    ConfigKey("num_hidden_layers", "llm.layers", LAYERS),
    ConfigKey("num_attention_heads", "llm.heads"),
    ConfigKey("num_key_value_heads", "llm.kv_heads", default=None),
    ConfigKey("head_dim", "llm.head_dim", default=None),
    ConfigKey("rope_theta", "llm.rope_theta", POSITIVE, lookup=_rope_theta),
    ConfigKey("rms_norm_eps", "llm.norm_epsilon", NUMBER),
    ConfigKey("tie_word_embeddings", "llm.tied_embeddings", FLAG, False),
)
QWEN2_KEYS = (
    FixedKey("model_type", "qwen2"),
    FixedKey("attention_bias", True),
    *LLM_KEYS,
)
WHISPER_KEYS = (
    FixedKey("model_type", "whisper"),
    FixedKey("activation_function", "gelu"),
    FixedKey("scale_embedding", False),
    ConfigKey("num_mel_bins", "audio_encoder.mel_bins"),
    ConfigKey("d_model", "audio_encoder.width"),
    ConfigKey("encoder_layers", "audio_encoder.layers", LAYERS),
    ConfigKey("encoder_attention_heads", "audio_encoder.heads"),
    ConfigKey("encoder_ffn_dim", "audio_encoder.ffn_width"),
    ConfigKey("max_source_positions", "audio_encoder.max_positions"),
)
AUDIO_KEYS = (
    FixedKey("enable", True),
    ConfigKey("num_mel_bins", "audio_encoder.mel_bins"),
    ConfigKey("d_model", "audio_encoder.width vq_bridge.width audio_decoder.width"),
    ConfigKey("encoder_layers", "audio_encoder.layers", LAYERS),
    ConfigKey("encoder_attention_heads", "audio_encoder.heads"),
    ConfigKey("encoder_ffn_dim", "audio_encoder.ffn_width"),
    ConfigKey("decoder_layers", "audio_decoder.layers", LAYERS),
    ConfigKey("decoder_attention_heads", "audio_decoder.heads"),
    ConfigKey("decoder_ffn_dim", "audio_decoder.ffn_width"),
    ConfigKey("decoder_kernel_size", "audio_decoder.kernel_size"),
    ConfigKey("decoder_stride_size", "stride"),
    ConfigKey("avg_pooler", "vq_bridge.pooling"),
    FixedKey("activation_function", "gelu", written=False),
    FixedKey("kernel_size", 3),
    FixedKey("stride_size", 2),
    FixedKey("n_fft", 400),
    ConfigKey("hop_length", "audio_decoder.coarse_hop"),
    ConfigKey("sampling_rate", "audio_decoder.coarse_sample_rate"),
    ConfigKey("max_audio_seconds", "seconds"),
    FixedKey("split_overlap", 0.0, checked=False),
    ConfigKey("audio_head_transformer_layers", "audio_head.layers", LAYERS),
    FixedKey("vq_config.enable", True),
    ConfigKey(
        "vq_config.codebook_sizes",
        "vq_bridge.codebook_sizes audio_embed.codebook_sizes audio_head.codebook_sizes",
        SIZES,
    ),
    *(
        ConfigKey(f"{field.name}_token_id", f"tokens.{field.name}", TOKEN_ID)
        for field in dataclasses.fields(AudioTokens)
    ),
)
FLOW_KEYS = (
    FixedKey("enable", True),
    FixedKey("use_hires_mel", True, checked=False),
    FixedKey("use_hidden_states_before_dconv2", True),
    FixedKey("sampling_rate", 24000, checked=False),
    FixedKey("hop_length", 480, checked=False),
    ConfigKey("max_audio_seconds", "flow_seconds", default=None),
    ConfigKey("prenet_in_dim", "flow_prenet.in_width"),
    ConfigKey("prenet_out_dim", "flow_prenet.mel_bins"),
    ConfigKey("prenet_d_model", "flow_prenet.width"),
    ConfigKey("prenet_attention_heads", "flow_prenet.heads"),
    ConfigKey("prenet_ffn_dim", "flow_prenet.ffn_width"),
    ConfigKey("prenet_nlayers", "flow_prenet.layers", LAYERS),
    FixedKey("prenet_activation_function", "gelu"),
    ConfigKey("prenet_max_source_positions", "flow_prenet.max_positions"),
    ConfigKey("prenet_target_mel_length_scale_ratio", "flow_prenet.length_ratio", POSITIVE),
    FixedKey("unet_use_omni_attn", False),
    ConfigKey("in_channels", "flow_unet.mel_bins"),
    FixedKey("spk_emb_dim", 0),
    ConfigKey("diffusion_steps", "flow_matching.steps"),
    ConfigKey("channels", "flow_unet.channels", SINGLE),
    FixedKey("dropout", 0.0, checked=False),
    ConfigKey("attention_head_dim", "flow_unet.head_dim"),
    ConfigKey("n_blocks", "flow_unet.blocks", LAYERS),
    ConfigKey("num_mid_blocks", "flow_unet.mid_blocks", LAYERS),
    ConfigKey("num_heads", "flow_unet.heads"),
    FixedKey("act_fn", "gelu"),
    ConfigKey("cfm_params.sigma_min", "flow_matching.sigma_min", NUMBER, 1e-4),
    FixedKey("cfm_params.solver", "euler"),
    ConfigKey("cfm_params.t_scheduler", "flow_matching.schedule", SCHEDULE),
    ConfigKey("cfm_params.training_cfg_rate", "flow_matching.condition_dropout", NUMBER),
    ConfigKey("cfm_params.inference_cfg_rate", "flow_matching.guidance", NUMBER),
    FixedKey("cfm_params.reg_loss_type", "l1", checked=False),
    # Not a key of the release: its flow has no residual_std.
    ConfigKey("cfm_params.residual_std", "flow_matching.residual_std", NUMBER, 0.0, False),
)
VOCODER_KEYS = (  # of the audio decoder's refine net, whose output the reference can vocode too
    FixedKey("enable", True),
    ConfigKey("sampling_rate", "audio_decoder.mel_sample_rate"),
    ConfigKey("hop_length", "audio_decoder.mel_hop"),
    FixedKey("n_fft", 1024, checked=False),
    ConfigKey("num_mel_bins", "audio_decoder.mel_bins"),
    ConfigKey("channels", "audio_decoder.refine_channels", ALL_BUT_LAST),
)
BAICHUAN_KEYS = (
    FixedKey("architectures", ["OmniForCausalLM"], checked=False),
    FixedKey("model_type", "omni"),
    *LLM_KEYS,
    # Qwen2's windows are off unless use_sliding_window is true; other decoders lack that switch.
    FixedKey("sliding_window", None, written=False, lookup=_window),
    ConfigKey("attention_qkv_bias", "llm.qkv_bias", FLAG, False, lookup=_qkv_bias),
    ConfigKey("attention_qkv_pack", "llm.qkv_packed", FLAG, True),
    FixedKey("max_position_embeddings", 8192, checked=False),
    FixedKey("multimodal", ["audio", "audiogen"], checked=False),
    FixedKey("position_embedding_type", "rope"),
    FixedKey("sparse_attention_heads", None, checked=False),
    FixedKey("sparse_attention_layers", []),
    FixedKey("use_norm_head", False),
    FixedKey("video_config", {"enable": False}, checked=False),
    FixedKey("visual_config", {"enable": False}, checked=False),
    *_section("audio_config", *AUDIO_KEYS),
    *_section("flow_matching_config", *FLOW_KEYS),
    *_section("vocoder_config", *VOCODER_KEYS),
)


# --- running a table both ways --------------------------------------------------------------------


def _read_fields(table: ConfigTable, values: Any, where: str) -> dict[str, Any]:
    """Read `component.field` -> value of a config file, reporting all faults at once."""
    if not isinstance(values, Mapping):
        raise ConversionError(f"{where}: expected an object, got {values!r}")
    fields: dict[str, Any] = {}
    problems = []
    for row in table:
        try:
            fields |= _read_row(row, values)
        except ConversionError as error:
            problems.append(str(error))
    report_problems(where, list(dict.fromkeys(problems)))
    return fields


def _read_row(row: ConfigKey | FixedKey, values: Mapping[str, Any]) -> dict[str, Any]:
    *sections, key = row.path.split(".")
    prefix = ""
    for section in sections:
        if section not in values:
            raise ConversionError(f"{prefix}key {section!r} is missing")
        values = values[section]
        if type(values) is not dict:
            raise ConversionError(f"{prefix}{section} = {values!r:.60}, expected dict")
        prefix += f"{section}: "
    value = values.get(key, MISSING) if row.lookup is None else row.lookup(values)
    if isinstance(row, FixedKey):
        absent = value is MISSING or value is None
        if row.checked and not absent and not _equal(value, row.value):
            raise _unsupported(f"{prefix}{key}", value, row.value)
        return {}
    if row.default is not MISSING and (value is MISSING or value is None):
        return dict.fromkeys(row.fields.split(), row.default)
    if value is MISSING:
        raise ConversionError(f"{prefix}key {key!r} is missing")
    try:
        return dict.fromkeys(row.fields.split(), row.kind.parse(value))
    except ConversionError as error:
        raise ConversionError(f"{prefix}{key} = {error}") from None


def _write_fields(table: ConfigTable, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested values of a config file, the inverse of `_read_fields`."""
    result: dict[str, Any] = {}
    for row in table:
        if isinstance(row, FixedKey):
            if not row.written:
                continue
            value = row.value
        else:
            value = fields[row.fields.split()[0]]
            if not row.write_default and value == row.default:
                continue
            value = row.kind.format(value)
        *sections, key = row.path.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return result


def _build(fields: Mapping[str, Any]) -> BaichuanAudioConfig:
    """Build a config; a `ValueError` says which sizes do not fit together."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        component, field = name.split(".")
        nested.setdefault(component, {})[field] = value
    return from_mapping(BaichuanAudioConfig, nested)


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace values of the file that are no fields of ours by the fields that follow from them."""
    fields = dict(fields)
    if "llm.width" in fields:
        heads = fields["llm.heads"]
        fields["llm.kv_heads"] = fields["llm.kv_heads"] or heads
        fields["llm.head_dim"] = fields["llm.head_dim"] or fields["llm.width"] // heads
    if "seconds" in fields:
        del fields["flow_seconds"]
        rate, hop = (fields[f"audio_decoder.coarse_{n}"] for n in ("sample_rate", "hop"))
        frames = fields.pop("seconds") * rate // hop
        fields["audio_encoder.max_positions"] = frames // 2
        fields["audio_decoder.max_positions"] = frames
        fields["audio_decoder.upsample_rates"] = (fields["vq_bridge.pooling"], fields.pop("stride"))
        fields["audio_embed.width"] = fields["audio_head.width"] = fields["llm.width"]
    return fields


def _parse(table: ConfigTable, values: Any, where: str, **more: Any) -> BaichuanAudioConfig:
    fields = _complete(_read_fields(table, values, where))
    try:
        config = _build(fields | more)
    except ValueError as error:
        raise ConversionError(f"{where}: {error}") from error
    for name in ("audio_encoder", "audio_decoder", "flow_prenet"):
        sizes = getattr(config, name)
        if sizes and sizes.max_positions * sizes.width > MAX_TABLE:
            raise ConversionError(
                f"{where}: {name}: {sizes.max_positions} positions of width {sizes.width}, "
                f"expected at most {MAX_TABLE} numbers"
            )
    return config


# --- formats --------------------------------------------------------------------------------------


def parse_baichuan_config(values: Mapping[str, Any], where: str = "config") -> BaichuanAudioConfig:
    """Parse config.json of Baichuan-Audio or Omni-1.5, which does not describe the vocoder.

    Raises:
      ConversionError: naming `where`, key and value of everything missing or not supported.
    """
    config = _parse(BAICHUAN_KEYS, values, where)
    ids = dataclasses.asdict(config.tokens)
    size = config.llm.vocab_size
    faulty = [f"{name}_token_id = {n}" for name, n in ids.items() if n >= size]
    if faulty:
        listing = ", ".join(faulty)
        raise ConversionError(f"{where}: {listing}, expected less than vocab_size = {size}")
    if len(set(ids.values())) < len(ids):
        raise ConversionError(f"{where}: two of the audio tokens have the same id: {ids}")
    return config


def parse_qwen2_config(values: Mapping[str, Any], where: str = "config") -> BaichuanAudioConfig:
    """Parse config.json of a Qwen2.5 folder: the language model alone."""
    unpacked = {"llm.qkv_bias": True, "llm.qkv_packed": False}
    return _parse(QWEN2_KEYS, values, where, **unpacked)


def parse_whisper_config(values: Mapping[str, Any], where: str = "config") -> BaichuanAudioConfig:
    """Parse config.json of a Whisper folder: the audio encoder alone."""
    return _parse(WHISPER_KEYS, values, where)


def format_baichuan_config(config: BaichuanAudioConfig) -> dict[str, Any]:
    """Return the values of the release's config.json, the inverse of `parse_baichuan_config`.

    The file does not describe the vocoder; vision is switched off.

    Raises:
      ConversionError: a component is missing, or the format has no key for a setting of the model.
    """
    absent = [c for c in COMPONENTS if c != "vocoder" and getattr(config, c) is None]
    if absent:
        raise ConversionError(f"config.json describes whole models: this one has no {absent}")
    if config.vq_bridge.decoder_width == config.vq_bridge.width:
        bridge = dataclasses.replace(config.vq_bridge, decoder_width=None)
        config = dataclasses.replace(config, vq_bridge=bridge)
    decoder = config.audio_decoder
    fields = {
        f"{component}.{field}": value
        for component, sizes in dataclasses.asdict(config).items()
        for field, value in (sizes or {}).items()
    }
    seconds = decoder.max_positions * decoder.coarse_hop // decoder.coarse_sample_rate
    fields |= {"seconds": seconds, "flow_seconds": seconds, "stride": decoder.upsample_rates[1]}
    values = _write_fields(BAICHUAN_KEYS, fields)
    token_ids = dataclasses.asdict(config.tokens)
    values["multimodal_special_token_list"] = sorted(token_ids.values())
    _check_description(values, config)
    return dict(sorted(values.items()))


def _check_description(values: dict[str, Any], config: BaichuanAudioConfig) -> None:
    """Raise `ConversionError` unless `values` are read back as `config`."""
    fields = _complete(_read_fields(BAICHUAN_KEYS, values, "config"))
    try:
        described = dataclasses.replace(_build(fields), vocoder=config.vocoder)
    except ValueError as error:  # sizes that need a setting without a key
        raise ConversionError(f"config.json cannot describe this model: {error}") from error
    differing = [
        field.name
        for field in dataclasses.fields(config)
        if getattr(described, field.name) != getattr(config, field.name)
    ]
    if differing:
        raise ConversionError(f"config.json cannot describe this model's {differing}")


def write_model_config(folder: Path, config: BaichuanAudioConfig) -> None:
    """Write config.json, and vocoder_config.json if there is a vocoder, for `export`.

    Raises:
      ConversionError: see `format_baichuan_config`.
    """
    files = {"config.json": format_baichuan_config(config)}
    if config.vocoder is not None:
        files["vocoder_config.json"] = to_mapping(config.vocoder)
    for name, values in files.items():
        (Path(folder) / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
