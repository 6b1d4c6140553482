"""One speech model for all tests that load the same one: each is compiled once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pytest


@contextlib.contextmanager
def share_speech_models(module: ModuleType) -> Iterator[None]:
    """Make `load_speech_model`, as a module uses it, return the same model for equal arguments.

    The option `run`, processes that end with their evaluation, is left out.
    """
    models = {}
    load = module.load_speech_model

    def load_once(*args, run=map, **options):
        key = repr((args, options))
        if key not in models:
            models[key] = load(*args, **options)
        return models[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_speech_model", load_once)
        yield
