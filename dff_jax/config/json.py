"""Configs as plain dicts and JSON, out and in."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from typing import Any

from dff_jax.config.experiment import Config
from dff_jax.errors import ConfigError


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain dicts (tuples stay tuples; json writes them as lists)."""
    return dataclasses.asdict(config)


def to_json(config: Any) -> str:
    """A config as JSON text."""
    return json.dumps(to_dict(config), indent=2)


def from_dict(data: dict[str, Any], cls: type = Config, where: str = "") -> Any:
    """Inverse of `to_dict`, checked. Fields left out take their defaults.

    Raises:
      ConfigError: an unknown field (named, with the nearest choices) or a bad value.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'}: expected fields, got {data!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    kwargs = {}
    for key, value in data.items():
        shown = " ".join(str(key).split())[:80]
        path = f"{where}.{shown}" if where else shown
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3) or names
            raise ConfigError(f"{path}: unknown field; choose one of {', '.join(near)}")
        hint = hints[key]
        inner = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
        many = typing.get_origin(hint) is tuple
        if inner and many and isinstance(value, list | tuple):
            value = tuple(from_dict(item, inner, f"{path}.{i}") for i, item in enumerate(value))
        elif inner and not many and not (value is None and inner is not hint):
            value = from_dict(value, inner, path)
        elif isinstance(value, list):
            value = tuple(value)
        kwargs[key] = value
    return cls(**kwargs)


def from_json(text: str, cls: type = Config) -> Any:
    """A config from JSON text; raises ConfigError as `from_dict` does, and for text that is not JSON."""
    try:
        data = json.loads(text)
        return from_dict(data, cls)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, brackets without end
        raise ConfigError(f"config: not valid JSON ({error})") from None
