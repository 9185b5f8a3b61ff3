"""`dff-jax prepare`: survey, one report of all problems, room on the disk, then the writing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from dff_jax.data.datasets.base import StackBuilder
from dff_jax.data.datasets.reading import available_cores
from dff_jax.data.datasets.records import Inventory, fingerprint
from dff_jax.data.datasets.summary import STATISTICS
from dff_jax.errors import InputError, SourceError
from dff_jax.runtime.files import check_output
from dff_jax.runtime.progress import say

STACKS_PER_WORKER = 16
MARGIN_BYTES = 16 * 2**20  # indices, statistics, images


def generate(name: str, builder: tfds.core.DatasetBuilder) -> None:
    """Runs tfds, which writes beside the goal and renames at the end, without its own bars and banners."""
    tfds.disable_progress_bar()
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record", download_config=settings)
    except OSError as error:
        if not builder.data_path.exists():  # else another process was faster
            raise InputError(f"{name}: cannot write {builder.data_path}: {error}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[None]:
    """Moves data in `path` aside while new data is made, and back if that fails.

    A builder that finds data would take over its description, so make the builder inside.
    """
    if not path.exists():
        yield
        return
    aside = path.with_name(f"replaced.{os.getpid()}.{path.name}")
    path.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside)


def survey(name: str, builder: StackBuilder, source: str | os.PathLike | None) -> Inventory:
    """What `source` holds for `builder`; nothing is missing.

    Raises:
      SourceError: with every problem.
      InputError: no source, or one without any stack.
    """
    where = builder.builder_config.facts.where
    if source is None:
        raise InputError(f"{name}: --source DIR is needed, the folder with its files; {where}")
    source = Path(source)
    if not source.exists():
        raise InputError(f"{name}: there is no {source}; give the folder with its files; {where}")
    inventory = builder.survey(source)
    if inventory.problems:
        raise SourceError(name, source, inventory.problems)
    if not inventory.stacks:
        raise InputError(f"{name}: no stack in {source}; {where}")
    return inventory


def check_unchanged(name: str, made: Path, source: Path) -> None:
    """Raises InputError if the dataset in `made` is of other files than `source` holds now."""
    try:
        before = json.loads((made / STATISTICS).read_text()).get("source")
    except (OSError, ValueError):
        before = None
    if before is not None and before != fingerprint(source, made):
        raise InputError(
            f"{name}: {made} was made of other files than {source} holds now; make it again with --overwrite, or under "
            "another name or --data-dir"
        )
    say(f"{name} is there already; --overwrite makes it again")


def convert(name: str, builder: StackBuilder, source: Path, inventory: Inventory, workers: int) -> None:
    """Writes the dataset with `workers` processes (0: as many as are worth while). Says beforehand what it takes.

    Raises:
      SourceError: files that turned out to be damaged; all of them. Nothing is kept.
      InputError: not enough room, or a folder that cannot be written.
    """
    counts = ", ".join(f"{len(items)} in {split}" for split, items in inventory.splits.items())
    needed = inventory.bytes_needed
    room = "size not known beforehand" if needed is None else f"at most {needed / 1e6:,.1f} MB of disk"
    say(f"{name}: {counts}; {room}")
    for note in inventory.notes:
        say(f"note: {note}")
    root = Path(builder.data_path)
    check_output(root, needed=(needed or 0) + MARGIN_BYTES)
    for leftover in root.parent.glob(f"incomplete.*_{root.name}"):
        say(f"note: {leftover} was left by a run that was killed; delete it, unless it is still running")
    builder.source, builder.inventory, builder.workers = source, inventory, workers or sensible_workers(inventory)
    try:
        generate(name, builder)
    finally:
        if root.parent.is_dir() and not any(root.parent.iterdir()):
            root.parent.rmdir()


def sensible_workers(inventory: Inventory) -> int:
    """One a core, but none for so few stacks that starting it takes longer than the work."""
    return min(available_cores(), max(1, inventory.stacks // STACKS_PER_WORKER))
