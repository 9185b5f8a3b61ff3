"""Frozen dataclasses that check their fields when they are made."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin

from dff_jax.errors import ConfigError, one_line

MOST = 2**31 - 1
"""Largest whole number of a field: what an array of JAX can count."""


def check_value(where: str, value: Any, hint: Any) -> None:
    """Raises ConfigError unless `value` fits the type hint (Literal, int, float, str, bool, tuples, optional)."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not a choice; choose one of {', '.join(map(str, args))}")
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return
        first, *others = (a for a in args if a is not type(None))
        try:
            check_value(where, value, first)
        except ConfigError:
            if not any(_fits(value, other) for other in others):
                raise
    elif origin is tuple:
        variadic = len(args) == 2 and args[1] is Ellipsis
        if not isinstance(value, tuple) or not (variadic or len(value) == len(args)):
            raise ConfigError(f"{where}: expected {len(args)} values, got {value!r}")
        for item, arg in zip(value, args[:1] * len(value) if variadic else args, strict=True):
            check_value(where, item, arg)
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{where}: expected a number, got {value!r}")
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where}: expected a whole number, got {value!r}")
        if abs(value) > MOST:
            raise ConfigError(f"{where}: must lie within {-MOST} and {MOST}, got {one_line(value, 40)}")
    elif isinstance(hint, type) and not isinstance(value, hint):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    try:
        check_value("", value, hint)
    except ConfigError:
        return False
    return True


@dataclass(frozen=True)
class Checked:
    """Base of all config dataclasses: checks types and choices, then what the subclass adds in `_check`."""

    _section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            check_value(self._name(f.name), getattr(self, f.name), hints[f.name])
        self._check()

    def _name(self, name: str) -> str:
        return f"{self._section}.{name}" if self._section else name

    def _check(self) -> None:
        pass

    def _at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{self._name(name)}: must be at least {low:g}, got {value!r}")

    def _at_most(self, high: float, *names: str) -> None:
        for name in names:
            if getattr(self, name) > high:
                raise ConfigError(f"{self._name(name)}: must be at most {high:g}, got {getattr(self, name)!r}")

    def _positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{self._name(name)}: must be greater than 0, got {getattr(self, name)!r}")
