"""Signals and gradients that tests of several stages use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.stages.base import Stage


def norm(tree: Any) -> float:
    """L2 norm over all leaves, in NumPy: JAX would compile a program for each shape."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves)))


def gliding_tone(seconds: float, rate: int, pitch: float) -> np.ndarray:
    """Harmonics of a gliding pitch under a syllable-like envelope, float32."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * pitch * (t + 0.3 * t**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 8))
    return (0.2 * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * t))).astype(np.float32)


def gradient_function(stage: Stage) -> Callable[..., Any]:
    """Jitted (variables, arrays, key, step) -> ((loss, Aux), gradients in all parameters)."""

    def run(variables, arrays, key, step=0):
        def loss(params):
            totals = stage.totals(arrays)
            return stage.loss({**variables, "params": params}, arrays, totals, key, jnp.int32(step))

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return jax.jit(run)
