"""A stage's config, checked; and the stage that it means.

The keys are those of `RunConfig`; `configs/common.py` has them all with their defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ba_jax import optim, sharding
from ba_jax.checkpoints.manager import KeepSettings
from ba_jax.config import ConfigError, from_mapping
from ba_jax.data.loader import LoaderSettings
from ba_jax.models import packed_attention
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.layers import REMAT_POLICIES
from ba_jax.stages.base import Stage
from ba_jax.stages.flow import FlowStage
from ba_jax.stages.lm import LMStage, TextLMStage
from ba_jax.stages.tokenizer import TokenizerStage
from ba_jax.stages.vocoder import VocoderStage

STAGES: dict[str, type[Stage]] = {
    cls.name: cls for cls in (TokenizerStage, FlowStage, VocoderStage, LMStage, TextLMStage)
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The loop.

    Attributes:
      steps: how many.
      accumulate: microbatches of a step, one after another.
      dtype: compute type, "float32" or "bfloat16"; parameters are float32.
      remat: of the transformers, see `layers.REMAT_POLICIES`.
      attention: of the language model: "xla", "splash" (TPU) or "cudnn" (GPU), see
        `models.packed_attention`.
      frozen_param_dtype: that frozen parameters are kept in, "float32" or "bfloat16"; the tokenizer's
        (audio_encoder, vq_bridge) stay float32, so that its codes do.
      log_every: steps between lines of metrics.
      evaluate_every: steps between evaluations; 0: none but at the end, if there is eval_data.
      evaluate_batches: batches of `eval_data`, the same each time.
      pictures: write pictures and audio of the first of them.
      record_batches: write each batch's hash to batches.csv (see `ba_jax.data.hash`).
      spike: stop when the loss is so many standard deviations above the mean of the last ones; 0:
        never. The step has been taken by then, and is not saved.
      spike_window: how many last ones; before there are as many since the run was started, no loss
        is too high.
      deadline: seconds that a step, a batch of an evaluation or a checkpoint may take once the
        first step is done; then the process ends with exit code 75. More than the evaluation takes
        to compile. 0: any time.
      profile_step: write a trace from this step on; -1: only on SIGUSR1.
      profile_steps: how many steps it takes.
      peak_flops: of a device, for MFU where the device's kind is unknown; 0: no MFU there.
      compilation_cache: folder of XLA's persistent cache; "" leaves it off.
    """

    steps: int
    accumulate: int = 1
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    frozen_param_dtype: str = "float32"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_batches: int = 4
    pictures: bool = True
    record_batches: bool = False
    spike: float = 0.0
    spike_window: int = 128
    deadline: float = 0.0
    profile_step: int = -1
    profile_steps: int = 3
    peak_flops: float = 0.0
    compilation_cache: str = "~/.cache/ba_jax/jax"

    def __post_init__(self):
        if self.steps < 1 or self.accumulate < 1 or self.log_every < 1:
            raise ValueError(
                f"steps {self.steps}, accumulate {self.accumulate}, log_every {self.log_every}:"
                " expected at least 1"
            )
        if self.spike_window < 2:
            raise ValueError(f"spike_window = {self.spike_window}, expected at least 2")
        for name in ("evaluate_every", "peak_flops", "spike", "deadline"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 0")
        for name in ("evaluate_batches", "profile_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        for name in ("dtype", "frozen_param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} {getattr(self, name)!r}, expected one of {tuple(DTYPES)}")
        if self.attention not in packed_attention.KINDS:
            raise ValueError(
                f"attention {self.attention!r}, expected one of {packed_attention.KINDS}"
            )
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat {self.remat!r}, expected one of {tuple(REMAT_POLICIES)}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A stage's config, checked; see `configs/common.py`."""

    seed: int
    model: dict
    stage: dict
    data: dict
    eval_data: dict
    loader: LoaderSettings
    init: dict
    optimizer: optim.OptimizerSettings
    mesh: sharding.MeshSettings
    train: TrainSettings
    checkpoint: KeepSettings


def parse_config(config: Mapping[str, Any]) -> RunConfig:
    """The config, with every key checked but those of the data.

    Raises:
      ConfigError: an unknown, missing or ill-typed key, or a value that makes no sense.
    """
    # A ConfigDict's sections are no dicts.
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config.items())
    try:
        return from_mapping(RunConfig, values, "config")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error


def make_stage(config: RunConfig, platform: str = "cpu") -> Stage:
    """The stage of a config, to run on "cpu", "gpu" or "tpu".

    Raises:
      ConfigError: an unknown stage, settings that it does not have, or attention that it does not
        have or that does not run there.
    """
    values = dict(config.stage.items())
    name = values.pop("name", None)
    if name not in STAGES:
        raise ConfigError(f"stage.name = {name!r}, expected one of {sorted(STAGES)}")
    cls = STAGES[name]
    model = from_mapping(BaichuanAudioConfig, config.model, "model")
    try:
        settings = from_mapping(cls.settings_class, values, "stage")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"stage: {error}") from error
    dtype, attention = DTYPES[config.train.dtype], config.train.attention
    try:
        kind = packed_attention.on_platform(attention, platform, dtype)
    except ValueError as error:
        raise ConfigError(f"train: {error}") from error
    stage = cls(model, settings, dtype=dtype, remat=config.train.remat, attention=kind)
    if attention != "xla" and "llm" not in stage.components:
        raise ConfigError(
            f"train.attention = {attention!r}: stage {name} has no language model, expected 'xla'"
        )
    return stage
