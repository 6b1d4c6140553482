"""Losses of the output layers, for the stages that train a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ba_jax.losses.targets import Sums, TargetLoss, Weights, loss_at_targets
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sharding import constrain, constrain_parameters
from ba_jax.stages.base import Variables


def output_layer(config: BaichuanAudioConfig, variables: Variables) -> Variables:
    """The variables that `text_logits` needs."""
    table = "embedding" if config.llm.tied_embeddings else "lm_head"
    return {"params": {"llm": {table: variables["params"]["llm"][table]}}}


def text_logits(variables: Variables, hidden_ND: jax.Array) -> jax.Array:
    """Logits (N, V) in the compute type; `output_layer` has the variables."""
    (table_VD,) = variables["params"]["llm"].values()
    return constrain(jnp.einsum("nd,vd->nv", hidden_ND, table_VD), None, "vocab")


def output_loss(
    job: TargetLoss,
    config: BaichuanAudioConfig,
    variables: Variables,
    hidden_BLD: jax.Array,
    target_BL: jax.Array,
    values: Sequence[jax.Array],
    weights: Weights,
) -> tuple[jax.Array, Sums]:
    """`loss_at_targets` with matrices in the type of the hidden states: half to gather in bfloat16.

    Their gradients are summed over chunks and devices in that type, too, as those of the layers.
    """
    dtype = hidden_BLD.dtype
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, variables["params"]
    )
    variables = {**variables, "params": constrain_parameters(params, config.heads)}
    return loss_at_targets(job, variables, hidden_BLD, target_BL, values, weights)


def count_trips(targets: float, chunk: int) -> int:
    """Chunks that hold a device's targets."""
    return math.ceil(targets / chunk) if chunk else 1
