"""What a source folder or file is, and what of it goes where: kind, config, tensors, tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ba_jax.config import ConfigError, from_mapping
from ba_jax.convert import ctranslate2, hf_config, tables
from ba_jax.convert.engine import ConversionError, TensorSource
from ba_jax.convert.rows import Row
from ba_jax.convert.safetensors_io import SafetensorsFolder, parse_json, read_json
from ba_jax.convert.tables import audio_encoder
from ba_jax.convert.tables import vocoder as vocoder_table
from ba_jax.convert.torch_pickle import VocoderSource, open_vocoder
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.vocoder import VocoderConfig

CONFIG_FILE = "config.json"
VOCODER_CONFIG_FILE = "vocoder_config.json"
VOCODER_FILES = ("hift.pt", "hift.safetensors")

# Prefixes of tensors that a source may hold and our model has no place for.
LEFT_OUT = {
    # Images and video.
    "baichuan": (
        "model.visual_model.",
        "model.visual_bridge_model.",
        "visual_model.",
        "visual_bridge_model.",
    ),
    "qwen2": (),
    # The text decoder.
    "whisper": ("model.decoder.", "proj_out."),
    "ctranslate2": ("decoder/",),
    # CosyVoice's training checkpoints hold the discriminators too.
    "vocoder": ("discriminator.",),
}
KINDS = tuple(LEFT_OUT)
_MODEL_TYPES = {"omni": "baichuan", "qwen2": "qwen2", "whisper": "whisper"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Tensors from one place, with the tables that read them.

    Attributes:
      name: `model` or `vocoder`.
      source: the tensors.
      rows: their tables.
      config: the components that they make up.
      left_out: prefixes of names that are skipped.
    """

    name: str
    source: TensorSource
    rows: Sequence[Row]
    config: BaichuanAudioConfig
    left_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source; nothing but headers has been read (a pickle is read whole).

    Attributes:
      kind: one of `KINDS`.
      path: as given.
      parts: the model and, if there is one, the vocoder.
      files: name -> contents of the config files that the checkpoint keeps.
    """

    kind: str
    path: Path
    parts: tuple[Part, ...]
    files: dict[str, bytes]


def detect_kind(path: Path) -> str:
    """The kind of a source, from what lies there.

    Raises:
      ConversionError: nothing there, or nothing that we know.
    """
    if path.is_file():
        return "vocoder"
    if not path.is_dir():
        raise ConversionError(f"{path}: no such file or folder")
    if (path / ctranslate2.MODEL_FILE).is_file() and not list(path.glob("*.safetensors")):
        return "ctranslate2"
    if (path / CONFIG_FILE).is_file():
        model_type = read_json(path / CONFIG_FILE, "config").get("model_type")
        if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
            raise ConversionError(
                f"{path / CONFIG_FILE}: model_type is {model_type!r}, expected one of "
                f"{', '.join(_MODEL_TYPES)}"
            )
        return _MODEL_TYPES[model_type]
    if any((path / name).is_file() for name in VOCODER_FILES):
        return "vocoder"
    raise ConversionError(
        f"{path}: holds none of {CONFIG_FILE}, {ctranslate2.MODEL_FILE}, "
        f"{', '.join(VOCODER_FILES)}: not a folder that can be converted"
    )


def open_source(path: Path, kind: str | None = None, vocoder: Path | None = None) -> Source:
    """Opens a source of any kind.

    Args:
      path: a Baichuan-Audio, Omni-1.5, Qwen2.5, Whisper or CTranslate2 Whisper folder; a vocoder
        file or a folder that holds one.
      kind: one of `KINDS`; None: from content.
      vocoder: a vocoder file to go with a Baichuan folder, instead of the one inside.

    Raises:
      ConversionError: naming file, value and expectation, for anything missing or damaged.
    """
    path = Path(path)
    kind = kind or detect_kind(path)
    if vocoder is not None and kind != "baichuan":
        raise ConversionError(f"{path}: --vocoder goes with a Baichuan folder, this one is {kind}")
    return _OPEN[kind](path, vocoder)


def _open_baichuan(path: Path, vocoder: Path | None) -> Source:
    files = _config_files(path)
    config = hf_config.read_model_config(path)
    part = _part("model", SafetensorsFolder(path), tables.rows_for(config), config, "baichuan")
    vocoder = vocoder or _vocoder_file(path)
    if vocoder is None:
        return Source("baichuan", path, (part,), files)
    voice, voice_files = _vocoder_part(vocoder)
    return Source("baichuan", path, (part, voice), files | voice_files)


def _open_qwen2(path: Path, _: Path | None) -> Source:
    files = _config_files(path)
    values = parse_json(files[CONFIG_FILE], path / CONFIG_FILE, "config")
    config = hf_config.qwen2_config(values, str(path / CONFIG_FILE))
    part = _part("model", SafetensorsFolder(path), tables.rows_for(config), config, "qwen2")
    return Source("qwen2", path, (part,), files)


def _open_whisper(path: Path, _: Path | None) -> Source:
    files = _config_files(path)
    values = parse_json(files[CONFIG_FILE], path / CONFIG_FILE, "config")
    config = hf_config.whisper_config(values, str(path / CONFIG_FILE))
    rows = audio_encoder.whisper_rows(config.audio_encoder)
    part = _part("model", SafetensorsFolder(path), rows, config, "whisper")
    return Source("whisper", path, (part,), files)


def _open_ctranslate2(path: Path, _: Path | None) -> Source:
    model = ctranslate2.CTranslate2File(path / ctranslate2.MODEL_FILE)
    values = ctranslate2.whisper_config_dict(model)
    config = hf_config.whisper_config(values, model.label)
    rows = audio_encoder.ctranslate2_rows(config.audio_encoder)
    part = _part("model", model, rows, config, "ctranslate2")
    # Its own config.json holds no sizes.
    return Source("ctranslate2", path, (part,), {CONFIG_FILE: _to_json(values)})


def _open_vocoder(path: Path, _: Path | None) -> Source:
    file = path if path.is_file() else _vocoder_file(path)
    if file is None:
        raise ConversionError(f"{path}: holds none of {', '.join(VOCODER_FILES)}")
    part, files = _vocoder_part(file)
    return Source("vocoder", path, (part,), files)


_OPEN: dict[str, Callable[[Path, Path | None], Source]] = {
    "baichuan": _open_baichuan,
    "qwen2": _open_qwen2,
    "whisper": _open_whisper,
    "ctranslate2": _open_ctranslate2,
    "vocoder": _open_vocoder,
}


def _part(name, source, rows, config, kind) -> Part:
    return Part(name, source, rows, config, LEFT_OUT[kind])


def _vocoder_file(folder: Path) -> Path | None:
    found = [name for name in VOCODER_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ConversionError(f"{folder}: holds {' and '.join(found)}: choose with --vocoder")
    return folder / found[0] if found else None


def _vocoder_part(file: Path) -> tuple[Part, dict[str, bytes]]:
    """The vocoder in `file`; its sizes are those of a `vocoder_config.json` beside it, if any."""
    source = open_vocoder(file)
    config_file = Path(file).parent / VOCODER_CONFIG_FILE
    if config_file.is_file():
        config = read_vocoder_config(config_file)
        data = config_file.read_bytes()
    else:
        config = _vocoder_config_from(source)
        data = _to_json({f: getattr(config, f) for f in ("base_channels", "f0_channels")})
    whole = BaichuanAudioConfig(vocoder=config)
    part = _part("vocoder", source, vocoder_table.rows(config), whole, "vocoder")
    return part, {VOCODER_CONFIG_FILE: data}


def _vocoder_config_from(source: VocoderSource) -> VocoderConfig:
    try:
        return vocoder_table.config_from_shapes({n: t.shape for n, t in source.tensors.items()})
    except ValueError as error:
        raise ConversionError(f"{source.label}: {error}") from error


def read_vocoder_config(path: Path) -> VocoderConfig:
    """The sizes in a `vocoder_config.json`: fields of `VocoderConfig`.

    Raises:
      ConversionError: a missing, unknown or ill-typed field, or sizes that do not fit together.
    """
    try:
        return from_mapping(VocoderConfig, read_json(path, "vocoder config"), str(path))
    except ConfigError as error:
        raise ConversionError(str(error)) from error
    except ValueError as error:
        raise (
            error if isinstance(error, ConversionError) else ConversionError(f"{path}: {error}")
        ) from error


def _config_files(folder: Path) -> dict[str, bytes]:
    if not (folder / CONFIG_FILE).is_file():
        raise ConversionError(f"{folder / CONFIG_FILE}: no such file, expected the model's config")
    return {CONFIG_FILE: (folder / CONFIG_FILE).read_bytes()}


def _to_json(values: dict) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def checkpoint_config(folder: Path) -> tuple[str, BaichuanAudioConfig]:
    """Kind and config of a checkpoint folder, from its `config.json` and `vocoder_config.json`.

    Raises:
      ConversionError: neither is there, or one is damaged.
    """
    folder = Path(folder)
    vocoder = None
    if (folder / VOCODER_CONFIG_FILE).is_file():
        vocoder = read_vocoder_config(folder / VOCODER_CONFIG_FILE)
    if not (folder / CONFIG_FILE).is_file():
        if vocoder is None:
            raise ConversionError(
                f"{folder}: holds neither {CONFIG_FILE} nor {VOCODER_CONFIG_FILE}, expected a "
                "checkpoint that ba_jax.convert wrote"
            )
        return "vocoder", BaichuanAudioConfig(vocoder=vocoder)
    kind = detect_kind(folder)
    if kind == "baichuan":
        return kind, hf_config.read_model_config(folder, vocoder)
    values = read_json(folder / CONFIG_FILE, "config")
    read = hf_config.qwen2_config if kind == "qwen2" else hf_config.whisper_config
    return kind, read(values, str(folder / CONFIG_FILE))


def model_rows(kind: str, config: BaichuanAudioConfig) -> list[Row]:
    """Tables of a checkpoint's model, all but the vocoder, under the names of its kind."""
    if kind == "whisper":
        return audio_encoder.whisper_rows(config.audio_encoder)
    return tables.rows_for(config, tuple(c for c in config.components if c != "vocoder"))
