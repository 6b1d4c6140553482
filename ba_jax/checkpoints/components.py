"""Load components of a model from checkpoints: to use them (`load`), to train them (`initialize`).

Sources map a component to the checkpoint that it comes from.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ba_jax import sharding
from ba_jax.checkpoints import layout
from ba_jax.checkpoints.arrays import Reader, checkpoint_shapes, load_variables
from ba_jax.checkpoints.layout import CheckpointError, weights_folder
from ba_jax.checkpoints.manager import check_weights
from ba_jax.config import ConfigError, LocalPath, convert, expected, from_mapping
from ba_jax.models import cpu_layout, layers
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.tree import flatten, unflatten
from ba_jax.vocab import COMPONENTS

RANDOM = "random"

Variables = dict[str, Any]
"""`{"params": {component: ...}, "codebook": {...}, "buffers": {...}}`, nested dicts of arrays."""

Derive = Callable[[Reader, Mapping[str, Any]], dict[str, np.ndarray]]
"""(a checkpoint, path -> shape wanted from it) -> values that it implies but does not store."""


def find(
    checkpoints: Sequence[str], config: BaichuanAudioConfig, components: Sequence[str]
) -> dict[str, str]:
    """Component -> folder of weights: the last checkpoint that holds the component.

    Raises:
      CheckpointError: no checkpoint, or none that holds a component.
      ConfigError: the model's config has no such component, or a run trained it with settings
        that differ from the config's and that shapes do not show.
    """
    absent = [name for name in components if getattr(config, name) is None]
    if absent:
        raise ConfigError(f"model: its config has no {absent}, which are to be loaded")
    folders = [weights_folder(path) for path in checkpoints]
    held = [set(checkpoint_shapes(folder).get("params", {})) for folder in folders]
    sources = {}
    for name in components:
        holders = [folder for folder, names in zip(folders, held, strict=True) if name in names]
        if not holders:
            raise CheckpointError(
                f"{', '.join(checkpoints)}: none holds {name}, expected one that does"
            )
        sources[name] = str(holders[-1])
    for folder, names in _by_folder(sources).items():
        _check_settings(Path(folder), config, names)
    return sources


def _by_folder(sources: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, folder in sources.items():
        names.setdefault(folder, []).append(name)
    return names


def _check_settings(folder: Path, config: BaichuanAudioConfig, components: Sequence[str]) -> None:
    """Raise ConfigError if the run trained these components with other settings than `config`.

    Weights without a run's config (converted ones, a checkpoint that was moved) pass.
    """
    workdir = layout.workdir_of(folder)
    values = (layout.read_run_config(workdir) if workdir else None) or {}
    if "model" not in values:
        return
    path = workdir / layout.CONFIG_FILE
    trained = from_mapping(BaichuanAudioConfig, values["model"], f"{path}: model")
    checked = [(name, field.name) for name in components for field in fields(getattr(config, name))]
    if "flow_unet" in components:  # what training decides; the rest may be chosen when sampling
        checked += [("flow_matching", key) for key in ("residual_std", "mel_mean", "mel_std")]
    for section, key in checked:
        was, now = (getattr(getattr(c, section), key) for c in (trained, config))
        if was != now:
            raise ConfigError(
                f"{path}: trained with {section}.{key} = {was!r}, but the config has {now!r}; "
                f"give --config.model.{section}.{key}={was!r}"
            )


def load(
    config: BaichuanAudioConfig,
    sources: Mapping[str, str],
    mesh: Mesh | None = None,
    dtype: layers.Dtype | None = None,
) -> Variables:
    """Load the variables of the components in `sources`.

    Args:
      config, sources: see `find`.
      mesh: parameters are sharded over it by the rules of `ba_jax.sharding`; None: the default
        device.
      dtype: type of the parameters; None: as stored.

    Raises:
      CheckpointError: a checkpoint of other sizes, or a damaged one.
      ShardingError: a parameter without a sharding rule.
    """
    shapes = variable_shapes(config.only(*sources))
    shardings = None if mesh is None else sharding.variable_shardings(shapes, mesh, config.heads)
    variables: Variables = {}
    for folder, names in _by_folder(sources).items():
        loaded = load_variables(folder, shapes, shardings, dtype, components=names)
        for collection, tree in loaded.items():
            variables.setdefault(collection, {}).update(tree)
    return variables


def load_to_generate(
    config: BaichuanAudioConfig, sources: Mapping[str, str], mesh: Mesh | None = None
) -> Variables:
    """`load`, and on a single CPU device the memory layout of `cpu_layout`.

    Raises:
      CheckpointError, ShardingError: see `load`.
    """
    variables = load(config, sources, mesh)
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform == "cpu" and (mesh is None or mesh.size == 1):
        cpu_layout.lay_out(variables["params"])
    return variables


def initial_sources(
    init: Mapping[str, str], components: Sequence[str], training: Iterable[str]
) -> dict[str, str]:
    """Component -> checkpoint for the start of a training run, from `config.init`.

    Args:
      init: component -> a path, "random", or "" (random if the component trains, else an error).
      components: those of the run's stage.
      training: components with a parameter that trains.

    Raises:
      ConfigError: an unknown component, or a frozen one without a checkpoint.
    """
    for name in set(init) - set(COMPONENTS):
        raise ConfigError(f"init: component {expected(name, COMPONENTS)}")
    init = {name: convert(LocalPath, path, f"init.{name}") for name, path in init.items()}
    training, sources = set(training), {}
    for name in components:
        path = init.get(name, "")
        if path and path != RANDOM:
            sources[name] = path
        elif not path and name not in training:
            raise ConfigError(
                f"{name} is frozen and init.{name} is empty: expected a checkpoint, "
                f"--config.init.{name}=WORKDIR of the stage that trains it"
            )
    unused = sorted(name for name, path in init.items() if path and name not in components)
    if unused:
        logging.info("this stage does not use init.%s", ", init.".join(unused))
    return sources


def initialize(
    shapes: Variables,
    sources: Mapping[str, str],
    shardings: Variables,
    init: Callable[[jax.Array], Variables],
    key: jax.Array,
    derive: Derive | None = None,
    companions: Mapping[str, str] = types.MappingProxyType({}),
) -> Variables:
    """Variables of a new training run, on the devices: loaded or random. All processes call it.

    Args:
      shapes: shapes of all variables.
      sources: component -> checkpoint, see `initial_sources`; the other components are random, and
        LoRA adapters that their checkpoint lacks.
      shardings: a tree like `shapes`.
      init: key -> random variables of these shapes; jitted here.
      key: random key of `init`.
      derive: values that a checkpoint implies without storing them; the rest is read from it.
      companions: helper module -> component with which it is read, if the checkpoint has it.

    Raises:
      CheckpointError: no checkpoint, a damaged one, or one of other sizes: every array is named.
    """
    flat, flat_shardings = flatten(shapes), flatten(shardings)
    loaded: dict[str, Any] = {}
    for path, components in _by_folder(sources).items():
        folder = weights_folder(path)
        check_weights(folder)
        reader = Reader(folder)
        wanted = {
            name: leaf
            for name, leaf in flat.items()
            if (part := name.split("/")[1]) in components
            or (companions.get(part) in components and name in reader.arrays)
        }
        logging.info("%s: weights from %s", ", ".join(components), folder)
        derived = derive(reader, wanted) if derive else {}
        loaded |= {n: jax.device_put(value, flat_shardings[n]) for n, value in derived.items()}
        stored = {
            name: leaf
            for name, leaf in wanted.items()
            if name not in derived and ("/lora_" not in name or name in reader.arrays)
        }
        if stored:
            loaded |= flatten(
                load_variables(
                    folder,
                    unflatten(stored),
                    unflatten({name: flat_shardings[name] for name in stored}),
                    jnp.float32,
                    checked=True,
                )
            )
    rest = [name for name in flat if name not in loaded]
    if rest:

        def draw(key):
            values = flatten(init(key))
            return {name: values[name] for name in rest}

        drawn = jax.jit(draw, out_shardings={name: flat_shardings[name] for name in rest})
        loaded |= drawn(key)
    return unflatten({name: loaded[name] for name in flat})
