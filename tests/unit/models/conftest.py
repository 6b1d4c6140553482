"""Random tiny models for the unit tests of the components."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, variable_shapes
from configs.models import get_config


@pytest.fixture(scope="session")
def config() -> BaichuanAudioConfig:
    """The tiny sizes with four codebooks: each is a part of the compiled programs."""
    sizes = get_config("tiny")
    for name in ("vq_bridge", "audio_embed", "audio_head"):
        sizes[name].codebook_sizes = (64, 32, 16, 8)
    return from_mapping(BaichuanAudioConfig, sizes)


@pytest.fixture(scope="session")
def variables(config):
    """Random variables of every component: kernels scaled by their fan-in, biases not zero.

    Drawn by NumPy: compiling the initialisers of all components would take most of a minute.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf) -> np.ndarray:
        name = path[-1].key
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if name in ("scale", "alpha", "kernel_g") or name.startswith("cluster_size"):
            return 1 + 0.1 * noise
        if name.startswith("kernel"):
            return noise / np.sqrt(np.prod(leaf.shape[-2:-1]), dtype=np.float32)
        return 0.05 * noise if name == "bias" else 0.5 * noise

    values = jax.tree_util.tree_map_with_path(draw, variable_shapes(config))
    return jax.device_put(values)  # jnp.asarray would compile a copy for each shape


@pytest.fixture(scope="session")
def run(config, variables):
    """run(method, *args): a method of the assembly on the random variables, jitted once.

    The results are NumPy's: JAX would compile each slice that a test takes of them.
    """
    functions = {}

    def call(method, *args, model=None, **static):
        model = BaichuanAudio(config) if model is None else model

        def apply(variables, *args):
            return model.apply(variables, *args, method=method, **static)

        function = functions.setdefault((method, model, *static.items()), jax.jit(apply))
        return jax.device_get(function(variables, *args))

    return call
