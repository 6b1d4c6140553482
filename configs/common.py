"""What all stages' configs have in common: every key of a run, with its default.

  python -m ba_jax.train --config=configs/STAGE.py:SIZE --workdir=DIR [--config.a.b=c ...]

seed         of parameters and of everything drawn in a step
model        sizes, see configs/models.py
stage        `name` and the settings of its class in ba_jax/stages
data         what it is trained on, see configs/mixtures.py; eval_data: what it is evaluated on
loader       worker processes of a host, and how many batches each builds ahead
init         component -> the WORKDIR or checkpoint that it starts from; "random"; "" is random
             where the stage trains it and an error where it does not
optimizer    AdamW; `rules` say which parameters train (`ba_jax.optim.OptimizerSettings`)
mesh         devices along replica, fsdp, tensor, sequence; -1 takes what is left. `slices`:
             how many TPU slices (or groups of hosts) replica is laid over first
train        steps, microbatches, precision, how often to log and evaluate, profiling. `attention`:
             "xla", "splash" on TPUs, "cudnn" on GPUs. `frozen_param_dtype`: "bfloat16" halves what
             frozen parameters take, but for the tokenizer's. What stops a run: a loss `spike`
             deviations above the last `spike_window`, `deadline` seconds
checkpoint   how often, and which stay: the `last` ones (1: none to fall back on, should it be
             damaged) and the `best` by `metric`
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from ba_jax.run_config import STAGES
from ba_jax.vocab import COMPONENTS
from configs import models


def base(size: str, stage: str) -> ConfigDict:
    """A run's config with the defaults of everything: a stage's file sets what is its own."""
    return ConfigDict(
        {
            "seed": 0,
            "model": models.get_config(size),
            "stage": {"name": stage, **dataclasses.asdict(STAGES[stage].settings_class())},
            "data": {},
            "eval_data": {},
            "loader": {"workers": 0, "prefetch": 2},
            "init": dict.fromkeys(COMPONENTS, ""),
            "optimizer": {
                "rules": (),
                "learning_rate": 1e-4,
                "warmup": 0,
                "schedule": "cosine",
                "final": 0.1,
                "b1": 0.9,
                "b2": 0.98,
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
                "clip_groups": (),
                "average": 0.0,
            },
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1, "sequence": 1, "slices": 1},
            "train": {
                "steps": 1,
                "accumulate": 1,
                "dtype": "float32",
                "remat": "none",
                "attention": "xla",
                "frozen_param_dtype": "float32",
                "log_every": 10,
                "evaluate_every": 0,
                "evaluate_batches": 4,
                "pictures": True,
                "record_batches": False,
                "spike": 0.0,
                "spike_window": 128,
                "deadline": 0.0,
                "profile_step": -1,
                "profile_steps": 3,
                "peak_flops": 0.0,
                "compilation_cache": "~/.cache/ba_jax/jax",
            },
            "checkpoint": {"every": 0, "last": 1, "best": 0, "metric": "eval/loss"},
        }
    )


def sampling(
    temperature: float, top_k: int, top_p: float, repetition_penalty: float = 1.0
) -> dict[str, float]:
    """How ids or codes are chosen, see `ba_jax.sampling.logits.Sampling`."""
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }


def synthesis(nano: bool, longest: int) -> dict[str, Any]:
    """How codes become waves, in segments of at most so many frames (64 at nano)."""
    return {
        "vocoder": "griffin_lim" if nano else "vocoder",
        # Some 250 steps do not teach a flow more than the decoder knows.
        "mel": "decoder" if nano else "flow",
        "steps": 10,
        "guidance": 0.7,
        "iterations": 32,
        "rows": 16,
        "frames": (40, 64) if nano else (64, 128, longest),
    }


def at_scale(config: ConfigDict, *, fsdp: int = -1, replica: int = 1) -> ConfigDict:
    """Sets what any run on a pod has: bfloat16, remat, FSDP over a slice, workers, checkpoints."""
    config.loader = ConfigDict({"workers": 16, "prefetch": 2})
    config.mesh.update({"replica": replica, "fsdp": fsdp})
    config.train.update({"dtype": "bfloat16", "remat": "full", "log_every": 20})
    config.train.update({"evaluate_every": 1000, "evaluate_batches": 16})
    config.train.update({"spike": 12.0, "deadline": 1800.0})
    config.checkpoint.update({"every": 500, "last": 3, "best": 1})
    return config


def choose(size: str, sizes: tuple[str, ...]) -> str:
    """The size, if it is one.

    Raises:
      ValueError: it is none.
    """
    if size not in sizes:
        raise ValueError(f"size {size!r}: expected one of {sizes}")
    return size


def of_split(data: ConfigDict, split: str, **changes: Any) -> ConfigDict:
    """The same data, of another split."""
    found = data.copy_and_resolve_references()
    for member in found.mixture.values():
        member.split = split
    found.update(changes)
    return found
