"""Write small checkpoints for tests."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from ba_jax.checkpoints.arrays import LazyArray


def save_variables(folder: str | os.PathLike, variables: Mapping[str, Any]) -> None:
    """Write a nested dict of jax or NumPy arrays as Orbax itself does."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(folder).absolute(), dict(variables))


def lazy(array: np.ndarray, chunk_shape: tuple[int, ...] | None = None) -> LazyArray:
    """`array` as a `LazyArray` of a single piece."""
    array = np.asarray(array)
    pieces = [((0,) * array.ndim, array)]
    return LazyArray(array.shape, array.dtype, chunk_shape or array.shape, lambda: pieces)
