"""Random tiny models for the unit tests of the components."""

from __future__ import annotations

import jax
import pytest

from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, init_variables
from ba_jax.models.config import from_mapping
from configs.models import get_config


@pytest.fixture(scope="session")
def config() -> BaichuanAudioConfig:
    """The tiny sizes."""
    return from_mapping(BaichuanAudioConfig, get_config("tiny"))


@pytest.fixture(scope="session")
def variables(config):
    """Random variables of every component, biases and scales not at their trivial values."""
    values = jax.jit(lambda key: init_variables(config, key))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(values["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return {**values, "params": jax.tree.unflatten(tree, noisy)}


@pytest.fixture(scope="session")
def run(config, variables):
    """run(method, *args): a method of the assembly on the random variables, jitted."""

    def call(method, *args, model=None, jit=True, **static):
        model = BaichuanAudio(config) if model is None else model

        def apply(variables, *args):
            return model.apply(variables, *args, method=method, **static)

        return (jax.jit(apply) if jit else apply)(variables, *args)

    return call
