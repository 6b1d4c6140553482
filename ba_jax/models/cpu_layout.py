"""Layout of the language model's and the audio head's weights for generation on a single CPU.

A step of generation mostly reads weights, and XLA:CPU makes that slow in two ways:

- A scan over layers copies each layer's weights out of the stack. `lay_out` stores layers
  separately, as "layers_0" and so on.
- The right factor of a matrix product is repacked every time, even if it is a weight. `lay_out`
  transposes kernels, "kernel_OI" instead of "kernel" (in, out), and `product` has them on the left.

`python -m benchmarks.generate --stacked` times the layout of training for comparison.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.models import layers, quantized


class Dense(layers.Layer):
    """Linen's `Dense` that also accepts a kernel transposed by `lay_out`.

    Parameters have two axes and one, whatever the axes of input and result.

    Attributes:
      features: size of the result's last axis, or sizes of its last axes.
      in_axes: how many of the input's last axes are summed over.
      by_axes: the product runs on these axes; otherwise input and result are reshaped. On TPUs the
        axes of heads and their features then need no copies (`LLMLayer`).
      quantization: kind of the product with a kernel that is not transposed, see `quantized`; its
        products are never by axes.
    """

    features: int | tuple[int, ...]
    use_bias: bool = True
    quantization: str = "none"
    in_axes: int = 1
    by_axes: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., *in_axes) to (..., *features)."""
        sizes = (self.features,) if isinstance(self.features, int) else self.features
        first = x.ndim - self.in_axes
        ins, count = math.prod(x.shape[first:]), math.prod(sizes)
        x = x.astype(self.dtype)
        if self.has_variable("params", "kernel_OI"):
            kernel = self.get_variable("params", "kernel_OI").astype(self.dtype)
            y = product(kernel, x.reshape(*x.shape[:first], ins))
        else:
            init = nn.initializers.lecun_normal()
            kernel = self.param("kernel", init, (ins, count), self.param_dtype).astype(self.dtype)
            if self.by_axes and self.quantization == "none":
                y = jnp.tensordot(x, kernel.reshape(*x.shape[first:], *sizes), self.in_axes)
            else:
                flat = x.reshape(*x.shape[:first], ins)
                y = quantized.product(self.quantization, flat, kernel)
        y = y.reshape(*x.shape[:first], *sizes)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (count,), self.param_dtype)
            y = y + jnp.broadcast_to(bias.astype(self.dtype).reshape(sizes), y.shape)
        return y


def product(kernel_OI: jax.Array, x_XI: jax.Array, result: Any = None) -> jax.Array:
    """x_XI (..., I) times the transposed kernel, (..., O), in the dtype `result` (None: of x).

    The axis of size 1 is needed: without it XLA swaps the factors back.
    """
    x_X1I = x_XI.reshape(-1, 1, x_XI.shape[-1])
    y_OX1 = jnp.einsum("oi,xli->oxl", kernel_OI, x_X1I, preferred_element_type=result)
    return jnp.moveaxis(y_OX1, 0, -1).reshape(*x_XI.shape[:-1], kernel_OI.shape[0])


def lay_out(params: dict[str, Any]) -> None:
    """Convert `llm` and `audio_head`, where present, to this layout, in place.

    Leaves are converted and released one by one, so that memory never holds a component twice.
    """
    if "llm" in params:
        params["llm"] = _unstack_layers(params["llm"])
    for name in {"llm", "audio_head"} & set(params):
        params[name] = _transpose_kernels(params[name])


def _unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The tree with "layers" replaced by "layers_0", "layers_1" and so on."""
    unstacked = {name: tree for name, tree in params.items() if name != "layers"}
    leaves, treedef = jax.tree.flatten(params.pop("layers"))
    slices = []
    for i in range(len(leaves)):
        slices.append(list(leaves[i]))
        leaves[i] = None
    for index, layer in enumerate(zip(*slices, strict=True)):
        unstacked[f"layers_{index}"] = jax.tree.unflatten(treedef, layer)
    return unstacked


def _transpose_kernels(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with each "kernel" replaced by its transpose "kernel_OI"."""
    transposed = {}
    for name in list(tree):
        leaf = tree.pop(name)
        if isinstance(leaf, dict):
            transposed[name] = _transpose_kernels(leaf)
        elif name == "kernel":
            transposed["kernel_OI"] = leaf.T
        else:
            transposed[name] = leaf
    return transposed
