"""Read `model.bin` of CTranslate2 Whisper folders, a range of rows at a time.

Layout (little endian; binary version 4 and later): u32 version, spec name, u32 revision, u32 count;
then per variable its name, u8 rank, u32 dimensions, u8 dtype, u32 byte count, data; then u32 count
of aliases, each a pair of names. A name is u16 length, bytes, NUL included.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ba_jax.convert.engine import ConversionError, TensorInfo
from ba_jax.convert.safetensors_io import read_rows
from ba_jax.files import missing, stand_in

MODEL_FILE = "model.bin"
VERSIONS = range(4, 7)
MAX_VARIABLES = 100_000
_DTYPES = tuple(
    np.dtype(t) for t in (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)
)


class CTranslate2File:
    """A CTranslate2 `model.bin`; only the variables' headers are read when it is opened.

    Attributes:
      label, path: the file.
      spec: kind of the model, such as `WhisperSpec`.
      tensors: name -> `TensorInfo` of the weights, in file order (fused q, k, v as
        `.../self_attention/linear_0`, out as `linear_1`).
      scalars: name -> value of the rank-0 variables (`encoder/num_heads`, flags).
      aliases: name -> name of the variable that it shares.

    Raises:
      ConversionError: not a CTranslate2 model, or cut short.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.label = str(path)
        self.tensors: dict[str, TensorInfo] = {}
        self.scalars: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        if not self.path.is_file():
            raise ConversionError(f"{missing(path)}, expected a CTranslate2 model")
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            if other := stand_in(file.read(64)):
                raise ConversionError(f"{path}: {other}, expected a CTranslate2 model")
            file.seek(0)
            (version,) = self._unpack(file, "<I")
            if version not in VERSIONS:
                raise ConversionError(
                    f"{path}: binary version {version}, expected {VERSIONS[0]} to {VERSIONS[-1]}"
                )
            self.spec = self._read_name(file)
            self._unpack(file, "<I")  # revision
            for _ in range(self._read_count(file, "variables")):
                self._read_variable(file)
            for _ in range(self._read_count(file, "aliases")):
                alias = self._read_name(file)
                self.aliases[alias] = self._read_name(file)

    def _unpack(self, file, pattern: str) -> tuple:
        return struct.unpack(pattern, self._read_bytes(file, struct.calcsize(pattern)))

    def _read_bytes(self, file, count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise ConversionError(
                f"{self.path}: cut short: {self._size} bytes, expected {count - len(data)} more "
                f"after {', '.join(list(self.tensors)[-1:]) or 'the header'}"
            )
        return data

    def _read_count(self, file, kind: str) -> int:
        (count,) = self._unpack(file, "<I")
        if count > MAX_VARIABLES:
            raise ConversionError(f"{self.path}: {count} {kind}, expected under {MAX_VARIABLES}")
        return count

    def _read_name(self, file) -> str:
        (length,) = self._unpack(file, "<H")
        data = self._read_bytes(file, length).rstrip(b"\0")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ConversionError(
                f"{self.path}: name {data[:40]!r}, expected UTF-8: not a CTranslate2 model"
            ) from error

    def _read_variable(self, file) -> None:
        name = self._read_name(file)
        if name in self._offsets:
            raise ConversionError(f"{self.path}: duplicate tensor {name}")
        (rank,) = self._unpack(file, "<B")
        shape = self._unpack(file, f"<{rank}I")
        kind, nbytes = self._unpack(file, "<BI")
        if kind >= len(_DTYPES):
            raise ConversionError(
                f"{self.path}: {name} has dtype {kind}, expected 0 to {len(_DTYPES) - 1}"
            )
        info = TensorInfo(shape, _DTYPES[kind])
        if info.nbytes != nbytes:
            raise ConversionError(
                f"{self.path}: {name} has {nbytes} bytes, expected {info.nbytes} for "
                f"{info.dtype.name} {list(shape)}"
            )
        offset = file.tell()
        if offset + nbytes > self._size:
            raise ConversionError(
                f"{self.path}: cut short in {name}: {self._size} bytes, expected at least "
                f"{offset + nbytes}"
            )
        self._offsets[name] = offset
        if rank:
            self.tensors[name] = info
            file.seek(nbytes, os.SEEK_CUR)
        else:
            self.scalars[name] = np.frombuffer(self._read_bytes(file, nbytes), info.dtype)[0].item()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows `start:stop` along axis 0 of a tensor."""
        return read_rows(self.path, self._offsets[name], self.tensors[name], start, stop)


def read_whisper_config(model: CTranslate2File) -> dict[str, Any]:
    """Return the encoder's sizes, from its tensors, under the names of Hugging Face's config.

    Raises:
      ConversionError: the model is not a Whisper, or lacks a tensor that shows a size.
    """
    if model.spec != "WhisperSpec":
        raise ConversionError(f"{model.path}: spec {model.spec!r}, expected WhisperSpec")

    def shape(name: str, rank: int) -> tuple[int, ...]:
        info = model.tensors.get(name)
        if info is None or len(info.shape) != rank or not math.prod(info.shape):
            got = "none" if info is None else str(info.shape)
            raise ConversionError(f"{model.path}: {name}: expected rank {rank}, got {got}")
        return info.shape

    layers = {
        int(name.split("/")[1].removeprefix("layer_"))
        for name in model.tensors
        if name.startswith("encoder/layer_") and name.split("/")[1][len("layer_") :].isdigit()
    }
    heads = model.scalars.get("encoder/num_heads")
    if not isinstance(heads, int) or heads < 1:
        raise ConversionError(f"{model.path}: encoder/num_heads is {heads}, expected a count")
    d_model, mels, _ = shape("encoder/conv1/weight", 3)
    positions, _ = shape("encoder/position_encodings/encodings", 2)
    ffn, _ = shape("encoder/layer_0/ffn/linear_0/weight", 2)
    return {
        "model_type": "whisper",
        "d_model": d_model,
        "encoder_layers": len(layers),
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": ffn,
        "num_mel_bins": mels,
        "max_source_positions": positions,
    }
