"""Kind, config, tensors and conversion tables of a source folder or file."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ba_jax.checkpoints.layout import CONFIG_FILE
from ba_jax.config import from_mapping
from ba_jax.convert import ctranslate2, hf_config, tables
from ba_jax.convert.engine import ConversionError, TensorSource, WeightRow, source_names
from ba_jax.convert.names import RenamedSource, release_names
from ba_jax.convert.safetensors_io import SafetensorsFile, SafetensorsFolder, read_json
from ba_jax.convert.tables import audio_encoder, llm
from ba_jax.convert.tables import vocoder as vocoder_table
from ba_jax.convert.torch_pickle import PickleFile
from ba_jax.files import list_files, missing
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.vocoder_config import VocoderConfig

VOCODER_CONFIG_FILE = "vocoder_config.json"
VOCODER_FILES = ("hift.pt", "hift.safetensors")
# Files of a model, beside which a vocoder is not the whole source.
MODEL_FILES = (
    "*.safetensors*",
    "pytorch_model*",
    "tokenizer*",
    "generation_config.json",
    "configuration_*.py",
    "modeling_*.py",
)

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
_KIND_OF_MODEL_TYPE = {"omni": "baichuan", "qwen2": "qwen2", "whisper": "whisper"}


@dataclasses.dataclass(frozen=True)
class SourcePart:
    """Tensors of one file or folder, and the tables that place them.

    Attributes:
      source: the tensors.
      rows: their tables.
      config: the components that they make up.
      left_out: prefixes of names that are skipped.
    """

    source: TensorSource
    rows: Sequence[WeightRow]
    config: BaichuanAudioConfig
    left_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """An opened source: only headers have been read, but a pickle is read whole.

    Attributes:
      kind: an entry of `KINDS`.
      path: the folder or file.
      parts: the model and, if there is one, the vocoder.
      files: name -> contents of the config files that the checkpoint keeps.
    """

    kind: str
    path: Path
    parts: tuple[SourcePart, ...]
    files: dict[str, bytes]


def detect_kind(path: Path) -> str:
    """Return the kind of a source from the files in it.

    Raises:
      ConversionError: no such path, or no known kind.
    """
    if path.is_file():
        return "vocoder"
    if not path.is_dir():
        raise ConversionError(f"{path}: no such file or folder")
    if (path / ctranslate2.MODEL_FILE).is_file() and not list_files(
        path, ".safetensors", deep=False
    ):
        return "ctranslate2"
    if (path / CONFIG_FILE).is_file():
        model_type = read_json(path / CONFIG_FILE, "config").get("model_type")
        if not isinstance(model_type, str) or model_type not in _KIND_OF_MODEL_TYPE:
            raise ConversionError(
                f"{path / CONFIG_FILE}: model_type is {model_type!r}, expected one of "
                f"{', '.join(_KIND_OF_MODEL_TYPE)}"
            )
        return _KIND_OF_MODEL_TYPE[model_type]
    model = sorted({file.name for name in MODEL_FILES for file in path.glob(name)})
    model = [name for name in model if name not in VOCODER_FILES and not name.startswith(".")]
    if model or (path / CONFIG_FILE).is_symlink():
        raise ConversionError(
            f"{missing(path / CONFIG_FILE)}, expected the config of the model"
            + (f", which goes with {', '.join(model[:2])}" if model else "")
            + "; --kind vocoder imports a vocoder alone"
        )
    if any((path / name).is_file() for name in VOCODER_FILES):
        return "vocoder"
    places = ("*", "snapshots/*", "*/snapshots/*")  # Hugging Face's cache
    inner = sorted(str(p.parent) for place in places for p in path.glob(f"{place}/{CONFIG_FILE}"))
    raise ConversionError(
        f"{path}: holds none of {CONFIG_FILE}, {ctranslate2.MODEL_FILE}, "
        f"{', '.join(VOCODER_FILES)}: not a folder that can be converted"
        + (f"; did you mean {inner[0]}?" if inner else "")
    )


def open_source(path: Path, kind: str | None = None, vocoder: Path | None = None) -> WeightSource:
    """Open a source of any kind.

    Args:
      path: a Baichuan-Audio, Omni-1.5, Qwen2.5, Whisper or CTranslate2 Whisper folder; a vocoder
        file or a folder that holds one.
      kind: an entry of `KINDS`; None: detect it.
      vocoder: a vocoder file to import with a Baichuan folder, instead of the one inside.

    Raises:
      ConversionError: naming file, value and expectation, for anything missing or damaged.
    """
    path, vocoder = Path(path), vocoder and Path(vocoder)
    kind = kind or detect_kind(path)
    if vocoder is not None and kind != "baichuan":
        raise ConversionError(f"{path}: --vocoder goes with a Baichuan folder, this one is {kind}")
    if kind == "ctranslate2":
        part, files = _open_ctranslate2(path)
    elif kind == "vocoder":
        part, files = _open_vocoder(path)
    else:
        part, files = _open_model(path, kind)
    parts = [part]
    file = vocoder or (_vocoder_file(path) if kind == "baichuan" else None)
    if file is not None:
        part, vocoder_files = _open_vocoder(file)
        parts.append(part)
        files = files | vocoder_files
    return WeightSource(kind, path, tuple(parts), files)


_Opened = tuple[SourcePart, dict[str, bytes]]
_PARSERS: dict[str, Callable[[Any, str], BaichuanAudioConfig]] = {
    "baichuan": hf_config.parse_baichuan_config,
    "qwen2": hf_config.parse_qwen2_config,
    "whisper": hf_config.parse_whisper_config,
}


def _open_model(path: Path, kind: str) -> _Opened:
    """Open a Hugging Face folder."""
    file = path / CONFIG_FILE
    values = read_json(file, "config")
    config = _PARSERS[kind](values, str(file))
    source: TensorSource = SafetensorsFolder(path)
    rows, left_out = model_rows(kind, config), LEFT_OUT[kind]
    if config.llm is not None and config.llm.tied_embeddings:
        left_out += (llm.HEAD,)
    names = release_names(source.tensors, source_names(rows), left_out)
    if any(name != new for name, new in names.items()):
        source = RenamedSource(source, names)
    part = SourcePart(source, rows, config, left_out)
    return part, {CONFIG_FILE: file.read_bytes()}


def _open_ctranslate2(path: Path) -> _Opened:
    model = ctranslate2.CTranslate2File(path / ctranslate2.MODEL_FILE)
    values = ctranslate2.read_whisper_config(model)
    config = hf_config.parse_whisper_config(values, model.label)
    rows = audio_encoder.ctranslate2_rows(config.audio_encoder)
    # The config.json of such a folder holds no sizes: write one that does.
    files = {CONFIG_FILE: _to_json(values)}
    return SourcePart(model, rows, config, LEFT_OUT["ctranslate2"]), files


def _open_vocoder(path: Path) -> _Opened:
    """Open a vocoder file or folder, with the sizes of a `vocoder_config.json` there, if any."""
    file = _vocoder_file(path) if path.is_dir() else path
    if file is None:
        raise ConversionError(f"{path}: holds none of {', '.join(VOCODER_FILES)}")
    source = open_vocoder(file)
    config_file = file.parent / VOCODER_CONFIG_FILE
    if config_file.is_file():
        config = read_vocoder_config(config_file)
        data = config_file.read_bytes()
    else:
        shapes = {name: info.shape for name, info in source.tensors.items()}
        try:
            config = vocoder_table.config_from_shapes(shapes)
        except ValueError as error:
            raise ConversionError(f"{source.label}: {error}") from error
        data = _to_json({f: getattr(config, f) for f in ("base_channels", "f0_channels")})
    rows = vocoder_table.rows(config)
    part = SourcePart(source, rows, BaichuanAudioConfig(vocoder=config), LEFT_OUT["vocoder"])
    return part, {VOCODER_CONFIG_FILE: data}


def _to_json(values: dict) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


# --- vocoders -------------------------------------------------------------------------------------

# The names of torch.nn.utils.parametrizations.weight_norm: 0 is the magnitude, 1 the direction.
_WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def _weight_norm_name(name: str) -> str:
    """Return `ups.0.weight_g` for `ups.0.parametrizations.weight.original0`."""
    for long, short in _WEIGHT_NORM.items():
        if name.endswith(f".{long}"):
            return name.removesuffix(long) + short
    return name


def open_vocoder(path: str | os.PathLike) -> RenamedSource:
    """Open `hift.pt` or `hift.safetensors`; the format is detected from the content.

    Names are those of CosyVoice 2's release: no prefix, weight norm as `weight_g` and `weight_v`.

    Raises:
      ConversionError: neither, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{missing(path)}, expected a vocoder (hift.pt or safetensors)")
    with open(path, "rb") as file:
        head = file.read(9)
    pickled = zipfile.is_zipfile(path) or len(head) < 9 or head[8:] != b"{"
    source = PickleFile(path) if pickled else SafetensorsFile(path)
    names = {name: _weight_norm_name(name) for name in source.tensors}
    # The names do not depend on the sizes.
    expected = source_names(vocoder_table.rows(VocoderConfig(512, 512)))
    renamed = release_names(names.values(), expected, LEFT_OUT["vocoder"])
    return RenamedSource(source, {name: renamed[new] for name, new in names.items()})


