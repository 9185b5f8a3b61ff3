"""Configs out and in: plain dicts, JSON, Python files, and fields changed on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from dff_jax.config.base import Checked
from dff_jax.config.methods import METHODS, ModelConfig, Proximal
from dff_jax.config.own_code import check_trusted, trust, working_directory_importable
from dff_jax.config.presets import MODEL_PRESETS
from dff_jax.config.training import Config
from dff_jax.errors import ConfigError, InputError


def to_dict(config: Any) -> Any:
    """A config as nested plain dicts (tuples stay tuples; json writes them as lists)."""
    if isinstance(config, tuple):
        return tuple(map(to_dict, config))
    if not dataclasses.is_dataclass(config):
        return config
    found = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"method": config.method} | found if isinstance(config, ModelConfig) else found


def to_json(config: Any) -> str:
    """A config as JSON text."""
    return json.dumps(to_dict(config), indent=2)


def from_dict(data: Any, cls: type = Config, where: str = "") -> Any:
    """Inverse of `to_dict`, checked. Fields left out take their defaults.

    `method` chooses the class of a model. Earlier versions had one class for all methods: fields that only other
    methods have are ignored.

    Raises:
      ConfigError: an unknown field (named, with the nearest choices) or a bad value.
      UntrustedCode: a scheme or prox of somebody's own, which the user did not name (see `own_code`).
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'}: expected fields, got {data!r}")
    if cls is ModelConfig:
        cls, data = _of_method(data, where or "model")
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
        inner = next((a for a in (hint, *get_args(hint)) if isinstance(a, type) and issubclass(a, Checked)), None)
        many = get_origin(hint) is tuple
        if inner and many and isinstance(value, list | tuple):
            value = tuple(from_dict(item, inner, f"{path}.{i}") for i, item in enumerate(value))
        elif inner and not many and not (value is None and inner is not hint):
            value = from_dict(value, inner, path)
        elif isinstance(value, list):
            value = tuple(value)
        if cls is Proximal and key in ("scheme", "prox"):
            check_trusted(f"model.{key}", value)
        kwargs[key] = value
    return cls(**kwargs)


def _of_method(data: dict[str, Any], where: str) -> tuple[type[ModelConfig], dict[str, Any]]:
    """The class that `method` names, and the fields without those that only other methods have."""
    method = data.get("method", "proximal")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"{where}.method: {method!r} is not a choice; choose one of {', '.join(METHODS)}")
    own = {field.name for field in dataclasses.fields(METHODS[method])}
    others = {field.name for cls in METHODS.values() for field in dataclasses.fields(cls)} - own
    return METHODS[method], {key: x for key, x in data.items() if key != "method" and key not in others}


def from_json(text: str, cls: type = Config) -> Any:
    """A config from JSON text; raises ConfigError as `from_dict` does, and for text that is not JSON."""
    try:
        return from_dict(json.loads(text), cls)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, brackets without end
        raise ConfigError(f"config: not valid JSON ({error})") from None


# Python files -----------------------------------------------------------------------------------------------


