"""Read files of torch.save as NumPy arrays, without torch and without running code.

A pickle may only build tensors of plain numbers and containers; anything else that it asks for is
refused before it runs.
"""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ba_jax.files import missing, stand_in

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file older than torch 1.6
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}


class TorchFileError(ValueError):
    """A file that is missing, damaged, no torch file, or asks for code."""


class _ForbiddenGlobal(pickle.UnpicklingError):
    """A pickle that asks for something other than tensors and containers."""


class _StoredTensor:
    """A tensor whose numbers are stored elsewhere in the file."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.key, self.dtype = storage
        self.offset, self.shape, self.strides = offset, shape, strides


class _Unpickler(pickle.Unpickler):
    """Builds containers of `_StoredTensor`s; `dtypes` maps the storages they use to their types."""

    def __init__(self, file):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _StoredTensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _ForbiddenGlobal(f"asks for {module}.{name}")

    def persistent_load(self, pid):
        # ("storage", type, key, device, numbers, view)
        if pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise pickle.UnpicklingError(f"persistent id {pid!r}, expected a storage")
        self.dtypes[str(pid[2])] = pid[1]
        return str(pid[2]), pid[1]


def load_torch(path: str | os.PathLike, max_bytes: int = 2 << 30) -> tuple[Any, Any]:
    """Load a file of torch.save.

    Args:
      path: the file.
      max_bytes: its largest size.

    Returns:
      (nested dicts and lists of numbers, strings and arrays, the `_metadata` attribute that
      `Module.state_dict()` adds or None).

    Raises:
      TorchFileError: a file that is missing, too large, damaged, no torch file, or asks for code.
    """
    path = Path(path)
    if not path.is_file():
        raise TorchFileError(f"{missing(path)}, expected a torch pickle")
    size = path.stat().st_size
    with open(path, "rb") as file:
        if other := stand_in(file.read(64)):
            raise TorchFileError(f"{path}: {other}, expected a torch pickle")
    if size > max_bytes:
        raise TorchFileError(f"{path}: {size} bytes, expected a torch pickle under {max_bytes}")
    try:
        value, storages = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        return _resolve(value, storages, {}), getattr(value, "_metadata", None)
    except _ForbiddenGlobal as error:
        raise TorchFileError(
            f"{path}: refused: not a torch file of plain tensors, it {error}"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise TorchFileError(
            f"{path}: {size} bytes, truncated or not a torch file of plain tensors "
            f"({type(error).__name__}: {error})"
        ) from error


def _read_zip(path: Path) -> tuple[Any, Mapping[str, bytes]]:
    with zipfile.ZipFile(path) as file:
        # Torch does not compress: a small file that expands to a large one is none of its.
        if (size := sum(entry.file_size for entry in file.infolist())) > 4 * os.path.getsize(path):
            raise pickle.UnpicklingError(f"expands to {size} bytes")
        (name,) = [name for name in file.namelist() if name.endswith("/data.pkl")]
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in file.namelist():
            if (order := file.read(f"{folder}byteorder")) != b"little":
                raise pickle.UnpicklingError(f"byte order {order!r}, expected little")
        with file.open(name) as stream:
            unpickler = _Unpickler(stream)
            value = unpickler.load()
        return value, {key: file.read(f"{folder}data/{key}") for key in unpickler.dtypes}


def _read_legacy(path: Path) -> tuple[Any, Mapping[str, bytes]]:
    """Read the format from before torch 1.6: five pickles, then the storages."""
    with open(path, "rb") as stream:
        if _Unpickler(stream).load() != _MAGIC:
            raise pickle.UnpicklingError("another kind of pickle")
        for _ in range(2):  # version of the format, sizes of integers
            _Unpickler(stream).load()
        unpickler = _Unpickler(stream)
        value = unpickler.load()
        keys = [str(key) for key in _Unpickler(stream).load()]
        storages = {}
        for key in keys:
            count = int.from_bytes(stream.read(8), "little")
            storages[key] = stream.read(count * unpickler.dtypes[key].itemsize)
        return value, storages


def _resolve(value: Any, storages: Mapping[str, bytes], done: dict[int, Any]) -> Any:
    """Replace the tensors in nested containers by arrays, every object once (`done`, by id)."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Mapping):
        result: Any = {name: _resolve(item, storages, done) for name, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [_resolve(item, storages, done) for item in value]
    elif isinstance(value, _StoredTensor):
        result = _array(value, storages[value.key])
    else:
        return value
    done[id(value)] = result
    return result


def _array(tensor: _StoredTensor, data: bytes) -> np.ndarray:
    """View the numbers of a tensor; NumPy checks that all of them lie inside."""
    itemsize = tensor.dtype.itemsize
    strides = [stride * itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, tensor.dtype, data, tensor.offset * itemsize, strides)
