"""Write an Orbax checkpoint as the reference's files.

An imported checkpoint has a `source/` folder, with which files come out as they were: the same
shards, headers, index and vocoder naming, byte for byte while shapes and dtypes are unchanged. A
model that was trained here takes the layout of an original release of the same sizes (`base`), and
from it the tensors and files that training does not know: vision, the text tokenizer, code. With
neither, shards are filled in the order of the tables.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ba_jax.checkpoints import arrays
from ba_jax.checkpoints.layout import CONFIG_FILE, orbax_folder
from ba_jax.convert import engine, sources
from ba_jax.convert.engine import ConversionError, Placement, TensorInfo, TensorSource
from ba_jax.convert.importer import MANIFEST_FILE, SOURCE_FOLDER, progress_bar
from ba_jax.convert.safetensors_io import (
    INDEX_FILE,
    SINGLE_FILE,
    SafetensorsFolder,
    make_header,
    parse_header,
    parse_json,
    read_json,
    write_file,
)
from ba_jax.convert.sources import VOCODER_CONFIG_FILE, VOCODER_FILES, open_vocoder
from ba_jax.convert.tables import llm
from ba_jax.convert.tables import vocoder as vocoder_table
from ba_jax.convert.torch_pickle import import_torch, save_state_dict
from ba_jax.files import is_litter
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.tree import flatten
from ba_jax.vocab import COMPONENTS

DEFAULT_SHARD_BYTES = 5_000_000_000
# Files of a release that come with its weights: the text tokenizer, code, settings.
TEXT_SUFFIXES = (".json", ".jinja", ".model", ".py", ".txt")
Header = tuple[bytes, Mapping[str, TensorInfo], Any]  # bytes, tensors, metadata


def export_checkpoint(
    folder: Path,
    out: Path,
    *,
    base: Path | None = None,
    dtype: Any = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    vocoder_format: str = "pt",
    overwrite: bool = False,
    progress: bool = True,
) -> list[str]:
    """Write a checkpoint folder as reference files; return notes for the user.

    Args:
      folder: written by the importer or by `join`, or `config.json` beside an Orbax folder
        `weights/`.
      out: the folder to write.
      base: the originally imported folder, from which left-out (vision) tensors and text files are
        copied. For a model that was trained here: a release of the same sizes, whose layout and
        config.json are used too.
      dtype: cast to it; None writes the stored dtypes.
      max_shard_bytes: size of shards where no layout is recorded.
      vocoder_format: `pt` or `safetensors`, where no layout is recorded.
      overwrite: replace `out` if it is not empty.
      progress: show a progress bar on a terminal.

    Raises:
      ConversionError: a folder that is not a checkpoint, or does not fit `base`.
      CheckpointError: its weights are incomplete or do not fit its config, or `out` cannot be
        written.
    """
    folder, out, base = Path(folder), Path(out), base and Path(base)
    for path in (folder, base):
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConversionError(f"{out}: holds {path}, which is read; expected another folder")
    arrays.check_files(orbax_folder(folder))
    reader = arrays.Reader(folder)
    kind, config = sources.checkpoint_config(folder)
    manifest_path = folder / SOURCE_FOLDER / MANIFEST_FILE
    manifest = read_json(manifest_path, "manifest") if manifest_path.is_file() else {}
    if "components" in manifest:
        config = config.only(*manifest["components"])
    model = config.only(*(c for c in config.components if c != "vocoder"))
    notes = _notes(config, manifest, base)
    with (
        arrays.new_folder(out, overwrite) as partial,
        progress_bar(f"export {folder.name}", progress) as bar,
    ):
        bar.total = _stored_bytes(reader)
        if model.components:
            tensors = ExportTensors.open(
                sources.model_rows(kind, model), model, reader, dtype, bar.update
            )
            tensors.base = SafetensorsFolder(base) if base is not None else None
            notes += _export_model(tensors, folder, manifest, base, partial, max_shard_bytes)
        if config.vocoder is not None:
            rows, vocoder = vocoder_table.rows(config.vocoder), config.only("vocoder")
            tensors = ExportTensors.open(rows, vocoder, reader, dtype, bar.update)
            recorded = manifest.get("vocoder")
            notes += _export_vocoder(tensors, folder, recorded, base, partial, vocoder_format)
        for name in (CONFIG_FILE, VOCODER_CONFIG_FILE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        if base is not None and model.components:
            if "files" not in manifest:
                # It may describe vision, which ours cannot.
                shutil.copyfile(base / CONFIG_FILE, partial / CONFIG_FILE)
            notes += _copy_text_files(base, partial)
    return notes


def _notes(config: BaichuanAudioConfig, manifest: Mapping, base: Path | None) -> list[str]:
    notes: list[str] = []
    missing = [name for name in COMPONENTS if name not in manifest.get("components", COMPONENTS)]
    if missing:
        notes.append(f"not in the checkpoint: {', '.join(missing)}")
        if base is not None and missing != ["vocoder"]:
            notes[-1] += f"; all but the vocoder are copied from {base}"
    if config.flow_unet is not None and config.flow_matching.residual_std:
        notes.append(
            f"flow_matching.residual_std = {config.flow_matching.residual_std}: the release's code "
            "does not know it, and takes the U-Net's output (the residual from mu) for the velocity"
        )
    return notes


def _stored_bytes(reader: arrays.Reader) -> int:
    return sum(
        int(np.prod(reader.shape(p), dtype=np.int64)) * reader.dtype(p).itemsize
        for p in reader.arrays
    )


@dataclasses.dataclass
class ExportTensors:
    """Reference tensors of a checkpoint, and of a base folder those that it left out.

    Attributes:
      placements: name -> its parts in the checkpoint.
      reader: the checkpoint.
      dtype: cast to it, or None.
      progress: called with the bytes of each piece.
      base: holds the left-out tensors, or None.
    """

    placements: Mapping[str, Sequence[Placement]]
    reader: arrays.Reader
    dtype: Any
    progress: Callable[[int], None]
    base: TensorSource | None = None

    @classmethod
    def open(cls, rows, config: BaichuanAudioConfig, reader, dtype, progress) -> ExportTensors:
        """Check that the checkpoint holds the config's variables."""
        shapes = variable_shapes(config)
        reader.check_shapes(flatten(shapes))
        return cls(engine.expand(rows, shapes), reader, dtype, progress)

    def info(self, name: str, recorded: TensorInfo | None = None) -> TensorInfo | None:
        """Shape and dtype to be written; None for a left-out tensor without a base."""
        if name in self.placements:
            parts = self.placements[name]
            dtype = self.dtype or engine.stored_dtype(parts, self.reader)
            return TensorInfo(parts[0].source_shape, np.dtype(dtype))
        if self.base is None:
            return None
        if self.base.tensors.get(name) != recorded:
            raise ConversionError(
                f"{self.base.label}: {name} is {self.base.tensors.get(name)}, expected {recorded}: "
                "not the folder that was imported"
            )
        return recorded

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """Yield the tensor in C order, some rows at a time."""
        if name in self.placements:
            yield from engine.source_rows(self.placements[name], self.reader, self.dtype)
            return
        info = self.base.tensors[name]
        rows = info.shape[0] if info.shape else 1
        step = max(1, arrays.MAX_CHUNK_BYTES * rows // max(1, info.nbytes))
        for start in range(0, rows, step):
            yield self.base.read(name, start, start + step)

    def array(self, name: str) -> np.ndarray:
        """Read the whole tensor, for a pickle."""
        if name in self.placements:
            shape = self.placements[name][0].source_shape
        else:
            shape = self.base.tensors[name].shape
        pieces = list(self.pieces(name))
        for piece in pieces:
            self.progress(piece.nbytes)
        return np.concatenate([piece.reshape(-1) for piece in pieces]).reshape(shape)

    def write(self, path: Path, header: bytes, infos: Mapping[str, TensorInfo]) -> None:
        write_file(path, header, infos, self.pieces, self.progress)


# --- the model's shards ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ShardLayout:
    """Files, tensors and headers of shards to reproduce.

    Attributes:
      label: path of the folder that has this layout.
      hint: advice if a tensor has no place in it.
      headers: file -> bytes, tensors and metadata of its header.
      index: the index file's bytes, or None.
    """

    label: str
    hint: str
    headers: Mapping[str, Header]
    index: bytes | None


def _export_model(
    tensors: ExportTensors,
    folder: Path,
    manifest: Mapping[str, Any],
    base: Path | None,
    out: Path,
    max_shard_bytes: int,
) -> list[str]:
    if "files" in manifest:
        source = folder / SOURCE_FOLDER
        headers = {name: _recorded_header(source, name) for name in manifest["files"]}
        index = source / INDEX_FILE
        hint = "no file is recorded for it; remove the folder"
        index_bytes = index.read_bytes() if index.is_file() else None
        return _export_layout(ShardLayout(str(source), hint, headers, index_bytes), tensors, out)
    if base is not None:
        _check_same_model(folder, base)
        release = tensors.base
        headers = {n: (f.header, dict(f.tensors), f.metadata) for n, f in release.files.items()}
        hint = "no file holds it: not a whole release"
        layout = ShardLayout(release.label, hint, headers, release.index)
        return _export_layout(layout, tensors, out)
    _export_sharded(tensors, out, max_shard_bytes)
    return [
        "the weights and their config alone: no vision, text tokenizer or code; "
        "--base adds those of a release"
    ]


def _check_same_model(folder: Path, base: Path) -> None:
    """Raise `ConversionError` unless both config.json describe a model of the same sizes."""
    (_, ours), (_, theirs) = (sources.checkpoint_config(path) for path in (folder, base))
    differing = [
        field.name
        for field in dataclasses.fields(BaichuanAudioConfig)
        if field.name != "vocoder" and getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if differing:
        raise ConversionError(
            f"{base / CONFIG_FILE}: describes other {', '.join(differing)} than "
            f"{folder / CONFIG_FILE}: expected a release of the same sizes, or no --base"
        )


def _recorded_header(folder: Path, name: str) -> Header:
    path = folder / f"{Path(name).name}.header"
    if not path.is_file():
        raise ConversionError(f"{path}: no such file, expected the header of {name}")
    data = path.read_bytes()
    return data, *parse_header(data, path)


def _export_layout(layout: ShardLayout, tensors: ExportTensors, out: Path) -> list[str]:
    """Write shards of a known layout; tensors that are nowhere are left out of it."""
    known = {name for _, infos, _ in layout.headers.values() for name in infos}
    if llm.HEAD in known and llm.EMBEDDING in tensors.placements:  # a copy, if it is no variable
        tied = {llm.HEAD: tensors.placements[llm.EMBEDDING]}
        tensors = dataclasses.replace(tensors, placements=tied | dict(tensors.placements))
    absent = [name for name in tensors.placements if name not in known]
    engine.report_problems(layout.label, [f"{name}: {layout.hint}" for name in absent])
    weight_map, total, skipped, changed = {}, 0, [], False
    for file_name, (header, recorded, metadata) in layout.headers.items():
        infos = {name: tensors.info(name, info) for name, info in recorded.items()}
        skipped += [name for name, info in infos.items() if info is None]
        infos = {name: info for name, info in infos.items() if info is not None}
        if infos != recorded:
            changed, header = True, make_header(infos, metadata)
        if infos or not recorded:
            tensors.write(out / file_name, header, infos)
        weight_map |= dict.fromkeys(infos, file_name)
        total += sum(info.nbytes for info in infos.values())
    if layout.index is not None:
        index = layout.index
        if changed:
            values = parse_json(index, Path(layout.label) / INDEX_FILE, "safetensors index")
            order = [name for name in values["weight_map"] if name in weight_map]
            metadata = values.get("metadata") or {}
            index = _format_index({n: weight_map[n] for n in order}, total, metadata)
        (out / INDEX_FILE).write_bytes(index)
    return _skipped_note(skipped, "; --base adds them")


def _export_sharded(tensors: ExportTensors, out: Path, max_shard_bytes: int) -> None:
    """Write shards in the order of the tables, each of at most `max_shard_bytes` if possible."""
    infos = {name: tensors.info(name) for name in tensors.placements}
    shards: list[dict[str, TensorInfo]] = [{}]
    for name, info in infos.items():
        size = sum(other.nbytes for other in shards[-1].values())
        if shards[-1] and size + info.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = info
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    weight_map = {}
    for file_name, shard in zip(names, shards, strict=True):
        tensors.write(out / file_name, make_header(shard, {"format": "pt"}), shard)
        weight_map |= dict.fromkeys(shard, file_name)
    if len(shards) > 1:
        total = sum(info.nbytes for info in infos.values())
        (out / INDEX_FILE).write_bytes(_format_index(weight_map, total))


def _format_index(
    weight_map: Mapping[str, str], total: int, metadata: Mapping[str, Any] | None = None
) -> bytes:
    index = {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2) + "\n").encode()


def _skipped_note(names: Sequence[str], hint: str = "", prefix: str = "") -> list[str]:
    if not names:
        return []
    return [f"{prefix}{len(names)} left-out tensors are not written, e.g. {names[0]}{hint}"]


# --- the vocoder and other files ------------------------------------------------------------------


def _export_vocoder(
    tensors: ExportTensors,
    folder: Path,
    recorded: Mapping[str, Any] | None,
    base: Path | None,
    out: Path,
    vocoder_format: str,
) -> list[str]:
    source = folder / SOURCE_FOLDER
    if recorded is None:
        pickled = vocoder_format == "pt"
        file_name = VOCODER_FILES[0] if pickled else VOCODER_FILES[1]
        names = {name: name for name in tensors.placements}
    else:
        file_name, names = Path(recorded["file"]).name, recorded["names"]
        pickled = not (source / f"{file_name}.header").is_file()
    if pickled:
        import_torch(f"writing {file_name}")
    absent = [name for name in tensors.placements if name not in names]
    engine.report_problems(
        str(source), [f"no name is recorded for {name}; remove the folder" for name in absent]
    )
    if base is not None and any(name not in tensors.placements for name in names):
        tensors.base = open_vocoder(base / file_name)
    kept = [n for n in names if n in tensors.placements or tensors.base is not None]
    if pickled:
        state = ((names[name], tensors.array(name)) for name in kept)
        save_state_dict(out / file_name, state, (recorded or {}).get("metadata"))
    else:
        canonical = {names[name]: name for name in kept}
        header, order, metadata = None, dict.fromkeys(canonical), {"format": "pt"}
        if recorded is not None:
            header, order, metadata = _recorded_header(source, file_name)
        infos = {n: tensors.info(canonical[n], i) for n, i in order.items() if n in canonical}
        if infos != order:
            header = make_header(infos, metadata)

        def pieces(name: str) -> Iterator[np.ndarray]:
            return tensors.pieces(canonical[name])

        write_file(out / file_name, header, infos, pieces, tensors.progress)
    skipped = [names[n] for n in names if n not in kept]
    return _skipped_note(skipped, prefix=f"{file_name}: ")


def _copy_text_files(base: Path, out: Path) -> list[str]:
    """Copy the files of `base` beside weights and configs; return a note that names them."""
    skipped = {VOCODER_CONFIG_FILE, INDEX_FILE} | {path.name for path in out.iterdir()}
    paths = [
        path
        for path in sorted(base.iterdir())
        if path.is_file() and path.suffix in TEXT_SUFFIXES
        if path.name not in skipped and not is_litter(path.name)
    ]
    for path in paths:
        shutil.copyfile(path, out / path.name)
    return [f"from {base}: {', '.join(path.name for path in paths)}"] if paths else []
