"""Compare the settings of a resumed run with those that it was trained with.

WORKDIR/config.json holds the settings in force. When a resumed run changes some, its `history` gets
a record: the step from which they are in force, and the old and the new value of each key.

Every change is named. One that makes another model or other data is an error unless it is accepted;
docs/training.md has the table.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from ba_jax import sharding
from ba_jax.checkpoints.layout import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    DONE_FILE,
    CheckpointError,
    named_steps,
    read_run_config,
)
from ba_jax.config import ConfigError, defaults, to_mapping, with_defaults
from ba_jax.data.batches import KINDS
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.mixture import Selection
from ba_jax.files import first_line, unused, write_whole
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.run_config import STAGES, RunConfig

HISTORY = "history"
ABSENT = "(absent)"
"""Stands for the value of a key on the side that does not have it."""

# A change of these needs to be accepted, unless it is one of those below.
_REFUSED = re.compile(r"(seed|model|stage|data|optimizer\.rules)(\..*)?")
_HARMLESS = re.compile(
    r"model\.flow_matching\.(steps|guidance)"  # sampling
    r"|stage\.(gather|chunk|recompute|audio_capacity|eval_times|eval_steps)"
    r"|data\.(index_cache|index_workers|on_error)"
)
_MEMBER = re.compile(r"data\.mixture\.[^.]+")
_PATH = re.compile(r"data\.(folder|tokenizer|mixture\.[^.]+\.dataset)")
_MAX_TEXT = 100


class ChangedSettingsError(ConfigError):
    """A resumed run with settings of another model or other data."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs from the recorded one."""

    key: str
    old: Any
    new: Any

    @property
    def is_refused(self) -> bool:
        """Whether it makes another model or other data.

        A key that only one side has is another version's, but for the members of the mixture. Data
        that were moved are the same.
        """
        if _PATH.fullmatch(self.key) and _is_moved(self.old, self.new):
            return False
        if ABSENT in (self.old, self.new) and not _MEMBER.fullmatch(self.key):
            return False
        return bool(_REFUSED.fullmatch(self.key)) and not _HARMLESS.fullmatch(self.key)

    def __str__(self) -> str:
        old, new = (
            value if value == ABSENT else f"{value!r:.{_MAX_TEXT}}"
            for value in (self.old, self.new)
        )
        return f"{self.key}: {old} -> {new}"


def check(workdir: Path, config: RunConfig, accept_changes: bool = False) -> None:
    """Name the settings that a resumed run changes. All processes call it, before any of them
    writes; the answer is that of process 0.

    Raises:
      ChangedSettingsError: a change makes another model or other data, and is not accepted.
      CheckpointError: a run whose checkpoints are gone.
    """
    examined = json.dumps(_examine(workdir, config))
    lines, refused, gone = json.loads(sharding.text_from_first(examined))
    if gone:
        raise CheckpointError(f"{workdir}: {gone}. Copy them back, or use a new workdir")
    for line in [*lines, *refused] if accept_changes else lines:
        logging.warning("%s: %s", workdir / CONFIG_FILE, line)
    if refused and not accept_changes:
        changed = "".join(f"\n  {line}" for line in refused)
        raise ChangedSettingsError(
            f"{workdir / CONFIG_FILE}: the run was trained with another model or other data:"
            f"{changed}\nSet them back, use a new workdir, or accept them with --accept_changes"
        )


def _examine(workdir: Path, config: RunConfig) -> tuple[list[str], list[str], str]:
    """(lines to log, changes that are refused, the way in which checkpoints are gone or "")."""
    folder = workdir / CHECKPOINTS_FOLDER
    recorded, problem = _read(workdir)
    if named_steps(folder):
        if problem:
            return [f"{problem}: settings before this start are not known"], [], ""
        changed = list(changes(recorded, config))
        return (
            [str(change) for change in changed if not change.is_refused],
            [str(change) for change in changed if change.is_refused],
            "",
        )
    if (workdir / DONE_FILE).exists():
        return [], [], f"{DONE_FILE} says that the run is complete, but it has no checkpoint"
    if recorded and not folder.exists():
        return [], [], f"holds the {CONFIG_FILE} of a run, but no {CHECKPOINTS_FOLDER}/"
    return ["the run has no checkpoint yet and starts anew"] if recorded else [], [], ""


def _read(workdir: Path) -> tuple[dict[str, Any], str]:
    """(contents of config.json, ""), or ({}, the reason why there are none)."""
    path = workdir / CONFIG_FILE
    try:
        values = read_run_config(workdir)
    except (ConfigError, OSError) as error:
        return {}, first_line(error).removeprefix(f"{path}: ")
    if values is None:
        return {}, "not the config of a run" if os.path.lexists(path) else "missing"
    return values, ""