def load_config(spec: str, kind: type = Config) -> Any:
    """The config that a function of a Python file returns: `configs/procedural_tiny.py`, or `file.py:function`.

    Args:
      spec: the file; the function `config` is called unless another is named.
      kind: the class that the config must have.

    Raises:
      ConfigError: no such file (those in `configs/` are listed), no such function, or it returns something else.
    """
    name, _, function = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py"))
        choices = f"choose one of {', '.join(known)}" if known else "give the path of a config file"
        presets = f" ({name} is a preset of the network: set it inside a config)" if name in MODEL_PRESETS else ""
        raise ConfigError(f"config: there is no file {name!r}{presets}; {choices}")
    module_spec = importlib.util.spec_from_file_location(f"dff_jax_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"config: {name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    with _errors_of(path), working_directory_importable():
        module_spec.loader.exec_module(module)
        functions = {
            key: value
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
        }
        function = function or "config"
        if function not in functions:
            raise ConfigError(f"config: {name} has no function {function!r}; it has {', '.join(functions)}")
        config = functions[function]()
    if not isinstance(config, kind):
        raise ConfigError(f"config: {spec} returns {type(config).__name__}, not a {kind.__name__}")
    return config


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turns an error in the user's file into a ConfigError that names the file's last line on the way to it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError(f"config: {where}: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    """The error in words; for a misspelt field also the nearest ones."""
    wrong = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    section = wrong and next((cls for cls in _subclasses(Checked) if cls.__name__ == wrong[1]), None)
    if not (wrong and section):
        return f"{type(error).__name__}: {error}"
    names = [field.name for field in dataclasses.fields(section)]
    near = difflib.get_close_matches(wrong[2], names, n=3) or names
    return f"{wrong[1]} has no field {wrong[2]!r}; choose one of {', '.join(near)}"


def _subclasses(cls: type[Checked]) -> list[type[Checked]]:
    return [found for sub in cls.__subclasses__() for found in (sub, *_subclasses(sub))]


# The command line -------------------------------------------------------------------------------------------


def fields_of(config: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """All leaf fields of nested dataclasses as {"model.width": (value, type hint)}."""
    found: dict[str, tuple[Any, Any]] = {}
    if isinstance(config, ModelConfig):
        found[f"{prefix}method"] = (config.method, str)
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= fields_of(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, item in enumerate(value):
                found |= fields_of(item, f"{name}.{i}.")
        else:
            found[name] = (value, hints[field.name])
    return found


def override(config: Config, arguments: list[str]) -> Config:
    """The config with command-line overrides such as `--model.num-iterations 5 --data.crop 64 96 --model.no-tied`.

    Raises:
      ConfigError: an unknown field (the nearest are listed) or a bad value.
    """
    changes: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, given, value = argument.partition("=")
            changes.append((name, [value] if given else []))
        elif changes:
            changes[-1][1].append(argument)
        else:
            raise ConfigError(f"config: {argument!r} is not a field; write --section.field value")
    data, fields = to_dict(config), fields_of(config)
    methods = [words for option, words in changes if option == "--model.method"]
    if methods:  # the method decides which other fields there are
        data["model"]["method"] = _parsed("model.method", methods[-1], str)
        model = from_dict(data["model"], ModelConfig, "model")
        others = {name: field for name, field in fields.items() if not name.startswith("model.")}
        data["model"], fields = to_dict(model), others | fields_of(model, "model.")
    for option, words in changes:
        name = option[2:].replace("-", "_")
        plain = re.sub(r"(^|\.)no_(\w+)$", r"\1\2", name)
        if name not in fields and plain in fields and fields[plain][1] is bool and not words:
            name, words = plain, ["False"]
        if name not in fields:
            tails = [f for f in fields if f.rpartition(".")[2] == name.rpartition(".")[2]]
            near = tails or difflib.get_close_matches(name, fields, n=4) or [f for f in fields if "." not in f]
            choices = ", ".join(f"--{n}" for n in near).replace("_", "-")
            raise ConfigError(f"{option}: unknown field; choose one of {choices}")
        *path, leaf = name.split(".")
        section = data
        for key in path:
            section = section[int(key) if isinstance(section, tuple) else key]
        section[leaf] = _parsed(name, words, fields[name][1])
    trust(data["model"].get("scheme"), data["model"].get("prox"))
    return from_dict(data, type(config))


def _parsed(name: str, words: list[str], hint: Any) -> Any:
    """Words of the command line as a value of type `hint`; what is no such value stays text, which a check names."""
    args = get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if words == ["None"] else _parsed(name, words, args[0])
    if get_origin(hint) is tuple:
        kinds = args[:1] * len(words) if args[-1] is Ellipsis else args
        parsed = tuple(_parsed(name, [word], kind) for word, kind in zip(words, kinds, strict=False))
        return parsed + tuple(words[len(kinds) :])
    if hint is bool and not words:
        return True
    if len(words) != 1:
        raise ConfigError(f"{name}: expected one value, got {' '.join(words) or 'none'}")
    if hint is bool:
        return {"true": True, "false": False}.get(words[0].lower(), words[0])
    if hint in (int, float):
        try:
            return hint(words[0])
        except ValueError:
            pass
    return words[0]
