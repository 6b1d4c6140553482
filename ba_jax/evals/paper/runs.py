"""Runs that the tables need: taken where the nano recipe left them, or trained by its commands."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from ba_jax.checkpoints import layout
from ba_jax.config import ConfigError, expected
from ba_jax.recipe import Step, printable

MODELS: Mapping[str, str] = {"nano": "nano_whisper", "nano_scratch": "nano"}
"""Size -> argument of the configs: with Whisper-base as the audio encoder, or from scratch."""


class RunError(RuntimeError):
    """A run that is missing and could not be trained."""


class NanoRuns:
    """Folders of the runs of configs/recipes.py:nano; raises RunError.

    Args:
      folders: searched in this order; missing runs are trained in the last.
      size: one of MODELS.
      execute: runs a command (tests replace it).
    """

    def __init__(
        self,
        folders: Sequence[pathlib.Path],
        size: str,
        execute: Callable[[Sequence[str]], None] | None = None,
    ):
        from configs import recipes

        if size not in MODELS:
            raise ConfigError(f"size {expected(size, sorted(MODELS))}")
        self.folders, self.model = [pathlib.Path(folder) for folder in folders], MODELS[size]
        self._execute = _call if execute is None else execute
        self._steps = {step.name: step for step in recipes.nano(self.model)}

    def get(self, name: str) -> pathlib.Path:
        """Return the folder of a run, trained first if it is missing."""
        if name not in self._steps:
            raise RunError(f"run {name!r}, expected one of {sorted(self._steps)}")
        return self._complete(name, self._steps[name])

    def tokenizer_of(self, codebooks: int) -> pathlib.Path:
        """Return the folder of a tokenizer trained with the first `codebooks` codebooks alone."""
        from configs.models import get_config

        sizes = tuple(get_config(self.model).vq_bridge.codebook_sizes[:codebooks])
        flags = [
            f"--config.model.{part}.codebook_sizes={sizes!r}".replace(" ", "")
            for part in ("vq_bridge", "audio_embed", "audio_head")
        ]
        return self._complete(f"tokenizer_{codebooks}", self._steps["tokenizer"], flags)

    def steps(self, name: str) -> int | None:
        """Return the number of optimiser steps of a run, None if it is missing."""
        folder = self._find(name, self._steps.get(name))
        return None if folder is None else _training_steps(folder)

    def _find(self, name: str, step: Step | None) -> pathlib.Path | None:
        folders = (folder / name for folder in self.folders)
        return next((folder for folder in folders if _is_complete(folder, step)), None)

    def _complete(self, name: str, step: Step, flags: Sequence[str] = ()) -> pathlib.Path:
        """Return the complete folder of that name, made by the step's commands if necessary."""
        if folder := self._find(name, step):
            return folder
        target = self.folders[-1] / name
        for before in step.after:
            for command in self._steps[before].filled(self.folders[-1], self.get):
                self._execute(command)
        for command in step.filled(target, self.get):
            self._execute([*command, *flags])
        if not _is_complete(target, step):
            raise RunError(
                f"{target}: the command ended, but the run is not complete: run it again to resume"
            )
        return target


def _call(command: Sequence[str]) -> None:
    """Run a command in the root of the tree, with this Python; raise RunError if it fails."""
    command = [sys.executable if word == "python" else word for word in command]
    print(printable(command), flush=True)
    root = pathlib.Path(__file__).resolve().parents[3]
    if code := subprocess.run(command, cwd=root, check=False).returncode:
        raise RunError(f"{printable(command)}: exit status {code}")


def _training_steps(folder: pathlib.Path) -> int | None:
    """Return the steps that a run's own config asks for; recipes differ in them."""
    try:
        return (layout.read_run_config(folder) or {})["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_complete(folder: pathlib.Path, step: Step | None) -> bool:
    """A training run is at its last step, or the output of another step is complete."""
    steps = _training_steps(folder)
    if steps is not None:
        return layout.has_step(folder, steps)
    return step is not None and bool(step.complete) and (folder / step.complete).exists()
