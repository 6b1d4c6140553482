"""How the language model's and the audio head's weights lie where one CPU generates.

A step of generation does little else than read weights, and XLA:CPU makes that slow in two ways:

- It copies a layer's weights out of the stack whenever a scan comes to them. `lay_out` gives each
  layer its own, "layers_0" and so on.
- It packs the right factor of a matrix product anew each time, weights as well. `lay_out` turns
  kernels around, "kernel_OI" instead of "kernel" (in, out), and `product` has them on the left.

`python -m benchmarks.generate --stacked` times both against the layout of training.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dense(nn.Module):
    """Linen's `Dense`, which also takes a kernel that `lay_out` has turned around."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_XI: jax.Array) -> jax.Array:
        """(..., I) to (..., features)."""
        x_XI = x_XI.astype(self.dtype)
        if self.has_variable("params", "kernel_OI"):
            y = product(self.get_variable("params", "kernel_OI").astype(self.dtype), x_XI)
        else:
            shape = (x_XI.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
            y = jnp.dot(x_XI, kernel.astype(self.dtype))
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


def product(kernel_OI: jax.Array, x_XI: jax.Array, result: Any = None) -> jax.Array:
    """x_XI (..., I) times the transposed kernel, (..., O), of type `result` (None: theirs).

    The axis of size one is no accident: without it XLA swaps the factors back.
    """
    x_X1I = x_XI.reshape(-1, 1, x_XI.shape[-1])
    y_OX1 = jnp.einsum("oi,xli->oxl", kernel_OI, x_X1I, preferred_element_type=result)
    return jnp.moveaxis(y_OX1, 0, -1).reshape(*x_XI.shape[:-1], kernel_OI.shape[0])


def lay_out(params: dict[str, Any]) -> None:
    """Lays `llm` and `audio_head`, of those that there are, out as above, in place.

    What is replaced is let go of leaf by leaf, so that memory does not hold a component twice.
    """
    if "llm" in params:
        params["llm"] = _layers_apart(params["llm"])
    for name in {"llm", "audio_head"} & set(params):
        params[name] = _turned(params[name])


def _layers_apart(params: dict[str, Any]) -> dict[str, Any]:
    found = {name: tree for name, tree in params.items() if name != "layers"}
    leaves, treedef = jax.tree.flatten(params.pop("layers"))
    slices = []
    for i in range(len(leaves)):
        slices.append(list(leaves[i]))
        leaves[i] = None
    for index, own in enumerate(zip(*slices, strict=True)):
        found[f"layers_{index}"] = jax.tree.unflatten(treedef, own)
    return found


def _turned(tree: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in list(tree):
        leaf = tree.pop(name)
        if isinstance(leaf, dict):
            found[name] = _turned(leaf)
        elif name == "kernel":
            found["kernel_OI"] = leaf.T
        else:
            found[name] = leaf
    return found
