"""Convert nested mappings to frozen dataclasses and back, strictly; the paths in them."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NewType, TypeVar

T = TypeVar("T")
LocalPath = NewType("LocalPath", str)
"""Type of settings that are paths: `from_mapping` expands them by `local_path`."""
_SCHEME = re.compile(r"[a-zA-Z][\w+.-]*:/", re.ASCII)
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([a-zA-Z_]\w*))", re.ASCII)

# Former name of a key -> its name now; docs/training.md has them by section.
RENAMED = {
    **{
        name: f"generation.{name}"
        for name in ("audio", "capacity", "lengths", "max_frames", "max_text", "rows", "text")
    },
    "accumulate": "accumulation_steps",
    "average": "ema_decay",
    "best": "keep_best",
    "clip": "clip_norm",
    "code_dropout": "codebook_dropout",
    "deadline": "step_timeout_seconds",
    "final": "final_learning_rate_ratio",
    "fit_frames": "kmeans_init_frames",
    "frozen_dtype": "frozen_param_dtype",
    "given": "fully_conditioned",
    "head_stride": "full_head_every",
    "last": "keep_last",
    "metric": "best_metric",
    "own_codebooks": "feedback_codebooks",
    "peak_flops": "peak_flops_per_device",
    "profile_step": "profile_start_step",
    "read_back": "transcribe_first",
    "replace_from": "replace_shares",
    "record_batches": "record_batch_hashes",
    "spike": "spike_standard_deviations",
    "spike_window": "spike_window_steps",
    "tts_words": "tts_words_per_turn",
    "warmup": "warmup_steps",
    "weight_second_scale": "weight_coarse",
}


class ConfigError(ValueError):
    """A command line or config with an unknown word, or a missing or ill-typed key."""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """ "; did you mean X?" of the known word that is most like another, "" if none is."""
    by_lower = {name.lower(): name for name in map(str, known)}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, 1, cutoff)
    return f"; did you mean {by_lower[matches[0]]}?" if matches else ""


def nearest_key(key: str, known: Collection[str]) -> str:
    """`nearest` of dotted keys: under its present name, or in another section, before others."""
    section, dot, name = key.rpartition(".")
    for present in (RENAMED.get(name, name), name):
        if same := [k for k in known if f".{k}".endswith(f".{present}")]:
            return nearest(section + dot + present, same, 0)
    return nearest(key, known)


def keys_of(cls: type) -> Iterator[str]:
    """Names of a dataclass's fields, dotted those of nested ones."""
    for name, hint in typing.get_type_hints(cls).items():
        yield name
        if dataclasses.is_dataclass(inner := _without_none(hint)):
            yield from (f"{name}.{key}" for key in keys_of(inner))


def expected(value: Any, choices: Collection) -> str:
    """ "X, expected one of ...", with the nearest choice, for messages."""
    return f"{value!r}, expected one of {tuple(choices)}{nearest(value, choices)}"


def local_path(text: str) -> str:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` as a shell does; "" stays "".

    Raises:
      ConfigError: a variable that is not set, an unknown user, or an address (`gs://bucket/x`),
        which would otherwise become a folder of that name.
    """

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(f"{text}: the variable {match[0]} is not set")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if _SCHEME.match(path):
        raise ConfigError(f"{text}: expected a path; mount the bucket, or copy what is there")
    if path.startswith("~"):
        user = path.split("/")[0]
        raise ConfigError(f"{text}: no home folder of {user}; write ./{user} for such a name")
    return path


def check_choices(settings: Any, **allowed: Collection) -> None:
    """Raise ValueError for the first named field whose value is not among the allowed ones."""
    for name, choices in allowed.items():
        if (value := getattr(settings, name)) not in choices:
            raise ValueError(f"{name} = {expected(value, choices)}")


def check_at_least(settings: Any, **least: float) -> None:
    """Raise ValueError for the first named field whose value is below its bound."""
    for name, bound in least.items():
        if (value := getattr(settings, name)) < bound:
            raise ValueError(f"{name} = {value!r}, expected at least {bound}")


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str = "model") -> T:
    """Build a frozen dataclass, nested ones too, from a mapping (a ConfigDict or JSON).

    Raises:
      ConfigError: an unknown or missing key, a value of the wrong type, or one that the dataclass
        refuses; names the key.
    """
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(f"{path}: expected a mapping, got {values!r}")
    values = dict(values.items())
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        hint = nearest_key(unknown[0], [*keys_of(cls)])
        raise ConfigError(
            f"{path}: unknown keys {unknown}, expected some of {sorted(fields)}{hint}"
        )
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(values))
    if missing:
        raise ConfigError(f"{path}: missing keys {missing}")
    hints = typing.get_type_hints(cls)
    converted = {k: convert(hints[k], v, f"{path}.{k}") for k, v in values.items()}
    try:
        return cls(**converted)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def defaults(cls: type) -> dict[str, Any]:
    """Plain values of the fields of a dataclass that have a default."""
    values = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        if dataclasses.is_dataclass(values.get(field.name)):
            values[field.name] = dataclasses.asdict(values[field.name])
    return _plain(values)


def with_defaults(cls: type, values: Any) -> Any:
    """Plain values of a dataclass, nested ones too, with the defaults of the keys that are absent.

    Values with a key that `cls` has not are another version's: the absent keys may be there under
    other names, so nothing is added.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping) or set(values) - set(hints):
        return values
    filled = {}
    for key, value in values.items():
        inner = _without_none(hints[key])
        filled[key] = with_defaults(inner, value) if dataclasses.is_dataclass(inner) else value
    return defaults(cls) | filled


def to_mapping(config: Any) -> dict[str, Any]:
    """Inverse of `from_mapping`: nested dicts, lists and scalars, ready for JSON."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def _without_none(hint: Any) -> Any:
    """T of `T | None`; any other hint itself."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    (inner,) = [a for a in typing.get_args(hint) if a is not type(None)]
    return inner


def convert(hint: Any, value: Any, path: str) -> Any:
    """Check a value against the type of a field, and expand paths.

    Raises:
      ConfigError: of another type; names `path`.
    """
    if (inner := _without_none(hint)) is not hint:
        return None if value is None else convert(inner, value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path} = {value!r}: expected a sequence")
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) != len(value):
            raise ConfigError(f"{path} = {value!r}: expected {len(args)} values")
        return tuple(
            convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
        )
    if hint is LocalPath:
        text = convert(str, value, path)
        try:
            return local_path(text)
        except ConfigError as error:
            raise ConfigError(f"{path} = {error}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and value != value:
        raise ConfigError(f"{path} = {value!r}: expected a number")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path} = {value!r}: expected {hint.__name__}")
    return value
