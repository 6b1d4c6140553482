"""Torch state dicts, read without torch (`ba_jax.torch_files`) and written with it."""

from __future__ import annotations

import collections
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ba_jax.convert.engine import ConversionError, TensorInfo, report_problems
from ba_jax.torch_files import TorchFileError, load_torch


def import_torch(purpose: str):
    """Import the torch module.

    Raises:
      ConversionError: torch is not installed, or older than 2.6; only writing pickles needs it.
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


def load_state_dict(
    path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Load named tensors, in the file's order, and the `_metadata` of `Module.state_dict()`.

    Raises:
      ConversionError: a file that `load_torch` refuses, or anything but named tensors.
    """
    try:
        state, metadata = load_torch(path)
    except TorchFileError as error:
        raise ConversionError(str(error)) from error
    if not isinstance(state, Mapping):
        raise ConversionError(f"{path}: holds a {_kind(state)}, expected a dict of named tensors")
    problems = [
        f"{name!r} is a {_kind(value)}, expected a tensor"
        for name, value in state.items()
        if not isinstance(name, str) or not isinstance(value, np.ndarray)
    ]
    report_problems(str(path), problems)
    try:
        metadata = json.loads(json.dumps(metadata)) if isinstance(metadata, Mapping) else None
    except (TypeError, ValueError):  # not what torch writes: of no use for export
        metadata = None
    return state, metadata


def _kind(value: Any) -> str:
    return "Tensor" if isinstance(value, np.ndarray) else type(value).__name__


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
