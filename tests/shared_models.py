"""One model or training step for all tests that use the same one: each is compiled once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import ModuleType

import pytest

from ba_jax import train
from ba_jax.run_config import STAGES
from ba_jax.sampling.settings import SpeechModelSettings
from ba_jax.train_state import TrainLayout


@contextlib.contextmanager
def share_speech_models(module: ModuleType) -> Iterator[None]:
    """Make `load_speech_model`, as a module uses it, return the same model for equal arguments.

    Settings of a subclass count as those of a speech model alone. The option `run`, processes that
    end with their evaluation, is left out.
    """
    models = {}
    load = module.load_speech_model

    def load_once(config, sources, settings, *args, run=map, **options):
        names = [field.name for field in dataclasses.fields(SpeechModelSettings)]
        own = {name: getattr(settings, name) for name in names if name != "seed"}
        args = (config, sources, SpeechModelSettings(**own), *args)
        key = repr((args, options))
        if key not in models:
            models[key] = load(*args, **options)
        return models[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_speech_model", load_once)
        yield


@contextlib.contextmanager
def share_training_steps() -> Iterator[None]:
    """Make `train` use the same jitted step and evaluation for runs of equal models and settings.

    A loss that a test replaces has steps of its own.
    """
    steps, evaluations = {}, {}
    make_step = train.make_step

    def key(layout: TrainLayout) -> tuple:
        config, settings = layout.config, layout.config.train
        parts = (config.model, config.stage, config.optimizer, layout.mesh.shape, settings.dtype)
        parts += (settings.remat, settings.steps, settings.accumulation_steps)
        return repr(parts), STAGES[config.stage["name"]].loss

    class SharedEvaluator(train.Evaluator):
        def __init__(self, layout, batches):
            super().__init__(layout, batches)
            self._evaluate = evaluations.setdefault(key(layout), self._evaluate)

    def make_step_once(layout):
        if key(layout) not in steps:
            steps[key(layout)] = make_step(layout)
        return steps[key(layout)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_step", make_step_once)
        patch.setattr(train, "Evaluator", SharedEvaluator)
        yield
