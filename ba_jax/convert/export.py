"""An Orbax checkpoint back into the reference's files.

With the `source/` folder that the importer leaves, files come out as they went in: the same shards,
headers, index and vocoder naming, byte for byte while shapes and dtypes are unchanged. Without it
(a model that was trained here) they are laid out like those of an original release of the same
sizes, if one is given, which also gives what training knows nothing of: vision, the text
tokenizer's files, code. With neither, shards are filled in the order of the tables.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from ba_jax.checkpoints import arrays as checkpoint
from ba_jax.convert import engine, sources
from ba_jax.convert.engine import ConversionError, Placement, TensorInfo, TensorSource
from ba_jax.convert.importer import MANIFEST_FILE, SOURCE_FOLDER
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
from ba_jax.convert.sources import CONFIG_FILE, VOCODER_CONFIG_FILE, VOCODER_FILES
from ba_jax.convert.tables import vocoder as vocoder_table
from ba_jax.convert.torch_pickle import import_torch, open_vocoder, save_pickle
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.tree import flatten
from ba_jax.vocab import COMPONENTS

DEFAULT_SHARD_BYTES = 5_000_000_000
# Files of a release that say how to use its weights: the text tokenizer's, code, settings.
TEXT_SUFFIXES = (".json", ".jinja", ".model", ".py", ".txt")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How shards are to be laid out.

    Attributes:
      label: where it comes from, and `hint` what to do if a tensor has no place in it.
      headers: file -> (bytes, tensors, metadata) of its header.
      index: the index file's bytes, or None.
    """

    label: str
    hint: str
    headers: Mapping[str, tuple[bytes, Mapping[str, TensorInfo], Any]]
    index: bytes | None


