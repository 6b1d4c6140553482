"""Write small checkpoints for tests."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp


def save_variables(folder: str | os.PathLike, variables: Mapping[str, Any]) -> None:
    """Write a nested dict of jax or NumPy arrays as Orbax itself does."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(folder).absolute(), dict(variables))
