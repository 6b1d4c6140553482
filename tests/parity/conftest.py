"""The tiny golden model, imported once."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from ba_jax.convert.importer import import_checkpoint

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """tests/data/tiny as an imported checkpoint."""
    out = tmp_path_factory.mktemp("tiny") / "checkpoint"
    import_checkpoint(DATA / "tiny", out, progress=False)
    return out


@pytest.fixture(scope="package", autouse=True)
def optimised():
    """Compile as users do; the other tests turn most of XLA's optimisations off."""
    previous = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", previous)
