"""Batches of a config's `data` section."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from ba_jax.config import ConfigError, LocalPath, convert, expected, from_mapping
from ba_jax.data.audio_batches import AudioBatches, AudioSettings
from ba_jax.data.features import ModelFormat
from ba_jax.data.mixture import Selection
from ba_jax.data.packed import PackedBatches, PackedSettings

KINDS = {"packed": (PackedSettings, PackedBatches), "audio": (AudioSettings, AudioBatches)}
"""`data.kind` -> settings and batches: rows of tokens for the LLM, or clips of audio alone."""


def batch_settings(data: Mapping[str, Any]) -> PackedSettings | AudioSettings:
    """Read settings from a config's `data`, see `configs/mixtures.py`, or raise ConfigError.

    `data.mixture` maps a name to a member, so that one can be changed by
    `--config.data.mixture.asr.weight=2`; a member of weight 0 is left out. Members are in the
    alphabetical order of their names. `data.folder`, if not empty, holds the members' datasets.
    """
    values = dict(data.items())
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"data.kind = {expected(kind, sorted(KINDS))}")
    folder = convert(LocalPath, values.pop("folder", ""), "data.folder")
    members = values.get("mixture")
    if not hasattr(members, "items"):
        raise ConfigError(f"data.mixture = {members!r}: expected a mapping of members")
    try:
        selections = [
            Selection.from_mapping(member, f"data.mixture.{name}")
            for name, member in sorted(members.items())
            if member.get("weight", 1) != 0
        ]
        # Without a folder the join changes nothing.
        values["mixture"] = [
            dataclasses.replace(selection, dataset=os.path.join(folder, selection.dataset))
            for selection in selections
        ]
        return from_mapping(KINDS[kind][0], values, "data")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


def open_batches(
    data: Mapping[str, Any], model: Mapping[str, Any], progress: Callable[[int], None] | None = None
) -> PackedBatches | AudioBatches:
    """Open a config's datasets and count their examples; any step's batch can then be built.

    `progress` is called with the number of records counted since the last call.
    """
    settings = batch_settings(data)
    _, batches = next(pair for pair in KINDS.values() if isinstance(settings, pair[0]))
    return batches(settings, ModelFormat.of(model), progress)