def _vocoder_file(folder: Path) -> Path | None:
    names = [name for name in VOCODER_FILES if os.path.lexists(folder / name)]
    if len(names) > 1:
        raise ConversionError(f"{folder}: holds {' and '.join(names)}: choose with --vocoder")
    return folder / names[0] if names else None


def read_vocoder_config(path: Path) -> VocoderConfig:
    """Read the fields of `VocoderConfig` from a `vocoder_config.json`.

    Raises:
      ConversionError: a missing, unknown or ill-typed field, or sizes that do not fit together.
    """
    values = read_json(path, "vocoder config")
    try:
        return from_mapping(VocoderConfig, values, str(path))
    except ValueError as error:
        message = str(error)
        raise ConversionError(message if str(path) in message else f"{path}: {error}") from error


# --- our checkpoints ------------------------------------------------------------------------------


def checkpoint_config(folder: Path) -> tuple[str, BaichuanAudioConfig]:
    """Read kind and config of a checkpoint folder, from config.json and vocoder_config.json.

    Raises:
      ConversionError: the folder has neither file, or a damaged one.
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
    kind, path = detect_kind(folder), folder / CONFIG_FILE
    config = _PARSERS[kind](read_json(path, "config"), str(path))
    return kind, dataclasses.replace(config, vocoder=vocoder)


def model_rows(kind: str, config: BaichuanAudioConfig) -> list[WeightRow]:
    """Return the tables of a checkpoint's model, without the vocoder, for the names of `kind`."""
    if kind == "whisper":
        return audio_encoder.whisper_rows(config.audio_encoder)
    return tables.rows_for(config, tuple(c for c in config.components if c != "vocoder"))
