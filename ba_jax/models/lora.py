"""Low-rank adapters on the language model's matrices (Hu et al. 2021), for training on one GPU.

A targeted matrix W (in, out) gains A (in, rank) @ B (rank, out) * alpha / rank. A and B are
parameters beside it, `params/llm/layers/lora_NAME_a` and `lora_NAME_b`, stacked over the layers
like the rest. B starts at zero, so fresh adapters do not change the model's output.

Released checkpoints have no adapters: call `merge_lora` before exporting.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

ModelConfig = TypeVar("ModelConfig")

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
"""Matrices of a layer that can be adapted, by the name of their module."""


def adapt(
    module: nn.Module, name: str, x_XD: jax.Array, features: int, *, rank: int, alpha: float
) -> jax.Array:
    """The adapter's contribution (..., features) to the product of matrix `name` with `x_XD`.

    Called inside a compact method of `module`, which gets the parameters.
    """
    dtype, width = module.dtype, x_XD.shape[-1]
    normal, zeros = nn.initializers.normal(width**-0.5), nn.initializers.zeros
    a = module.param(f"lora_{name}_a", normal, (width, rank), module.param_dtype)
    b = module.param(f"lora_{name}_b", zeros, (rank, features), module.param_dtype)
    y = (x_XD.astype(dtype) @ a.astype(dtype)) @ b.astype(dtype)
    return y * (alpha / rank)


def merge_lora(
    config: ModelConfig, variables: dict[str, Any]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Add the adapters' products to their matrices; (config, variables) without adapters.

    Products are computed in float32; the matrices keep their dtype.

    Args:
      config: a `BaichuanAudioConfig` with a language model.
      variables: the model's variables, layers stacked.
    """
    llm, layers = config.llm, dict(variables["params"]["llm"]["layers"])
    for name in llm.lora_targets if llm.lora_rank else ():
        a, b = (layers.pop(f"lora_{name}_{half}").astype(jnp.float32) for half in "ab")
        kernel = layers[name]["kernel"]
        change = jnp.matmul(a, b, precision="highest") * (llm.lora_alpha / llm.lora_rank)
        kernel = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
        layers[name] = {**layers[name], "kernel": kernel}
    defaults = {f.name: f.default for f in dataclasses.fields(llm) if f.name.startswith("lora_")}
    plain = dataclasses.replace(config, llm=dataclasses.replace(llm, **defaults))
    params = variables["params"]
    params = {**params, "llm": {**params["llm"], "layers": layers}}
    return plain, {**variables, "params": params}
