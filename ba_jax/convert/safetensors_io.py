"""Read and write safetensors files a range of rows at a time, with plain file I/O.

The safetensors library maps whole files, so resident memory grows with the checkpoint, and it saves
only what is in memory as a whole. Measured on a file of 2 GB, read in rows of 64 MiB: 64 MiB here,
2.1 GiB with the library (and 0.9 s against 2.7 s). `benchmarks/convert_memory.py` measures the
peak of a whole conversion.

Layout: u64 little-endian header size, JSON header `{name: {dtype, shape, data_offsets}}` with an
optional `__metadata__`, then the data, contiguous and without holes.
"""

from __future__ import annotations

import collections
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ba_jax.convert.engine import ConversionError, TensorInfo, report_problems
from ba_jax.files import list_files, missing, stand_in

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 256 << 20
# The limits of NumPy's arrays.
MAX_RANK, MAX_BYTES = 64, 2**63 - 1

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON object from a file of bounded size; `kind` names it in messages.

    Raises:
      ConversionError: no such file, too large, not JSON, not an object, or a duplicate name.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{missing(path)}, expected {kind}")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ConversionError(f"{path}: {size} bytes, expected {kind} under {MAX_JSON_BYTES}")
    return parse_json(path.read_bytes(), path, kind)


def parse_json(data: bytes, path: Path, kind: str) -> dict[str, Any]:
    """Parse `data`, read from `path`, as a JSON object; errors as in `read_json`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = collections.Counter(name for name, _ in pairs)
        if len(counts) < len(pairs):
            duplicates = sorted(name for name, count in counts.items() if count > 1)
            raise ConversionError(f"{path}: duplicate names {duplicates}")
        return dict(pairs)

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except ConversionError:
        raise
    except (ValueError, RecursionError) as error:
        fault = stand_in(data[:64]) or error
        raise ConversionError(f"{path}: {kind} is not valid JSON: {fault}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: {kind} is a {type(value).__name__}, expected an object")
    return value


class SafetensorsFile:
    """A `.safetensors` file; only its header is read when it is opened.

    Attributes:
      label, path: the file.
      tensors: name -> `TensorInfo`, in the order of the data.
      header: the header's bytes, with padding.
      metadata: the `__metadata__` of the header, or None.

    Raises:
      ConversionError: not a safetensors file, or one whose header is damaged or does not describe
        exactly the bytes that follow; a file cut short is named with expected and actual size.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.label = str(self.path)
        if not self.path.is_file():
            raise ConversionError(f"{missing(path)}, expected safetensors")
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if other := stand_in(prefix + file.read(56)):
                raise ConversionError(f"{path}: {other}, expected safetensors")
            file.seek(8)
            if len(prefix) < 8:
                raise ConversionError(f"{path}: cut short: {size} bytes, expected at least 8")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES or length < 2:
                raise ConversionError(
                    f"{path}: header length {length}, expected 2 to {MAX_HEADER_BYTES} bytes"
                )
            if length > size - 8:
                raise ConversionError(
                    f"{path}: cut short: {size} bytes, expected {8 + length} for the header alone"
                )
            self.header = file.read(length)
        self.tensors, self.metadata = parse_header(self.header, self.path)
        self._offsets: dict[str, int] = {}
        end = 8 + length
        for name, info in self.tensors.items():
            self._offsets[name] = end
            end += info.nbytes
        if end != size:
            fault = "cut short" if size < end else "has extra bytes at its end"
            raise ConversionError(f"{path}: {fault}: {size} bytes, expected {end}")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows `start:stop` along axis 0 of a tensor (all of a scalar)."""
        return read_rows(self.path, self._offsets[name], self.tensors[name], start, stop)


def parse_header(data: bytes, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str] | None]:
    """Parse a header into its tensors, in the order of their data, and its `__metadata__`.

    Raises:
      ConversionError: naming `path` and every entry that is malformed, overlaps another, or leaves
        a hole.
    """
    header = parse_json(data, path, "safetensors header")
    metadata = header.pop("__metadata__", None)
    problems, entries = [], []
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        problems.append(f"__metadata__: {metadata!r:.80}, expected an object of strings")
    for name, entry in header.items():
        parsed = _parse_entry(entry)
        if isinstance(parsed, str):
            problems.append(f"{name}: {parsed}")
        else:
            entries.append((*parsed, name))
    report_problems(str(path), problems)
    entries.sort(key=lambda entry: entry[:2])
    end = 0
    for start, stop, _, name in entries:
        if start != end:
            fault = "overlaps the tensor before it" if start < end else "leaves a hole"
            problems.append(f"{name}: data begin at {start}, expected {end}: {fault}")
        end = max(end, stop)
    report_problems(str(path), problems)
    return {name: info for *_, info, name in entries}, metadata


def _parse_entry(entry: Any) -> tuple[int, int, TensorInfo] | str:
    """Parse a header entry into `(start, stop, info)`; a string describes what is wrong."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return f"header entry {entry!r:.80}, expected dtype, shape and data_offsets"
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        return f"dtype {entry['dtype']!r}, expected one of {' '.join(DTYPES)}"
    shape, offsets = entry["shape"], entry["data_offsets"]
    for values in (shape, offsets):
        if not isinstance(values, list) or any(type(n) is not int or n < 0 for n in values):
            return f"shape {shape!r:.80}, data_offsets {offsets!r:.80}, expected lists of sizes"
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {offsets}, expected [start, end]"
    if len(shape) > MAX_RANK:
        return f"shape {shape!r:.80}, expected at most {MAX_RANK} sizes"
    info = TensorInfo(tuple(shape), dtype)
    if offsets[1] - offsets[0] != info.nbytes:
        return (
            f"data_offsets {offsets} span {offsets[1] - offsets[0]} bytes, expected {info.nbytes} "
            f"for {entry['dtype']} {shape}"
        )
    # The bytes of an empty tensor do not bound its other sizes.
    if math.prod(n for n in shape if n) * dtype.itemsize > MAX_BYTES:
        return f"shape {shape}, expected sizes of at most {MAX_BYTES} bytes"
    return offsets[0], offsets[1], info


