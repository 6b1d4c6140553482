"""Defaults and helpers that the configs of all stages share.

    python -m ba_jax.train --config=configs/STAGE.py:SIZE --workdir=DIR [--config.a.b=c ...]

`base` has every key of a run with its default. The sections and keys are documented in
`ba_jax.run_config.RunConfig` and the settings dataclasses that it names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from ba_jax.checkpoints.manager import CheckpointSettings
from ba_jax.config import ConfigError, expected
from ba_jax.data.loader import LoaderSettings
from ba_jax.optim import OptimizerSettings
from ba_jax.run_config import STAGES, TrainSettings
from ba_jax.sampling.logits import Sampling
from ba_jax.sampling.synthesize import SynthesisSettings
from ba_jax.sharding import MeshSettings
from ba_jax.vocab import COMPONENTS
from configs import models


def base(size: str, stage: str) -> ConfigDict:
    """A run's config with the default of every key; the stage's file sets the rest."""
    return ConfigDict(
        {
            "seed": 0,
            "model": models.get_config(size),
            "stage": {"name": stage, **dataclasses.asdict(STAGES[stage].settings_class())},
            "data": {},
            "eval_data": {},
            "loader": dataclasses.asdict(LoaderSettings()),
            "init": dict.fromkeys(COMPONENTS, ""),
            "optimizer": dataclasses.asdict(OptimizerSettings()),
            "mesh": dataclasses.asdict(MeshSettings()),
            "train": dataclasses.asdict(TrainSettings()),
            "checkpoint": dataclasses.asdict(CheckpointSettings()),
        }
    )


def sampling(
    temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0
) -> dict[str, float]:
    """Sampling of ids or codes; greedy by default, see `ba_jax.sampling.logits.Sampling`."""
    return dataclasses.asdict(Sampling(temperature, top_k, top_p, repetition_penalty))


def synthesis(nano: bool, longest: int) -> dict[str, Any]:
    """Settings of codes to waves, for segments of at most `longest` frames (64 at nano)."""
    settings = SynthesisSettings(steps=10, guidance=0.7, frames=(64, 128, longest))
    if nano:
        # A flow trained for some 250 steps is no better than the decoder's own mel.
        settings = dataclasses.replace(
            settings, vocoder="griffin_lim", mel="decoder", frames=(40, 64)
        )
    return dataclasses.asdict(settings)


def at_scale(config: ConfigDict) -> ConfigDict:
    """Settings of a run on a pod: bfloat16, remat, FSDP over a slice, workers, checkpoints."""
    config.loader.workers = 16
    config.mesh.update({"replica": 1, "fsdp": -1})
    config.train.update(
        {
            "dtype": "bfloat16",
            "remat": "full",
            "log_every": 20,
            "evaluate_every": 1000,
            "evaluate_batches": 16,
            "spike_standard_deviations": 12.0,
            "step_timeout_seconds": 1800.0,
        }
    )
    config.checkpoint.update({"every": 500, "keep_last": 3, "keep_best": 1})
    return config


def choose(size: str, sizes: tuple[str, ...]) -> str:
    """Return `size` if it is one of `sizes`.

    Raises:
      ConfigError: it is not.
    """
    if size not in sizes:
        raise ConfigError(f"size {expected(size, sizes)}")
    return size


def of_split(data: ConfigDict, split: str, **changes: Any) -> ConfigDict:
    """A copy of a data section that reads another split of its datasets."""
    copy = data.copy_and_resolve_references()
    for member in copy.mixture.values():
        member.split = split
    copy.update(changes)
    return copy
