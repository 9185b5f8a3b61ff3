"""Datasets by name, each in the file of its family. No TensorFlow anywhere; tfds is imported when it is needed."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dff_jax.data.datasets.base import VERSION, Dataset
from dff_jax.errors import InputError, one_line
from dff_jax.runtime.progress import say
from dff_jax.runtime.replacing import recover

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_FILES = ("procedural", "stereo_sets", "hci", "ddff12", "fod500", "mobile_depth", "user_stacks", "rgbd")


def all_datasets() -> dict[str, Dataset]:
    """All datasets by name; of a family of the user's own data, "family/NAME"."""
    files = (importlib.import_module(f"{__name__}.{file}") for file in _FILES)
    return {dataset.name: dataset for file in files for dataset in file.DATASETS}


def find(name: str, options: dict[str, Any] | None = None) -> Dataset:
    """The dataset `name`, with `options` of its family.

    Raises:
      InputError: no such dataset (the message lists the choices) or option.
    """
    known = all_datasets()
    family, _, own = name.partition("/")
    found = known.get(name) or known.get(f"{family}/NAME")
    if found is None or not own:
        raise InputError(f"dataset: {name!r} is unknown; choose one of {', '.join(known)}")
    return found.named(name, options or {})


def describe_all() -> str:
    """Every name with its unit, what it is and where to get it, three lines each: `dff-jax prepare --list`."""
    return "\n".join(
        f"{name}  [{'as the files say' if dataset.open else dataset.facts.unit}]\n"
        f"    {dataset.description}\n"
        f"    get it: {dataset.facts.where}"
        for name, dataset in all_datasets().items()
    )


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

    An interruption leaves nothing that would be taken for a dataset. Progress goes to stderr. Beside the records lie
    `statistics.json` and `overview.png`.

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

    dataset = find(name, options)
    path = data_root(data_dir) / name / VERSION
    recover(path)
    if path.exists() and not overwrite:
        _check_options(path, name, options)
        if source is not None and dataset.needs_source and Path(source).exists():
            preparing.check_unchanged(name, path, Path(source))
        return path
    if not dataset.needs_source:
        if source is not None:
            raise InputError(f"--source: {name} makes its own data; leave it out")
    elif source is None:
        raise InputError(f"{name}: --source DIR is needed, the folder with its files; {dataset.facts.where}")
    elif not Path(source).exists():
        raise InputError(f"{name}: there is no {source}; give the folder with its files; {dataset.facts.where}")
    preparing.make(dataset, path, Path(source or ""), workers)
    return path


def open_builder(name: str, data_dir: str | os.PathLike | None = None) -> tfds.core.DatasetBuilder:
    """The tfds builder of `name`, its data in place: `procedural` is made on first use, with a message.

    Raises:
      InputError: as `prepare`; data that `prepare` has yet to convert; or data on disk that was made with other
        settings than this version's.
    """
    dataset, root = find(name), data_root(data_dir)
    path = root / name / VERSION
    recover(path)
    if not path.exists():
        where, facts = f"{name} is not in {root}", dataset.facts
        if dataset.needs_source:
            raise InputError(f"{where}; convert its files first: dff-jax prepare {name} --source DIR ({facts.where})")
        say(f"{where}; making it now")
        prepare(name, data_dir)
    builder = _open(path)
    found = builder.info.metadata or {}
    for key, value in dataset.fingerprint.items():
        if found.get(key) != value:
            raise InputError(
                f"{name}: {path} was made with another {key} than this version's; "
                f"make it again (dff-jax prepare {name} --overwrite) or choose another data_dir"
            )
    return builder


def _open(path: Path) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        _check_features((path / "features.json").read_text("utf-8"))
        builder = tfds.builder_from_directory(path)
        dict(builder.info.metadata or {})
        return builder
    except Exception as error:  # of json, of protobuf, and KeyErrors
        raise InputError(f"{path}: damaged ({one_line(error)}); remove that folder and make it again") from None


def _check_features(text: str) -> None:
    """Raises InputError if features.json names classes that are not tfds's own, which tfds would import."""

    def check(item: dict[str, Any]) -> dict[str, Any]:
        for key in ("pythonClassName", "python_class_name", "type"):
            name = item.get(key, "")
            if not isinstance(name, str) or "." in name and not name.startswith("tensorflow_datasets.core.features."):
                raise InputError(f"features.json names code that is not part of tfds: {name}")
        return item

    json.loads(text, object_hook=check)


def _check_options(path: Path, name: str, options: dict[str, Any]) -> None:
    """Raises InputError where data that is there was made with other options than those asked for."""
    found = json.loads((_open(path).info.metadata or {}).get("options", "{}"))
    for key, value in options.items():
        if json.loads(json.dumps(value)) != found.get(key):
            raise InputError(
                f"{name}: {path} was made with {key} {found.get(key)}, not {value}; make it again with --overwrite, or "
                "under another name or --data-dir"
            )