def read_rows(
    path: Path, offset: int, info: TensorInfo, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """Read rows of the C-ordered array at `offset` in a file into new memory."""
    shape, skip = info.shape, 0
    if shape:
        start, stop, _ = slice(start, stop).indices(shape[0])
        skip = start * math.prod(shape[1:]) * info.dtype.itemsize
        shape = (max(0, stop - start), *shape[1:])
    data = np.empty(math.prod(shape) * info.dtype.itemsize, np.uint8)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset + skip)
        view, done = memoryview(data), 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise ConversionError(
                    f"{path}: cut short while it was read: no data at byte {offset + skip + done}"
                )
            done += count
    return data.view(info.dtype).reshape(shape)


class SafetensorsFolder:
    """A Hugging Face folder: shards and their index, or a single `model.safetensors`.

    Opening reads all headers and checks them against the index and the sizes of the files.

    Attributes:
      label, path: the folder.
      files: file name -> `SafetensorsFile`, sorted by name.
      index: the index file's bytes, or None for a single file.
      tensors: name -> `TensorInfo` of all files.

    Raises:
      ConversionError: naming the folder and every missing shard, missing, unknown or duplicate
        tensor.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.label = str(self.path)
        if not self.path.is_dir():
            raise ConversionError(f"{path}: no such folder, expected safetensors shards")
        index_path = self.path / INDEX_FILE
        file_names = [p.name for p in list_files(self.path, ".safetensors", deep=False)]
        self.index: bytes | None = None
        if index_path.exists():
            weight_map = self._read_index(index_path)
        elif [name for name in file_names if name.startswith("model")] == [SINGLE_FILE]:
            weight_map = None
        else:
            raise ConversionError(
                f"{path}: no {INDEX_FILE}, expected it beside the shards, or one {SINGLE_FILE}; "
                f"found {', '.join(file_names) or 'no .safetensors file'}"
            )
        names = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
        absent = [name for name in names if not (self.path / name).is_file()]
        problems = [f"missing shard {name}, named by {INDEX_FILE}" for name in absent]
        # Other weights may lie here too, such as a vocoder or an adapter.
        problems += [
            f"shard {name} is not named by {INDEX_FILE}, expected it there or elsewhere"
            for name in file_names
            if name.startswith("model") and name not in names
        ]
        report_problems(self.label, problems)
        self.files = {name: SafetensorsFile(self.path / name) for name in names}
        self.tensors: dict[str, TensorInfo] = {}
        self._file_of: dict[str, str] = {}
        problems = []
        for file_name, file in self.files.items():
            for name, info in file.tensors.items():
                if name in self._file_of:
                    problems.append(
                        f"duplicate tensor {name} in {self._file_of[name]} and {file_name}"
                    )
                elif weight_map is not None and name not in weight_map:
                    problems.append(f"unknown tensor {name} in {file_name}, not in {INDEX_FILE}")
                self.tensors[name] = info
                self._file_of[name] = file_name
        for name, file_name in (weight_map or {}).items():
            if name not in self._file_of:
                problems.append(f"missing tensor {name}, expected in {file_name}")
            elif self._file_of[name] != file_name:
                problems.append(
                    f"{name} is in {self._file_of[name]}, but {INDEX_FILE} says {file_name}"
                )
        report_problems(self.label, problems)

    def _read_index(self, path: Path) -> dict[str, str]:
        index = read_json(path, "safetensors index")
        self.index = path.read_bytes()
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConversionError(f"{path}: weight_map is {weight_map!r:.80}, expected names")
        if not isinstance(metadata := index.get("metadata", {}), dict | None):
            raise ConversionError(f"{path}: metadata is {metadata!r:.80}, expected an object")
        for name, file_name in weight_map.items():
            # Only plain names: an index must not make us read outside its folder.
            if (
                not isinstance(file_name, str)
                or Path(file_name).name != file_name
                or not file_name.endswith(".safetensors")
            ):
                raise ConversionError(
                    f"{path}: weight_map[{name!r}] is {file_name!r:.80}, expected the name of a "
                    ".safetensors file in the same folder"
                )
        return weight_map

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows `start:stop` along axis 0 of a tensor (all of a scalar)."""
        return self.files[self._file_of[name]].read(name, start, stop)


