"""The config of a training run as checked dataclasses, and the stage that it names.

The sections of a config are the fields of `RunConfig`; the docstrings of their dataclasses document
every key, and their defaults are the only ones (`configs/common.py` reads them from here).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ba_jax import optim, sharding
from ba_jax.checkpoints.manager import CheckpointSettings
from ba_jax.config import (
    ConfigError,
    LocalPath,
    check_at_least,
    check_choices,
    expected,
    from_mapping,
)
from ba_jax.data.loader import LoaderSettings
from ba_jax.models import packed_attention, quantized
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.layers import REMAT_POLICIES
from ba_jax.stages.base import Stage
from ba_jax.stages.flow import FlowStage
from ba_jax.stages.lm import LMStage, TextLMStage
from ba_jax.stages.tokenizer import TokenizerStage
from ba_jax.stages.understanding import UnderstandingStage
from ba_jax.stages.vocoder import VocoderStage

STAGES: dict[str, type[Stage]] = {
    cls.name: cls
    for cls in (UnderstandingStage, TokenizerStage, FlowStage, VocoderStage, LMStage, TextLMStage)
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop, `config.train`.

    Attributes:
      steps: length of the run.
      accumulation_steps: gradient accumulation: cut each batch into this many microbatches.
      dtype: compute type, "float32" or "bfloat16"; trained parameters are float32.
      remat: rematerialisation of the transformers, see `layers.REMAT_POLICIES`.
      attention: attention of the language model: "xla", "splash" and "splash_fused" (TPU), also
        with a block size ("splash:256"), or "cudnn" (GPU), see `models.packed_attention`.
      quantization: products of the language model's and the audio head's layers: "none" (in
        `dtype`), "int8" or "float8", see `models.quantized`.
      frozen_param_dtype: type in which frozen parameters are kept, "float32" or "bfloat16" (half
        the memory). The tokenizer (audio_encoder, vq_bridge) stays float32, or its codes would
        change.
      log_every: write metrics every N steps.
      evaluate_every: evaluate every N steps; 0 evaluates only at the end. Needs eval_data.
      evaluate_batches: number of batches of eval_data, the same at each evaluation.
      pictures: write pictures and audio of the first of these batches.
      record_batch_hashes: write the hash of each batch to batches.csv, see `ba_jax.data.hash`.
      spike_standard_deviations: stop when the loss exceeds the mean of the last
        `spike_window_steps` losses by this many standard deviations; 0 never stops. The step that
        spiked is not saved.
      spike_window_steps: window of the spike check, which begins once the window is full.
      step_timeout_seconds: limit for a step, a batch of an evaluation or a checkpoint, once the
        first step is done; the process then ends with exit code 75. It must exceed the compile
        time of the evaluation. 0: no limit.
      profile_start_step: write a profiler trace from this step on; -1: only on SIGUSR1.
      profile_steps: number of steps in a trace.
      peak_flops_per_device: FLOP/s, to report MFU on devices whose kind is unknown; 0: no MFU
        there.
      compilation_cache: folder of XLA's persistent compilation cache; "" turns it off.
    """

    steps: int = 1
    accumulation_steps: int = 1
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    quantization: str = "none"
    frozen_param_dtype: str = "float32"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_batches: int = 4
    pictures: bool = True
    record_batch_hashes: bool = False
    spike_standard_deviations: float = 0.0
    spike_window_steps: int = 128
    step_timeout_seconds: float = 0.0
    profile_start_step: int = -1
    profile_steps: int = 3
    peak_flops_per_device: float = 0.0
    compilation_cache: LocalPath = "~/.cache/ba_jax/jax"

    def __post_init__(self):
        check_at_least(
            self,
            **dict.fromkeys(("steps", "accumulation_steps", "log_every"), 1),
            **dict.fromkeys(("evaluate_batches", "profile_steps"), 1),
            **dict.fromkeys(("evaluate_every", "peak_flops_per_device"), 0),
            **dict.fromkeys(("spike_standard_deviations", "step_timeout_seconds"), 0),
            spike_window_steps=2,
        )
        packed_attention.check_kind(self.attention)
        check_choices(
            self,
            dtype=DTYPES,
            frozen_param_dtype=DTYPES,
            quantization=quantized.KINDS,
            remat=REMAT_POLICIES,
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Config of a run, checked except for the data sections and the stage's settings.

    Attributes:
      seed: seed of the parameters and of everything drawn in a step; data have their own.
      model: sizes, see `models.baichuan_audio.BaichuanAudioConfig` and configs/models.py.
      stage: `name`, one of STAGES, and the settings of its class in `ba_jax.stages`.
      data: training data, see configs/mixtures.py.
      eval_data: held-out data of the evaluations; empty: none.
      loader: worker processes of a host, and the batches that each prefetches.
      init: component -> WORKDIR or checkpoint that it starts from, or "random". "" means random
        for a component that trains, and is an error for a frozen one.
      optimizer: AdamW; its `rules` say which parameters train.
      mesh: sizes of the mesh axes replica, fsdp, tensor and sequence.
      train: the loop.
      checkpoint: how often to save, and which checkpoints to keep.
    """

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
    checkpoint: CheckpointSettings

    def __post_init__(self):
        if (name := self.stage.get("name")) not in STAGES:
            raise ConfigError(f"stage.name = {expected(name, sorted(STAGES))}")


def parse_config(config: Mapping[str, Any]) -> RunConfig:
    """Check a config (a ConfigDict or a dict); the data sections are checked where they are opened.

    Raises:
      ConfigError: an unknown, missing or ill-typed key, or an invalid value.
    """
    # A ConfigDict's sections are no dicts.
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config.items())
    return from_mapping(RunConfig, values, "config")


def make_stage(config: RunConfig, platform: str = "cpu") -> Stage:
    """Build the stage of a config, to run on "cpu", "gpu" or "tpu".

    Raises:
      ConfigError: an unknown stage setting, attention that the stage lacks or that the platform
        does not support, or quantization that the stage lacks or whose library is not installed.
    """
    values = dict(config.stage.items())
    name = values.pop("name")
    stage_class = STAGES[name]
    model = from_mapping(BaichuanAudioConfig, config.model, "model")
    settings = from_mapping(stage_class.settings_class, values, "stage")
    train = config.train
    dtype = DTYPES[train.dtype]
    try:
        kind = packed_attention.on_platform(train.attention, platform, dtype)
        quantized.check(train.quantization)
    except ValueError as error:
        raise ConfigError(f"train: {error}") from error
    # A scan copies the weights and what the backward pass needs of each layer, in and out of
    # stacks: a tenth of a step on a CPU. Models that train there have few layers to compile.
    options = {"remat": train.remat, "attention": kind, "scan": platform != "cpu"}
    options["quantization"] = train.quantization
    stage = stage_class(model, settings, dtype=dtype, **options)
    for key, usual in (("attention", "xla"), ("quantization", "none")):
        if (value := getattr(train, key)) != usual and "llm" not in stage.components:
            raise ConfigError(
                f"train.{key} = {value!r}: stage {name} has no language model, expected {usual!r}"
            )
    return stage
