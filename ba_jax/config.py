"""Convert nested mappings to frozen dataclasses and back, strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A config with an unknown, missing or ill-typed key."""


def check_choices(settings: Any, **allowed: Collection) -> None:
    """Raise ValueError for the first named field whose value is not among the allowed ones."""
    for name, choices in allowed.items():
        if (value := getattr(settings, name)) not in choices:
            raise ValueError(f"{name} = {value!r}, expected one of {tuple(choices)}")


def check_at_least(settings: Any, **least: float) -> None:
    """Raise ValueError for the first named field whose value is below its bound."""
    for name, bound in least.items():
        if (value := getattr(settings, name)) < bound:
            raise ValueError(f"{name} = {value!r}, expected at least {bound}")


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str = "model") -> T:
    """Build a frozen dataclass, nested ones too, from a mapping (a ConfigDict or JSON).

    Raises:
      ConfigError: an unknown or missing key, or a value of the wrong type; names the key.
    """
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(f"{path}: expected a mapping, got {values!r}")
    values = dict(values.items())
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{path}: unknown keys {unknown}; expected some of {sorted(fields)}")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(values))
    if missing:
        raise ConfigError(f"{path}: missing keys {missing}")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _convert(hints[k], v, f"{path}.{k}") for k, v in values.items()})


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


def _convert(hint: Any, value: Any, path: str) -> Any:
    if (inner := _without_none(hint)) is not hint:
        return None if value is None else _convert(inner, value, path)
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
            _convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path} = {value!r}: expected {hint.__name__}")
    return value