@dataclasses.dataclass
class _Tensors:
    """Reference tensors of a checkpoint, and of a base folder for those that it left out.

    Attributes:
      placements: name -> where its parts are stored.
      reader: the checkpoint.
      dtype: cast to it, or None.
      base: holds the left-out tensors, or None.
    """

    placements: Mapping[str, Sequence[Placement]]
    reader: checkpoint.Reader
    dtype: Any
    base: TensorSource | None
    progress: Callable[[int], None] = lambda _: None

    def info(self, name: str, recorded: TensorInfo | None = None) -> TensorInfo | None:
        """Shape and dtype to be written; None for a left-out tensor when there is no base."""
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
        if name in self.placements:
            yield from engine.source_rows(self.placements[name], self.reader, self.dtype)
            return
        info = self.base.tensors[name]
        rows = info.shape[0] if info.shape else 1
        step = max(1, checkpoint.MAX_CHUNK_BYTES * rows // max(1, info.nbytes))
        for start in range(0, rows, step):
            yield self.base.read(name, start, start + step)

    def array(self, name: str) -> np.ndarray:
        """The whole tensor, for a pickle."""
        shape = self.placements[name][0].source_shape if name in self.placements else None
        pieces = list(self.pieces(name))
        for piece in pieces:
            self.progress(piece.nbytes)
        if shape is None:
            return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        return np.concatenate([piece.reshape(-1) for piece in pieces]).reshape(shape)


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
    """Writes a checkpoint folder as reference files; returns notes for the user.

    Args:
      folder: written by the importer or by `join`, or `config.json` beside an Orbax folder
        `weights/`.
      out: the folder to write.
      base: the originally imported folder, from which left-out (vision) tensors and text files are
        copied. For a model that was trained here, a release of the same sizes, whose layout and
        config.json are taken too.
      dtype: cast to it; None writes what the checkpoint holds.
      max_shard_bytes: size of shards where no layout is recorded.
      vocoder_format: `pt` or `safetensors`, where no layout is recorded.
      overwrite: replace `out` if it holds something.
      progress: show a progress bar on a terminal.

    Raises:
      ConversionError: a folder that is not a checkpoint, or does not fit `base`.
      CheckpointError: its weights are incomplete or not its config's, or `out` cannot be written.
    """
    folder, out = Path(folder), Path(out)
    for path in (folder, base):
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConversionError(f"{out}: holds {path}, which is read; expected another folder")
    reader = checkpoint.Reader(folder)
    checkpoint.check_files(reader.directory)
    kind, config = sources.checkpoint_config(folder)
    manifest = _read_manifest(folder)
    if "components" in manifest:
        config = config.only(*manifest["components"])
    model = config.only(*(c for c in config.components if c != "vocoder"))
    notes: list[str] = []
    missing = [name for name in COMPONENTS if name not in manifest.get("components", COMPONENTS)]
    if missing:
        notes.append(f"not in the checkpoint: {', '.join(missing)}")
        if base is not None and missing != ["vocoder"]:
            notes[-1] += f"; as in {base}, but for the vocoder"
    if config.flow_unet is not None and config.flow_matching.residual_std:
        notes.append(
            f"flow_matching.residual_std = {config.flow_matching.residual_std}: the release's code "
            "does not know it, and takes for the velocity what the U-Net says beyond mu"
        )
    with checkpoint.new_folder(out, overwrite) as partial:
        with tqdm.tqdm(
            desc=f"export {folder.name}",
            total=_stored_bytes(reader),
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar:
            if model.components:
                tensors = _tensors(sources.model_rows(kind, model), model, reader, dtype)
                opened = SafetensorsFolder(base) if base is not None else None
                tensors.base, tensors.progress = opened, bar.update
                if "files" in manifest:
                    layout = _recorded_layout(folder / SOURCE_FOLDER, manifest)
                    notes += _export_like(layout, tensors, partial)
                elif opened is not None:
                    _check_same_model(folder, base)
                    notes += _export_like(_layout_of(opened), tensors, partial)
                else:
                    _export_sharded(tensors, partial, max_shard_bytes)
                    notes.append(
                        "the weights and their config alone: no vision, text tokenizer or code; "
                        "--base adds those of a release"
                    )
            if config.vocoder is not None:
                voice = config.only("vocoder")
                tensors = _tensors(vocoder_table.rows(config.vocoder), voice, reader, dtype)
                tensors.progress = bar.update
                recorded = manifest.get("vocoder")
                notes += _export_vocoder(folder, recorded, tensors, partial, base, vocoder_format)
        for name in (CONFIG_FILE, VOCODER_CONFIG_FILE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        if base is not None and model.components:
            if "files" not in manifest:
                # It may describe vision, which ours cannot.
                shutil.copyfile(base / CONFIG_FILE, partial / CONFIG_FILE)
            notes += _copy_text_files(base, partial)
    return notes


def _check_same_model(folder: Path, base: Path) -> None:
    """Raises `ConversionError` unless both config.json describe a model of the same sizes."""
    (_, ours), (_, theirs) = (sources.checkpoint_config(path) for path in (folder, base))
    differ = [
        field.name
        for field in dataclasses.fields(BaichuanAudioConfig)
        if field.name != "vocoder" and getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if differ:
        raise ConversionError(
            f"{base / CONFIG_FILE}: describes other {', '.join(differ)} than "
            f"{folder / CONFIG_FILE}: expected a release of the same sizes, or no --base"
        )


def _copy_text_files(base: Path, out: Path) -> list[str]:
    """What lies in `base` beside weights and configs; a note that names it."""
    skipped = {VOCODER_CONFIG_FILE, INDEX_FILE} | {path.name for path in out.iterdir()}
    found = [
        path
        for path in sorted(base.iterdir())
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name not in skipped
    ]
    for path in found:
        shutil.copyfile(path, out / path.name)
    return [f"from {base}: {', '.join(path.name for path in found)}"] if found else []


def _stored_bytes(reader: checkpoint.Reader) -> int:
    return sum(
        int(np.prod(reader.shape(p), dtype=np.int64)) * reader.dtype(p).itemsize
        for p in reader.arrays
    )


def _tensors(rows, config: BaichuanAudioConfig, reader: checkpoint.Reader, dtype) -> _Tensors:
    """Checks that the checkpoint holds the config's variables."""
    shapes = variable_shapes(config)
    reader.check_shapes(flatten(shapes))
    return _Tensors(engine.expand(rows, shapes), reader, dtype, None)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / SOURCE_FOLDER / MANIFEST_FILE
    return read_json(path, "manifest of the imported files") if path.is_file() else {}


def _recorded_header(folder: Path, name: str):
    path = folder / f"{Path(name).name}.header"
    if not path.is_file():
        raise ConversionError(f"{path}: no such file, expected the header of {name}")
    data = path.read_bytes()
    return data, *parse_header(data, path)


def _recorded_layout(source: Path, manifest: Mapping[str, Any]) -> _Layout:
    """That of the files that were imported."""
    headers = {name: _recorded_header(source, name) for name in manifest["files"]}
    index = source / INDEX_FILE
    hint = "no file is recorded for it; remove the folder"
    return _Layout(str(source), hint, headers, index.read_bytes() if index.is_file() else None)


def _layout_of(base: SafetensorsFolder) -> _Layout:
    headers = {n: (f.header, dict(f.tensors), f.metadata) for n, f in base.files.items()}
    return _Layout(base.label, "no file holds it: not a whole release", headers, base.index)


def _export_like(layout: _Layout, tensors: _Tensors, out: Path) -> list[str]:
    """Shards of a given layout."""
    weight_map, total, skipped, changed = {}, 0, [], False
    known = {name for _, infos, _ in layout.headers.values() for name in infos}
    absent = [name for name in tensors.placements if name not in known]
    engine.report_problems(layout.label, [f"{name}: {layout.hint}" for name in absent])
    for file_name, (header, infos, metadata) in layout.headers.items():
        written = {}
        for name, recorded in infos.items():
            info = tensors.info(name, recorded)
            if info is None:
                skipped.append(name)
            else:
                written[name] = info
        if written != infos:
            changed, header = True, make_header(written, metadata)
        if written or not infos:
            write_file(out / file_name, header, written, tensors.pieces, tensors.progress)
        weight_map |= dict.fromkeys(written, file_name)
        total += sum(info.nbytes for info in written.values())
    if layout.index is not None:
        index = layout.index
        if changed:
            path = Path(layout.label) / INDEX_FILE
            index = _new_index(parse_json(index, path, "safetensors index"), weight_map, total)
        (out / INDEX_FILE).write_bytes(index)
    if skipped:
        return [
            f"{len(skipped)} left-out tensors are not written, e.g. {skipped[0]}; --base adds them"
        ]
    return []


def _new_index(index: dict[str, Any], weight_map: Mapping[str, str], total: int) -> bytes:
    order = [name for name in index["weight_map"] if name in weight_map]
    metadata = {**(index.get("metadata") or {}), "total_size": total}
    values = {"metadata": metadata, "weight_map": {name: weight_map[name] for name in order}}
    return (json.dumps(values, indent=2) + "\n").encode()


def _export_sharded(tensors: _Tensors, out: Path, max_shard_bytes: int) -> None:
    """Shards in the order of the tables, each of at most `max_shard_bytes` if a tensor allows."""
    shards: list[dict[str, TensorInfo]] = [{}]
    size = total = 0
    for name in tensors.placements:
        info = tensors.info(name)
        if shards[-1] and size + info.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.nbytes
        total += info.nbytes
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    weight_map = {}
    for file_name, infos in zip(names, shards, strict=True):
        header = make_header(infos, {"format": "pt"})
        write_file(out / file_name, header, infos, tensors.pieces, tensors.progress)
        weight_map |= dict.fromkeys(infos, file_name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _export_vocoder(folder, recorded, tensors: _Tensors, out: Path, base, format_) -> list[str]:
    if recorded is None:
        names = {name: name for name in tensors.placements}
        file_name = VOCODER_FILES[0] if format_ == "pt" else VOCODER_FILES[1]
    else:
        file_name, names = Path(recorded["file"]).name, recorded["names"]
    header_path = folder / SOURCE_FOLDER / f"{file_name}.header"
    pickled = not header_path.is_file() if recorded is not None else format_ == "pt"
    if pickled:
        import_torch(f"writing {file_name}")
    absent = [name for name in tensors.placements if name not in names]
    engine.report_problems(
        str(folder / SOURCE_FOLDER),
        [f"no name is recorded for {name}; remove the folder" for name in absent],
    )
    if any(name not in tensors.placements for name in names) and base is not None:
        tensors.base = open_vocoder(base / file_name)
    kept = [n for n in names if n in tensors.placements or tensors.base is not None]
    if pickled:
        arrays = ((names[name], tensors.array(name)) for name in kept)
        save_pickle(out / file_name, arrays, (recorded or {}).get("metadata"))
    else:
        canonical = {names[name]: name for name in kept}
        infos, header, metadata = {}, None, {"format": "pt"}
        order: Mapping[str, TensorInfo | None] = dict.fromkeys(canonical)
        if recorded is not None:
            header, order, metadata = _recorded_header(folder / SOURCE_FOLDER, file_name)
        for original, info in order.items():
            if original in canonical:
                infos[original] = tensors.info(canonical[original], info)
        if infos != order:
            header = make_header(infos, metadata)
        write_file(
            out / file_name,
            header,
            infos,
            lambda original: tensors.pieces(canonical[original]),
            tensors.progress,
        )
    skipped = [names[n] for n in names if n not in kept]
    if skipped:
        return [f"{file_name}: {len(skipped)} left-out tensors are not written, e.g. {skipped[0]}"]
    return []
