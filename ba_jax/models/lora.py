"""Low-rank adapters on the language model's matrices (Hu et al. 2021), for training on one GPU.

A targeted matrix W (in, out) gains A (in, rank) @ B (rank, out) * alpha / rank. They are parameters
beside it, `params/llm/layers/lora_NAME_a` and `lora_NAME_b`, stacked over the layers like the rest.
B begins as zeros, so a model with fresh adapters gives what it gave without them.

Checkpoints of the release know no adapters: `merge_lora` before exporting.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from ba_jax.models.baichuan_audio import BaichuanAudioConfig
    from ba_jax.models.llm import LLMConfig

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
"""Matrices of a layer that can be adapted, by their module's name."""


def adapt(
    module: nn.Module, config: LLMConfig, name: str, x_XD: jax.Array, features: int
) -> jax.Array:
    """What the adapter `name` of a layer adds to its matrix's product with `x_XD`."""
    rank, dtype, width = config.lora_rank, module.dtype, x_XD.shape[-1]
    normal, zeros = nn.initializers.normal(width**-0.5), nn.initializers.zeros
    a = module.param(f"lora_{name}_a", normal, (width, rank), module.param_dtype)
    b = module.param(f"lora_{name}_b", zeros, (rank, features), module.param_dtype)
    y = (x_XD.astype(dtype) @ a.astype(dtype)) @ b.astype(dtype)
    return y * (config.lora_alpha / rank)


def merge_lora(
    config: BaichuanAudioConfig, variables: dict[str, Any]
) -> tuple[BaichuanAudioConfig, dict[str, Any]]:
    """(config, variables) of the same model without adapters: their products added to the matrices.

    Products in float32; the matrices keep their type.
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
    return plain, _with_layers(variables, layers)


def _with_layers(variables: dict[str, Any], layers: dict[str, Any]) -> dict[str, Any]:
    params = variables["params"]
    return {**variables, "params": {**params, "llm": {**params["llm"], "layers": layers}}}
