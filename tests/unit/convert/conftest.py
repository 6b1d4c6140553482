"""The golden checkpoint, imported once, and shapes that are traced once."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from ba_jax.convert import export, importer, join
from ba_jax.models.baichuan_audio import variable_shapes
from tests.unit.convert.helpers import TINY, run

SHAPES = functools.lru_cache(variable_shapes)


@pytest.fixture(autouse=True, scope="session")
def traced_once():
    """Cache the shapes of models: tracing takes most of the time of a small conversion."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (importer, export, join):
            patch.setattr(module, "variable_shapes", SHAPES)
        yield


@pytest.fixture(scope="session")
def imported(traced_once, tmp_path_factory) -> Path:
    """The golden checkpoint, imported once."""
    out = tmp_path_factory.mktemp("imported") / "tiny"
    assert run("--source", TINY, "--out", out) == 0
    return out
