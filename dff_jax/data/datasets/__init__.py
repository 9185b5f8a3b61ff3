"""Datasets by name, each a tfds builder in its own file. No TensorFlow anywhere; tfds is imported when it is needed."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dff_jax.errors import InputError, one_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# family -> "module:builder class"; a name is family/config
_HERE = "dff_jax.data.datasets"
FAMILIES = {
    "procedural": f"{_HERE}.procedural:Procedural",
    "flyingthings": f"{_HERE}.stereo_sets:FlyingThings",
    "middlebury": f"{_HERE}.stereo_sets:Middlebury",
    "hci": f"{_HERE}.hci:Hci",
    "ddff12": f"{_HERE}.ddff12:Ddff12",
    "fod500": f"{_HERE}.fod500:Fod500",
    "mobile_depth": f"{_HERE}.mobile_depth:MobileDepth",
    "stacks": f"{_HERE}.user_stacks:UserStacks",
    "rgbd": f"{_HERE}.rgbd:Rgbd",
}


def names() -> list[str]:
    """All names that `prepare` and `open_builder` take; of a family of the user's own data, "family/NAME"."""
    found = []
    for family in FAMILIES:
        cls = _builder_class(family)
        found += [f"{family}/{config}" for config in (["NAME"] if cls.OPEN else cls.builder_configs)]
    return found


def describe_all() -> str:
    """Every name with its unit, what it is and where to get it, three lines each: `dff-jax prepare --list`."""
    lines = []
    for name in names():
        family, _, key = name.partition("/")
        cls = _builder_class(family)
        config = cls.builder_configs.get(key) or next(iter(cls.builder_configs.values()))
        unit, where = "disparity", "made here, needs no files"
        if not _makes_its_own(name):
            unit, where = "as the files say" if cls.OPEN else config.facts.unit, config.facts.where
        lines += [f"{name}  [{unit}]", f"    {config.description or cls.__doc__ or ''}", f"    get it: {where}"]
    return "\n".join(lines)


def data_root(data_dir: str | os.PathLike | None = None) -> Path:
    """Where tfds keeps its files: `data_dir`, else the variable TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    source: str | os.PathLike | None = None,
    overwrite: bool = False,
    workers: int = 1,
    **options: Any,
) -> Path:
    """Makes the dataset `name` (such as "procedural/quickstart") unless it is there; returns its folder.

    An interruption leaves nothing that would be taken for a dataset. Progress goes to stderr. Converted data gets
    `statistics.json` and `overview.png` beside it.

    Args:
      name: a name of `dff-jax prepare --list`.
      data_dir: see `data_root`.
      source: the folder of downloaded files; `procedural` has none.
      overwrite: makes it again even if it is there.
      workers: processes that read, 0: one a core; more than one needs a main module that guards its work by
        `if __name__ == "__main__"`.
      options: of the family, such as `unit` of `stacks`.

    Raises:
      InputError: no such dataset (the message lists the choices) or option, a folder that cannot be written, or data
        that was made with other options or of other files.
      SourceError: files that are missing or damaged, all in one; nothing is written.
    """
    from dff_jax.data.datasets import preparing

    builder = _builder(name, data_dir, options)
    path = Path(builder.data_path)
    if path.exists() and not overwrite:
        _check_options(name, builder, options)
        if source is not None and Path(source).exists() and not _makes_its_own(name):
            preparing.check_unchanged(name, path, Path(source))
        return path
    if _makes_its_own(name):
        if source is not None:
            raise InputError(f"--source: {name} makes its own data; leave it out")
        with preparing.replacing(path):
            preparing.generate(name, _builder(name, data_dir))
        return path
    inventory = preparing.survey(name, builder, source)
    with preparing.replacing(path):
        builder = _builder(name, data_dir, options, inventory.facts)
        preparing.convert(name, builder, Path(source or ""), inventory, workers)
    return path


def open_builder(name: str, data_dir: str | os.PathLike | None = None) -> tfds.core.DatasetBuilder:
    """The tfds builder of `name`, its data in place: `procedural` is made on first use, with a message.

    Raises:
      InputError: as `prepare`; data that `prepare` has yet to convert; or data on disk that was made with other
        settings than this version's.
    """
    builder = _builder(name, data_dir)
    if not builder.data_path.exists():
        where = f"{name} is not in {data_root(data_dir)}"
        if not _makes_its_own(name):
            facts = builder.builder_config.facts
            raise InputError(f"{where}; convert its files first: dff-jax prepare {name} --source DIR ({facts.where})")
        from dff_jax.runtime.progress import say

        say(f"{where}; making it now")
        prepare(name, data_dir)
        return _builder(name, data_dir)
    found = builder.info.metadata or {}
    for key, value in builder.builder_config.fingerprint.items():
        if found.get(key) != value:
            raise InputError(
                f"{name}: {builder.data_path} was made with another {key} than this version's; "
                f"make it again (dff-jax prepare {name} --overwrite) or choose another data_dir"
            )
    return builder


def _makes_its_own(name: str) -> bool:
    """Whether a dataset is made without a source."""
    return name.startswith("procedural/")


def _builder_class(family: str) -> Any:
    module, _, name = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), name)


def _builder(
    name: str, data_dir: str | os.PathLike | None, options: dict[str, Any] | None = None, facts: Any = None
) -> Any:
    """The builder of a dataset with the family's `options`; `facts` replace those of its config."""
    family, _, key = name.partition("/")
    cls = _builder_class(family) if family in FAMILIES else None
    if cls is None or not key or (key not in cls.builder_configs and not cls.OPEN):
        raise InputError(f"dataset: {name!r} is unknown; choose one of {', '.join(names())}")
    if _makes_its_own(name):
        if options:
            raise InputError(f"--{next(iter(options)).replace('_', '-')}: {name} takes no options")
        config = key
    else:
        config = cls.config_named(key, options)
        config.facts = facts or config.facts
    root = data_root(data_dir)
    try:
        builder = cls(config=config, data_dir=root)
        _ = builder.info.metadata  # reads the description of data that is there, which may be damaged
        return builder
    except InputError:
        raise
    except Exception as error:  # of json, of protobuf, and KeyErrors
        if not (root / name).is_dir():
            raise
        raise InputError(f"{root / name}: damaged ({one_line(error)}); remove that folder and make it again") from None


def _check_options(name: str, builder: tfds.core.DatasetBuilder, options: dict[str, Any]) -> None:
    """Raises InputError where data that is there was made with other options than those asked for."""
    found = json.loads((builder.info.metadata or {}).get("options", "{}"))
    for key, value in options.items():
        if json.loads(json.dumps(value)) != found.get(key):
            raise InputError(
                f"{name}: {builder.data_path} was made with {key} {found.get(key)}, not {value}; make it again with "
                "--overwrite, or under another name or --data-dir"
            )
