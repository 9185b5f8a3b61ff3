"""Datasets by name, each a tfds builder in its own file. No TensorFlow anywhere; tfds only when asked."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dff_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# family -> "module:builder class"; a name is family/config
FAMILIES = {"procedural": "dff_jax.data.datasets.procedural:Procedural"}


def names() -> list[str]:
    """All names that `prepare` and `open_builder` take."""
    return [f"{family}/{config}" for family in FAMILIES for config in _builder_class(family).builder_configs]


def data_root(data_dir: str | os.PathLike | None = None) -> Path:
    """Where tfds keeps its files: `data_dir`, else the variable TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepare(name: str, data_dir: str | os.PathLike | None = None, *, overwrite: bool = False) -> Path:
    """Makes the dataset `name` (such as "procedural/quickstart") unless it is there; returns its folder.

    An interruption leaves nothing that would be taken for a dataset. Progress goes to stderr.

    Args:
      data_dir: see `data_root`.
      overwrite: makes it again even if it is there.

    Raises:
      InputError: no such dataset (the message lists the choices), or a folder that cannot be written.
    """
    builder = _builder(name, data_dir)
    path = Path(builder.data_path)
    if path.exists() and overwrite:
        # A builder that finds data takes over its description, so the old data steps aside while new is made.
        aside = path.with_name(f"replaced.{os.getpid()}.{path.name}")
        path.rename(aside)
        try:
            _generate(name, _builder(name, data_dir))
        except BaseException:
            aside.rename(path)
            raise
        shutil.rmtree(aside)
    elif not path.exists():
        _generate(name, builder)
    return path


def open_builder(name: str, data_dir: str | os.PathLike | None = None) -> tfds.core.DatasetBuilder:
    """The tfds builder of `name`, its data in place: `procedural` is made on first use, with a message.

    Raises:
      InputError: as `prepare`, or data on disk that was made with other settings than this version's.
    """
    builder = _builder(name, data_dir)
    if not builder.data_path.exists():
        print(f"{name} is not in {data_root(data_dir)}; making it now", file=sys.stderr, flush=True)
        _generate(name, builder)
        return builder
    found = builder.info.metadata or {}
    for key, value in builder.builder_config.fingerprint.items():
        if found.get(key) != value:
            raise InputError(
                f"{name}: {builder.data_path} was made with another {key} than this version's; "
                f"make it again (dff-jax prepare {name} --overwrite) or choose another data_dir"
            )
    return builder


def _builder_class(family: str):
    module, _, name = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), name)


def _builder(name: str, data_dir: str | os.PathLike | None):
    family, _, config = name.partition("/")
    if family not in FAMILIES or config not in _builder_class(family).builder_configs:
        raise InputError(f"dataset: {name!r} is unknown; choose one of {', '.join(names())}")
    return _builder_class(family)(config=config, data_dir=data_root(data_dir))


def _generate(name: str, builder: tfds.core.DatasetBuilder) -> None:
    """Runs tfds, which writes beside the goal and renames at the end, without its own bars and banners."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record", download_config=settings)
    except OSError as error:
        if not builder.data_path.exists():  # else another process was faster
            raise InputError(f"{name}: cannot write {builder.data_path}: {error}") from None
