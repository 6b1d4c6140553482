"""Weights of a model out of several checkpoints, on a mesh; and what XLA compiled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ba_jax import sharding
from ba_jax.checkpoints.arrays import (
    CheckpointError,
    checkpoint_shapes,
    flatten,
    load_variables,
    unflatten,
)
from ba_jax.checkpoints.manager import CONFIG_FILE, FOLDER, weights_folder
from ba_jax.config import ConfigError, from_mapping
from ba_jax.models import cpu_layout, layers
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes

HOSTS = ("apart", "together")
"""How several hosts share a run: each its items on a mesh of its own, or all on one mesh."""


def find(
    checkpoints: Sequence[str], config: BaichuanAudioConfig, components: Sequence[str]
) -> dict[str, str]:
    """Component -> the folder of weights that it comes from.

    Raises:
      CheckpointError: no checkpoint, or none that holds a component.
      ConfigError: a component that the model's config leaves out, or that a run trained with other
        settings than the config's; shapes do not tell them all.
    """
    absent = [name for name in components if getattr(config, name) is None]
    if absent:
        raise ConfigError(f"model: no {absent}, expected them")
    folders = [weights_folder(path) for path in checkpoints]
    held = [set(checkpoint_shapes(folder).get("params", {})) for folder in folders]
    sources = {}
    for name in components:
        found = [folder for folder, names in zip(folders, held, strict=True) if name in names]
        if not found:
            raise CheckpointError(
                f"{', '.join(checkpoints)}: none holds {name}, expected one that does"
            )
        sources[name] = str(found[-1])
    for folder, own in _by_folder(sources).items():
        _check_settings(Path(folder), config, own)
    return sources


def _by_folder(sources: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, folder in sources.items():
        names.setdefault(folder, []).append(name)
    return names


def _check_settings(folder: Path, config: BaichuanAudioConfig, components: Sequence[str]) -> None:
    """Raises ConfigError where the run that trained components says other settings of them.

    A folder without a run's config (converted weights, a checkpoint that was moved) passes.
    """
    checkpoints = folder.parent.parent
    path = checkpoints.parent / CONFIG_FILE
    if checkpoints.name != FOLDER or not path.is_file():
        return
    try:
        model = json.loads(path.read_text())["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged, expected the config of a run ({error!r})") from error
    trained = from_mapping(BaichuanAudioConfig, model, f"{path}: model")
    checked = [(name, field.name) for name in components for field in fields(getattr(config, name))]
    if "flow_unet" in components:  # what it learnt to say; the rest may be chosen when sampling
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
) -> dict[str, Any]:
    """Variables of the components that `sources` has folders for.

    Args:
      config, sources: see `find`.
      mesh: lays parameters out by the rules of `ba_jax.sharding`; None: the default device.
      dtype: of the parameters; None: as stored.

    Raises:
      CheckpointError: a checkpoint of other sizes, or one that is damaged.
      ShardingError: a parameter that no rule places.
    """
    variables: dict[str, Any] = {}
    for folder, own in _by_folder(sources).items():
        shapes = variable_shapes(config.only(*own))
        placed = None
        if mesh is not None:
            placed = placement(shapes, mesh, config.heads)
        found = load_variables(folder, shapes, placed, dtype, components=own)
        for collection, tree in found.items():
            variables.setdefault(collection, {}).update(tree)
    return variables


def load_to_generate(
    config: BaichuanAudioConfig, sources: Mapping[str, str], mesh: Mesh | None = None
) -> dict[str, Any]:
    """As `load`; on a single CPU device weights lie as `cpu_layout` has them.

    Raises:
      CheckpointError, ShardingError: see `load`.
    """
    variables = load(config, sources, mesh)
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform == "cpu" and (mesh is None or mesh.size == 1):
        cpu_layout.lay_out(variables["params"])
    return variables


def placement(shapes: Any, mesh: Mesh, heads: sharding.Heads) -> Any:
    """Shardings of variables, a tree like their shapes.

    Raises:
      ShardingError: see `sharding.variable_sharding`.
    """
    return unflatten(
        {
            name: sharding.variable_sharding(name, leaf.shape, mesh, heads)
            for name, leaf in flatten(shapes).items()
        }
    )


def on_mesh(
    settings: sharding.MeshSettings, rows: Mapping[str, int], hosts: str = HOSTS[0]
) -> tuple[Mesh, Callable[[Any], Any]]:
    """(a mesh, what puts batches, rows first, on it).

    Hosts that work "apart" share nothing but the folder of results, so that each may take as long
    as its items take: a mesh is of one host's own devices. "together" they have one mesh of all
    devices, for a model larger than one host's memory, and all put the same batches on it.

    Args:
      settings: how the devices are laid out.
      rows: setting -> its batch size.
      hosts: one of HOSTS.

    Raises:
      ShardingError: axes that the devices do not fill, rows that do not divide among them, or
        positions that are divided.
    """
    if settings.sequence != 1 or settings.slices != 1:
        raise sharding.ShardingError(
            f"mesh.sequence = {settings.sequence}, mesh.slices = {settings.slices}: expected 1 and "
            "1, only training divides positions and reaches over slices"
        )
    mesh = sharding.make_mesh(
        settings, jax.devices() if hosts == "together" else jax.local_devices()
    )
    shards, batches = sharding.batch_shards(mesh), sharding.batch_sharding(mesh)
    for name, count in rows.items():
        if count % shards:
            raise sharding.ShardingError(
                f"{name} = {count} on {shards} devices: expected a multiple"
            )

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, batches, lambda index: array[index])

    return mesh, lambda arrays: jax.tree.map(place, arrays)


def check_hosts(hosts: str) -> str:
    """How hosts share a run: one of HOSTS.

    Raises:
      ConfigError: anything else.
    """
    if hosts not in HOSTS:
        raise ConfigError(f"hosts {hosts!r}, expected one of {HOSTS}")
    return hosts