def make_header(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Make the header of tensors stored one after another, padded to 8 bytes with spaces."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, info in tensors.items():
        header[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [end, end + info.nbytes],
        }
        end += info.nbytes
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return data + b" " * (-len(data) % 8)


def write_file(
    path: Path,
    header: bytes,
    tensors: Mapping[str, TensorInfo],
    pieces: Callable[[str], Iterable[np.ndarray]],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a file: `header`, then each tensor's pieces in the order of `tensors`.

    Args:
      path: a new file.
      header: as from `make_header`, or copied from a file to reproduce it byte for byte.
      tensors: the header's tensors, in the order of the data.
      pieces: name -> consecutive pieces of the tensor in C order.
      progress: called with the bytes of each piece.

    Raises:
      ConversionError: the pieces of a tensor have another dtype, or too few or too many bytes.
    """
    with open(path, "xb", buffering=0) as file:
        _write_all(file, struct.pack("<Q", len(header)) + header)
        for name, info in tensors.items():
            written = 0
            for piece in pieces(name):
                if piece.dtype != info.dtype:
                    raise ConversionError(
                        f"{path}: {name} is {piece.dtype.name}, expected {info.dtype.name}"
                    )
                _write_all(file, np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
                written += piece.nbytes
                if progress is not None:
                    progress(piece.nbytes)
            if written != info.nbytes:
                raise ConversionError(f"{path}: {name} has {written} bytes, expected {info.nbytes}")


def _write_all(file, data) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
