"""All 2,022 parameters of the released model, both ways, without allocating."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from ba_jax.config import from_mapping, to_mapping
from ba_jax.convert import engine, hf_config, tables
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.tree import flatten
from configs.models import get_config

REFERENCE = Path(__file__).resolve().parent.parent / "data" / "reference"


@pytest.fixture(scope="module")
def config() -> BaichuanAudioConfig:
    """The released config.json."""
    return hf_config.parse_baichuan_config(json.loads((REFERENCE / "omni_config.json").read_text()))


def test_names_and_variables_map_one_to_one(config):
    """`expand` fails on a variable without a name or with two names."""
    names = json.loads((REFERENCE / "full_shapes.json").read_text())
    assert len(names) == 2022
    placed = engine.expand(tables.rows_for(config), variable_shapes(config))
    assert {n: list(parts[0].source_shape) for n, parts in placed.items()} == names
    # Parts cover each tensor from end to end.
    for name, parts in placed.items():
        axis = parts[0].axis
        length = parts[0].source_shape[axis] if parts[0].source_shape else 1
        edges = [0]
        for part in parts:
            assert part.start == edges[-1], name
            edges.append(part.start + part.size)
        assert edges[-1] == length, name


def test_every_variable_is_filled(config):
    placed = engine.expand(tables.rows_for(config), variable_shapes(config))
    total = sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(config)))
    assert total == 10_346_592_920
    targets = {part.target for parts in placed.values() for part in parts}
    assert targets == set(flatten(variable_shapes(config)))


def test_the_released_config_equals_our_7b(config):
    ours = to_mapping(from_mapping(BaichuanAudioConfig, get_config("7b")))
    released = to_mapping(config)
    assert released.pop("vocoder") is None  # config.json does not describe it
    ours.pop("vocoder")
    assert released == ours
