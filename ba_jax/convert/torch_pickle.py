"""Vocoder files: `hift.pt`, a torch pickle read without running any code, or safetensors.

Every file is presented under the canonical names of CosyVoice 2's released `hift.pt` (no prefix,
weight norm as `weight_g` and `weight_v`); the names it came with are kept for export.
"""

from __future__ import annotations

import collections
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ba_jax.convert.engine import ConversionError, TensorInfo, TensorSource, report_problems
from ba_jax.convert.safetensors_io import SafetensorsFile

# A released hift.pt has 83 MB.
MAX_PICKLE_BYTES = 2 << 30
# What wraps the generator in some files: data-parallel training, and the GAN as a whole.
_PREFIX = re.compile(r"^(module\.)?(generator\.)?")
# The names of torch.nn.utils.parametrizations.weight_norm: 0 is the magnitude, 1 the direction.
_WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def canonical_name(name: str) -> str:
    """`generator.ups.0.parametrizations.weight.original0` -> `ups.0.weight_g`."""
    name = _PREFIX.sub("", name)
    for long, short in _WEIGHT_NORM.items():
        if name.endswith(f".{long}"):
            return name.removesuffix(long) + short
    return name


def import_torch(purpose: str):
    """The torch module.

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


def load_pickle(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The tensors of a torch pickle as NumPy arrays, in the file's order, and its `_metadata`.

    The latter is what `Module.state_dict()` attaches (versions of the modules), or None.

    The pickle is read with `weights_only=True`: it may build tensors and containers, and anything
    else that it asks for is refused before it runs.

    Raises:
      ConversionError: a file that is missing, too large, truncated, no pickle, asks for code, or
        holds something other than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path}: no such file, expected a torch pickle")
    size = path.stat().st_size
    if size > MAX_PICKLE_BYTES:
        raise ConversionError(f"{path}: {size} bytes, expected a vocoder under {MAX_PICKLE_BYTES}")
    torch = import_torch(str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path}: refused: a pickle that holds more than tensors, or none at all "
            f"({_reason(error)})"
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise ConversionError(
            f"{path}: {size} bytes, truncated or not a torch pickle ({_reason(error)})"
        ) from error
    if not isinstance(state, Mapping):
        raise ConversionError(
            f"{path}: holds a {type(state).__name__}, expected a dict of named tensors"
        )
    arrays, problems = {}, []
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            problems.append(f"{name!r} is a {type(value).__name__}, expected a tensor")
        elif value.layout != torch.strided or value.is_quantized:
            problems.append(f"{name} is {value.layout} {value.dtype}, expected a dense tensor")
        else:
            arrays[name] = _to_numpy(torch, value)
    report_problems(str(path), problems)
    return arrays, _plain(getattr(state, "_metadata", None))


def _plain(metadata: Any) -> dict[str, Any] | None:
    """`metadata` if JSON can hold it, else None."""
    try:
        return json.loads(json.dumps(metadata)) if isinstance(metadata, Mapping) else None
    except (TypeError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    """The line of torch's message that says what is wrong, without its advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[0][:200]


def _to_numpy(torch, tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def save_pickle(
    path: str | os.PathLike,
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes named arrays as a torch state dict, in the order given.

    `metadata` is as from `load_pickle`; the same version of torch then writes the same bytes.
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
    """A torch pickle as a `TensorSource`. It is read whole: vocoders are small.

    Attributes:
      label, path: the file.
      tensors: name -> `TensorInfo`, in the file's order.
      metadata: as from `load_pickle`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.label = str(path)
        self._arrays, self.metadata = load_pickle(path)
        self.tensors = {n: TensorInfo(a.shape, a.dtype) for n, a in self._arrays.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        array = self._arrays[name]
        return array[start:stop] if array.ndim else array


class VocoderSource:
    """A vocoder file under canonical names.

    Attributes:
      label: the file.
      tensors: canonical name -> `TensorInfo`, in the file's order.
      original: canonical name -> the file's name.

    Raises:
      ConversionError: two tensors that mean the same, as with both weight-norm namings in one file.
    """

    def __init__(self, source: TensorSource):
        self.source = source
        self.label = source.label
        self.tensors: dict[str, TensorInfo] = {}
        self.original: dict[str, str] = {}
        problems = []
        for name, info in source.tensors.items():
            canonical = canonical_name(name)
            if canonical in self.original:
                problems.append(f"duplicate tensor {canonical}: {self.original[canonical]}, {name}")
                continue
            self.tensors[canonical] = info
            self.original[canonical] = name
        report_problems(self.label, problems)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.source.read(self.original[name], start, stop)


def open_vocoder(path: str | os.PathLike) -> VocoderSource:
    """Opens `hift.pt` or `hift.safetensors`; which of them is told by content, not by name.

    Raises:
      ConversionError: neither, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path}: no such file, expected a vocoder (hift.pt or safetensors)")
    with open(path, "rb") as file:
        head = file.read(9)
    if not zipfile.is_zipfile(path) and len(head) == 9 and head[8:] == b"{":
        return VocoderSource(SafetensorsFile(path))
    return VocoderSource(PickleFile(path))
