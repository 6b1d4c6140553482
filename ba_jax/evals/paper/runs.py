"""Runs that the tables need: taken where the nano recipe left them, or trained by its commands."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from ba_jax.checkpoints import layout
from ba_jax.recipe import Step, printable

MODELS: Mapping[str, str] = {"nano": "nano_whisper", "nano_scratch": "nano"}
"""Size -> argument of the configs: with Whisper-base as the audio encoder, or from scratch."""


class RunError(RuntimeError):
    """A run that is missing and could not be trained."""


class NanoRuns:
    """Folders of the runs of configs/recipes.py:nano.

    Args:
      folders: searched in this order; missing runs are trained in the last.
      size: one of MODELS.
      execute: runs a command (tests replace it).

    Raises:
      RunError: an unknown size.
    """

    def __init__(
        self,
        folders: Sequence[pathlib.Path],
        size: str,
        execute: Callable[[Sequence[str]], None] | None = None,
    ):
        from configs import recipes

        if size not in MODELS:
            raise RunError(f"size {size!r}, expected one of {sorted(MODELS)}")
        self.folders, self.model = [pathlib.Path(folder) for folder in folders], MODELS[size]
        self._execute = _call if execute is None else execute
        self._steps = {step.name: step for step in recipes.nano(self.model)}

    def get(self, name: str) -> pathlib.Path:
        """Folder of a run, trained first if it is missing.

        Raises:
          RunError: an unknown name, or a command that failed.
        """
        if name not in self._steps:
            raise RunError(f"run {name!r}, expected one of {sorted(self._steps)}")
        return self._complete(name, self._steps[name])

    def tokenizer_of(self, codebooks: int) -> pathlib.Path:
        """Folder of a tokenizer trained with the first `codebooks` codebooks alone.

        Raises:
          RunError: a command that failed.
        """
        from configs.models import get_config

        sizes = tuple(get_config(self.model).vq_bridge.codebook_sizes[:codebooks])
        flags = [
            f"--config.model.{part}.codebook_sizes={sizes!r}".replace(" ", "")
            for part in ("vq_bridge", "audio_embed", "audio_head")
        ]
        return self._complete(f"tokenizer_{codebooks}", self._steps["tokenizer"], flags)

    def steps(self, name: str) -> int | None:
        """Optimiser steps of a run, None if it is missing."""
        folder = self._complete_folder(name, self._steps.get(name))
        return None if folder is None else _training_steps(folder)

    def _complete_folder(self, name: str, step: Step | None) -> pathlib.Path | None:
        folders = (folder / name for folder in self.folders)
        return next((folder for folder in folders if _is_complete(folder, step)), None)

    def _complete(self, name: str, step: Step, flags: Sequence[str] = ()) -> pathlib.Path:
        """The complete folder of that name, made by the step's commands if there is none."""
        if folder := self._complete_folder(name, step):
            return folder
        for before in step.after:
            for command in self._steps[before].filled(self.folders[-1], self.get):
                self._execute(_interpreted(command))
        target = self.folders[-1] / name
        for command in step.filled(target, self.get):
            self._execute([*_interpreted(command), *flags])
        if not _is_complete(target, step):
            raise RunError(
                f"{target}: the command ended, but the run is not complete: run it again to resume"
            )
        return target


def _interpreted(command: Sequence[str]) -> list[str]:
    return [sys.executable if word == "python" else word for word in command]


def _call(command: Sequence[str]) -> None:
    """Run a command in the root of the tree.

    Raises:
      RunError: it failed.
    """
    print(printable(command), flush=True)
    root = pathlib.Path(__file__).resolve().parents[3]
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code:
        raise RunError(f"{printable(command)}: exit status {code}")


def _training_steps(folder: pathlib.Path) -> int | None:
    """Steps that a run's own config asks for: the long recipe has more than the short one."""
    try:
        return (layout.read_run_config(folder) or {})["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_complete(folder: pathlib.Path, step: Step | None) -> bool:
    """Whether a training run is at its last step, or the output of another step is complete."""
    steps = _training_steps(folder)
    if steps is not None:
        return layout.has_step(folder, steps)
    return step is not None and bool(step.complete) and (folder / step.complete).exists()
