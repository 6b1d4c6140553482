"""Torch pickles read as NumPy arrays without running the code that they may hold, and written."""

from __future__ import annotations

import collections
import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ba_jax.convert.engine import ConversionError, TensorInfo, report_problems

# A released hift.pt has 83 MB.
MAX_PICKLE_BYTES = 2 << 30


def import_torch(purpose: str):
    """Import the torch module.

    Raises:
      ConversionError: torch is not installed, or older than 2.6; it is needed for pickles only.
    """
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            f"{purpose} needs torch: pip install 'ba_jax[convert]', or use safetensors"
        ) from error
    # Before 2.6 a crafted file could run code in spite of weights_only (CVE-2025-32434).
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise ConversionError(f"{purpose} needs torch 2.6 or later, got {torch.__version__}")
    return torch


def load_pickle(path: str | os.PathLike, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """Load a torch pickle: nested dicts and lists of numbers, strings and NumPy arrays.

    The pickle is read with `weights_only=True`: it may build tensors and containers, and anything
    else that it asks for is refused before it runs.

    Raises:
      ConversionError: a file that is missing, too large, truncated, no pickle, asks for code, or
        holds sparse or quantized tensors.
    """
    torch, state = _load(path, max_bytes)
    problems: list[str] = []
    result = _convert(torch, state, "", problems)
    report_problems(str(path), problems)
    return result


def load_state_dict(
    path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Load named tensors, in the file's order, and the `_metadata` of `Module.state_dict()`.

    Raises:
      ConversionError: see `load_pickle`; or the file holds anything but named tensors.
    """
    torch, state = _load(path, MAX_PICKLE_BYTES)
    if not isinstance(state, Mapping):
        raise ConversionError(
            f"{path}: holds a {type(state).__name__}, expected a dict of named tensors"
        )
    result, problems = {}, []
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            problems.append(f"{name!r} is a {type(value).__name__}, expected a tensor")
        else:
            result[name] = _convert(torch, value, name, problems)
    report_problems(str(path), problems)
    metadata = getattr(state, "_metadata", None)
    try:
        metadata = json.loads(json.dumps(metadata)) if isinstance(metadata, Mapping) else None
    except (TypeError, ValueError):  # not what torch writes: of no use for export
        metadata = None
    return result, metadata


def _load(path: str | os.PathLike, max_bytes: int) -> tuple[Any, Any]:
    """Return the torch module and the file's contents."""
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path}: no such file, expected a torch pickle")
    size = path.stat().st_size
    if size > max_bytes:
        raise ConversionError(f"{path}: {size} bytes, expected a torch pickle under {max_bytes}")
    torch = import_torch(str(path))
    try:
        return torch, torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path}: refused: a pickle that holds more than tensors, or none at all "
            f"({_reason(error)})"
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise ConversionError(
            f"{path}: {size} bytes, truncated or not a torch pickle ({_reason(error)})"
        ) from error


def _reason(error: BaseException) -> str:
    """Pick the line of torch's message that names the fault, without its advice to trust files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[0][:200]


def _convert(torch, value: Any, name: str, problems: list[str]) -> Any:
    """Replace the tensors in nested containers by arrays, noting those that cannot be."""
    if isinstance(value, Mapping):
        return {k: _convert(torch, v, f"{name}[{k!r}]", problems) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_convert(torch, item, f"{name}[{i}]", problems) for i, item in enumerate(value)]
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout != torch.strided or value.is_quantized:
        problems.append(f"{name} is {value.layout} {value.dtype}, expected a dense tensor")
        return None
    tensor = value.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def save_state_dict(
    path: str | os.PathLike,
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write named arrays as a torch state dict, in their order.

    With the metadata of `load_state_dict`, the same version of torch writes the same bytes.
    """
    torch = import_torch(str(path))
    state: collections.OrderedDict[str, Any] = collections.OrderedDict()
    for name, array in arrays:
        array = np.array(array, order="C")
        if array.dtype == ml_dtypes.bfloat16:
            state[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            state[name] = torch.from_numpy(array)
    if metadata is not None:
        state._metadata = collections.OrderedDict(metadata)
    torch.save(state, path)


class PickleFile:
    """A state dict as a `TensorSource`, read whole: vocoders are small.

    Attributes:
      label, path: the file.
      tensors: name -> `TensorInfo`, in the file's order.
      metadata: see `load_state_dict`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.label = str(path)
        self._arrays, self.metadata = load_state_dict(path)
        self.tensors = {n: TensorInfo(a.shape, a.dtype) for n, a in self._arrays.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        array = self._arrays[name]
        return array[start:stop] if array.ndim else array