def write(workdir: Path, config: RunConfig, step: int) -> None:
    """Write config.json of a run that goes on from a step; 0: a new one.

    A file that is not the config of a run is moved away.
    """
    path = workdir / CONFIG_FILE
    recorded, problem = _read(workdir)
    if problem and os.path.lexists(path):
        aside = unused(workdir / f"damaged-{CONFIG_FILE}")
        path.rename(aside)
        logging.warning("%s: moved to %s", path, aside)
    values = to_mapping(config)
    if step and (history := _history(recorded, config, step)):
        values[HISTORY] = history
    write_whole(path, json.dumps(values, indent=1, ensure_ascii=False, default=str) + "\n")


def _history(recorded: Mapping[str, Any], config: RunConfig, step: int) -> list[dict[str, Any]]:
    """The recorded history; with a further record if settings change, or the run goes back."""
    records = recorded.get(HISTORY)
    history = [
        record
        for record in (records if isinstance(records, list) else [])
        if isinstance(record, Mapping) and isinstance(record.get("step"), int)
    ]
    changed = {}
    for change in changes(recorded, config) if recorded else ():
        sides = {"old": change.old, "new": change.new}
        changed[change.key] = {side: value for side, value in sides.items() if value != ABSENT}
    if changed or (history and history[-1]["step"] > step):
        history.append({"step": step, "changes": changed})
    return history


def changes(recorded: Mapping[str, Any], config: RunConfig) -> Iterator[Change]:
    """Settings of `config` that differ from the recorded ones of a config.json."""
    old = {key: value for key, value in recorded.items() if key != HISTORY}
    for change in _differences(_filled(old), _filled(to_mapping(config)), ""):
        if not (_PATH.fullmatch(change.key) and _resolved(change.old) == _resolved(change.new)):
            yield change


def _differences(old: Any, new: Any, key: str) -> Iterator[Change]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and old and new):
        if old != new:
            yield Change(key, old, new)
        return
    names = [*new, *(name for name in old if name not in new)]
    kind = {"stage": "name", "data": "kind", "eval_data": "kind"}.get(key)
    if kind and old.get(kind) != new.get(kind):
        names = [kind]  # the others are those of another class
    for name in names:
        place = f"{key}.{name}" if key else name
        yield from _differences(old.get(name, ABSENT), new.get(name, ABSENT), place)


def _resolved(path: Any) -> str:
    return os.path.realpath(os.path.expanduser(os.path.expandvars(f"{path}")))


def _is_moved(old: Any, new: Any) -> bool:
    """Whether a folder has gone from its place and there is one of its name elsewhere."""
    before, now = _resolved(old), _resolved(new)
    same_name = os.path.basename(before) == os.path.basename(now)
    return "/" in f"{old}" and same_name and os.path.exists(now) and not os.path.lexists(before)


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it is read from JSON, with the default of each absent key."""
    filled = {}
    for name, section in values.items():
        own, cls = _class_of(name, section)
        if cls is not None:
            rest = {key: value for key, value in section.items() if key not in own}
            section = {key: section.get(key, "") for key in own} | with_defaults(cls, rest)
            if isinstance(members := section.get("mixture"), Mapping):
                section["mixture"] = _filled_members(members)
        filled[name] = section
    return json.loads(json.dumps(filled, default=str))


def _class_of(name: str, section: Any) -> tuple[tuple[str, ...], type | None]:
    """(keys of a section beside those of its dataclass, the dataclass or None)."""
    if not isinstance(section, Mapping):
        return (), None
    if name == "model":
        return (), BaichuanAudioConfig
    if name == "stage":
        stage = STAGES.get(str(section.get("name")))
        return ("name",), stage and stage.settings_class
    if name in ("data", "eval_data"):
        return ("kind", "folder"), KINDS.get(str(section.get("kind")), (None,))[0]
    hint = typing.get_type_hints(RunConfig).get(name)
    return (), hint if dataclasses.is_dataclass(hint) else None


def _filled_members(members: Mapping[str, Any]) -> dict[str, Any]:
    """Members of a mixture but those of weight 0; each has the keys of two dataclasses."""
    absent = defaults(ExampleMaker) | defaults(Selection)
    known = {field.name for cls in (ExampleMaker, Selection) for field in dataclasses.fields(cls)}
    return {
        name: member | absent | member if member.keys() <= known else member
        for name, member in members.items()
        if isinstance(member, Mapping) and member.get("weight", 1) != 0
    }
