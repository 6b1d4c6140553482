"""Products of 8-bit numbers in training, by qwix (the extra `quantized`).

Kinds, `train.quantization` in a run's config:

  none    products in the compute dtype
  int8    8-bit integers, forward and backward
  float8  float8_e4m3fn, and float8_e5m2 for gradients of results

Every row of the one factor and every column of the other is scaled by its largest magnitude, anew
in each product: there is no state, and parameters keep their dtype. Quantized are the projections
in the layers of the language model and of the audio head; not embeddings, output layers, attention
scores and adapters. Generation never is.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from ba_jax.models import layers

KINDS = {
    "none": None,
    "int8": (jnp.int8, jnp.int8),
    "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
"""Kind -> (type of factors, type of gradients)."""


class QuantizationError(ValueError):
    """A kind whose library is not installed."""


def check(kind: str) -> None:
    """Check that products of a kind can be computed.

    Raises:
      QuantizationError: qwix is not installed.
    """
    if kind != "none" and importlib.util.find_spec("qwix") is None:
        raise QuantizationError(
            f"quantization {kind!r} needs qwix: pip install 'ba_jax[quantized]', or use 'none'"
        )


@functools.cache
def _provider(kind: str) -> Any:
    import qwix

    factor, gradient = KINDS[kind]
    rule = qwix.QtRule(weight_qtype=factor, act_qtype=factor, bwd_qtype=gradient)
    return qwix.QtProvider([rule])


def product(kind: str, x_XI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """x (..., I) times a kernel (I, O) by products of a kind; called inside a module."""
    if kind == "none":
        return layers.product(x_XI, kernel_IO)
    return _provider(kind).dot_general(x_XI, kernel_IO, (((x_XI.ndim - 1,), (0,)), ((), ())))
