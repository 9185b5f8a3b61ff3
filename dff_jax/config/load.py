"""Config files, and fields changed on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import io
import re
import sys
import traceback
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dff_jax.config.experiment import Config
from dff_jax.config.presets import MODEL_PRESETS
from dff_jax.errors import ConfigError, InputError


def load_config(spec: str, kind: type = Config) -> Any:
    """The Config that a file's function returns: `configs/procedural_tiny.py`, or `file.py:function`.

    Args:
      kind: the class it must be of.

    Raises:
      ConfigError: no such file (those beside it are listed), no such function, or it returns something else.
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
    try:
        module_spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise ConfigError(f"config: {name} does not run: {_told(error)}") from None
    made_here = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    }
    function = function or ("config" if "config" in made_here else "")
    if function not in made_here:
        raise ConfigError(f"config: {name} has no function {function or 'config'!r}; it has {', '.join(made_here)}")
    try:
        config = made_here[function]()
    except InputError:
        raise
    except Exception as error:
        raise ConfigError(f"config: {_where(error, path)}: {_told(error)}") from None
    if not isinstance(config, kind):
        raise ConfigError(f"config: {spec} returns {type(config).__name__}, not a {kind.__name__}")
    return config


def _where(error: Exception, path: Path) -> str:
    """The file and the last line in it that was on the way to the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    return f"{path}, line {frames[-1].lineno}" if frames else str(path)


def _told(error: Exception) -> str:
    """What went wrong; of a misspelt field also the nearest ones."""
    from dff_jax import config

    wrong = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    section = wrong and getattr(config, wrong[1], None)
    if not (section and dataclasses.is_dataclass(section)):
        return f"{type(error).__name__}: {error}"
    names = [field.name for field in dataclasses.fields(section)]
    near = difflib.get_close_matches(wrong[2], names, n=3) or names
    return f"{wrong[1]} has no field {wrong[2]!r}; choose one of {', '.join(near)}"


def fields_of(config: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """All leaf fields of nested dataclasses as {"model.width": (value, type hint)}."""
    found = {}
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
    """The config with command-line overrides such as `--model.num-iterations 5`, by tyro.

    Names and choices are checked first, so that a slip is answered in one line.

    Raises:
      ConfigError: an unknown field (the nearest are listed) or a bad value.
    """
    if not arguments:
        return config
    _check_names(config, arguments)
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(Config, default=config, args=arguments)
    except SystemExit:
        text = re.sub(r"\x1b\[[0-9;]*m|[^\x20-\x7e\n]", " ", said.getvalue())
        lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
        told = [line for line in lines if not re.match(r"(Parsing error|For full helptext|dff-jax|usage)", line)]
        message = re.sub(r"^(Value error )?(Error )?", "", " ".join(told).partition(" Argument helptext")[0])
        raise ConfigError(f"config: {message[:400]}") from None


def _check_names(config: Config, arguments: list[str]) -> None:
    fields = fields_of(config)
    for i, argument in enumerate(arguments):
        if not argument.startswith("--"):
            if i == 0:
                raise ConfigError(f"config: {argument!r} is not a field; write --section.field value")
            continue
        name, _, value = argument[2:].replace("-", "_").partition("=")
        bare = name.rpartition(".")[0] + "." + name.rpartition(".")[2].removeprefix("no_") if "." in name else name
        known = name if name in fields else bare
        if known not in fields:
            tails = [f for f in fields if f.rpartition(".")[2] == name.rpartition(".")[2]]
            near = tails or difflib.get_close_matches(name, fields, n=4) or [f for f in fields if f.count(".") == 0]
            choices = ", ".join(f"--{n}" for n in near).replace("_", "-")
            raise ConfigError(f"{argument}: unknown field; choose one of {choices}")
        hint = fields[known][1]
        value = argument.partition("=")[2] or (arguments[i + 1] if i + 1 < len(arguments) else "")
        if get_origin(hint) is Literal and value not in map(str, get_args(hint)):
            raise ConfigError(f"{name}: {value!r} is not a choice; choose one of {', '.join(map(str, get_args(hint)))}")
