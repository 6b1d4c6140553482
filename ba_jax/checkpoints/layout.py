"""Names and folders of checkpoints on disk. Imports no JAX, so that any tool may ask.

WORKDIR/config.json                    the config of the run
WORKDIR/done                           exists once the run is at its last step
WORKDIR/checkpoints/STEP/weights/      variables, an Orbax tree
WORKDIR/checkpoints/STEP/{train,note}  see `manager`
FOLDER/weights/                        a converted checkpoint, beside its config files
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ba_jax.config import ConfigError

CHECKPOINTS_FOLDER = "checkpoints"
WEIGHTS_FOLDER = "weights"
CONFIG_FILE = "config.json"
DONE_FILE = "done"
METADATA_FILE = "_METADATA"  # Orbax's name


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged, or not what the caller asked for."""


def named_steps(folder: str | os.PathLike) -> list[int]:
    """Steps that something in a run's `checkpoints` folder is named for, in order."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(f.name) for f in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", f.name))


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """Steps with a folder in a run's `checkpoints` folder, in order.

    A folder gets its name when it is complete; `manager.Checkpoints` checks that it still is.
    """
    return [step for step in named_steps(folder) if (Path(folder) / str(step)).is_dir()]


def orbax_folder(directory: str | os.PathLike) -> Path:
    """The Orbax tree in `directory`: the folder itself or its `weights`.

    Raises:
      CheckpointError: neither is a complete Orbax checkpoint.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder, expected an Orbax checkpoint")
    for folder in (directory, directory / WEIGHTS_FOLDER):
        if (folder / METADATA_FILE).is_file():
            return folder
    raise CheckpointError(
        f"{directory}: neither it nor its {WEIGHTS_FOLDER}/ holds {METADATA_FILE}: not an Orbax "
        "checkpoint, or its writing was interrupted"
    )


def weights_folder(path: str | os.PathLike) -> Path:
    """The folder of weights that a path stands for.

    Args:
      path: a run's WORKDIR (its latest checkpoint), one of its checkpoints, or a folder that
        `ba_jax.convert` or Orbax wrote.

    Raises:
      CheckpointError: no complete checkpoint there.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder, expected a checkpoint or a run's workdir")
    if (path / CHECKPOINTS_FOLDER).is_dir():
        steps = complete_steps(path / CHECKPOINTS_FOLDER)
        if not steps:
            raise CheckpointError(f"{path}: a run without a complete checkpoint")
        path = path / CHECKPOINTS_FOLDER / str(steps[-1])
        if not (path / WEIGHTS_FOLDER / METADATA_FILE).is_file():
            raise CheckpointError(
                f"{path}: damaged, has no {WEIGHTS_FOLDER}/{METADATA_FILE}; resume the run, which "
                f"sets it aside, or name another of its checkpoints, {steps[:-1] or 'none'}"
            )
    for folder in (path / WEIGHTS_FOLDER, path):
        if (folder / METADATA_FILE).is_file():
            return folder
    raise CheckpointError(f"{path}: neither a checkpoint nor a run's workdir")


def workdir_of(weights: Path) -> Path | None:
    """The WORKDIR whose checkpoint a folder of weights belongs to; None for other weights."""
    checkpoints = weights.parent.parent
    return checkpoints.parent if checkpoints.name == CHECKPOINTS_FOLDER else None


def has_step(workdir: str | os.PathLike, step: int) -> bool:
    """Whether a run has a checkpoint of this step."""
    return (Path(workdir) / CHECKPOINTS_FOLDER / str(step) / WEIGHTS_FOLDER).is_dir()


def read_run_config(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The config of a training run; None if `folder` holds none, or a converted checkpoint's.

    Raises:
      ConfigError: config.json is damaged.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
        return config if config.keys() & {"model", "train"} else None
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged, expected the config of a run ({error!r})") from error


def stamp(weights: str | os.PathLike) -> int:
    """Modification time of a checkpoint, in ns: tells whether results were made with it."""
    return os.stat(Path(weights) / METADATA_FILE).st_mtime_ns
