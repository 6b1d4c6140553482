"""Tensors of a file that torch.save wrote, as NumPy arrays, without torch and without running code.

Of what a pickle may ask for only tensors of plain numbers and containers are made; anything else
is refused before it runs.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ba_jax.speech.interfaces import SpeechToolError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file older than torch 1.6
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


class _Lazy:
    """A tensor whose numbers follow later in the file."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.key, self.dtype, self.offset = storage[0], storage[1], offset
        self.shape, self.strides = shape, strides


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Lazy
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise pickle.UnpicklingError(f"asks for {module}.{name}")

    def persistent_load(self, pid):
        # ("storage", type, key, where it was, numbers, view)
        if pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise pickle.UnpicklingError(f"asks for {pid[0]!r}")
        return str(pid[2]), pid[1]


def load(path: str | os.PathLike) -> Any:
    """What the file holds: dicts and lists of numbers, strings and arrays.

    Raises:
      SpeechToolError: a file that is missing, damaged, no torch file, or asks for code.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        return _load_zip(data) if zipfile.is_zipfile(io.BytesIO(data)) else _load_old(data)
    except OSError as error:
        raise SpeechToolError(f"{path}: cannot be read ({error}), expected a torch file") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise SpeechToolError(
            f"{path}: not a torch file of plain tensors ({type(error).__name__}: {error})"
        ) from error


def _load_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        (name,) = [name for name in file.namelist() if name.endswith("/data.pkl")]
        found = _Unpickler(io.BytesIO(file.read(name))).load()
        folder = name.removesuffix("data.pkl") + "data/"
        return _resolve(found, lambda key: file.read(folder + key))


def _load_old(data: bytes) -> Any:
    stream = io.BytesIO(data)
    if _Unpickler(stream).load() != _MAGIC:
        raise pickle.UnpicklingError("another kind of pickle")
    for _ in range(2):  # version of the format, sizes of integers
        _Unpickler(stream).load()
    found = _Unpickler(stream).load()
    keys = [str(key) for key in _Unpickler(stream).load()]
    sizes: dict[str, int] = {}
    _resolve(found, lambda key: b"", sizes)
    storages = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(count * sizes[key])
    return _resolve(found, storages.__getitem__)


def _resolve(value: Any, read: Callable[[str], bytes], sizes: dict[str, int] | None = None) -> Any:
    """Puts arrays for tensors; with `sizes`, only notes bytes of a number by storage."""
    if isinstance(value, _Lazy):
        if sizes is not None:
            sizes[value.key] = value.dtype.itemsize
            return value
        numbers = np.frombuffer(read(value.key), value.dtype)
        steps = [step * value.dtype.itemsize for step in value.strides]
        reach = zip(value.shape, value.strides, strict=True)
        last = value.offset + sum((length - 1) * step for length, step in reach)
        if 0 not in value.shape and last >= len(numbers):
            raise pickle.UnpicklingError(f"{len(numbers)} numbers, expected {last + 1}")
        view = np.lib.stride_tricks.as_strided(numbers[value.offset :], value.shape, steps)
        return np.array(view)
    if isinstance(value, dict):
        return {name: _resolve(item, read, sizes) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(item, read, sizes) for item in value]
    return value
