"""`dff-jax prepare`: survey, one report of all problems, room on the disk, then the writing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dff_jax.data.datasets.reading import available_cores
from dff_jax.data.datasets.summary import STATISTICS, fingerprint
from dff_jax.errors import InputError, SourceError
from dff_jax.runtime.files import check_output, nearest_existing
from dff_jax.runtime.progress import say

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from dff_jax.data.datasets.base import Inventory, StackBuilder

STACKS_PER_WORKER = 16
MARGIN_BYTES = 16 * 2**20  # indices, statistics, pictures


def generate(name: str, builder: tfds.core.DatasetBuilder) -> None:
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


@contextlib.contextmanager
def replacing(path: Path):
    """Old data steps aside while new is made, because a builder that finds data takes over its description."""
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
    if not any(inventory.splits.values()):
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
    """Writes the dataset. Says beforehand what it takes, on stderr.

    Raises:
      SourceError: files that turned out to be damaged; all of them. Nothing is kept.
      InputError: not enough room, or a folder that cannot be written.
    """
    counts = ", ".join(f"{len(items)} in {split}" for split, items in inventory.splits.items())
    needed = bytes_needed(inventory)
    root = Path(builder.data_path)
    free = shutil.disk_usage(nearest_existing(root)).free
    room = "size not known beforehand" if needed is None else f"at most {_gigabytes(needed)} of disk"
    say(f"{name}: {counts}; {room}, {_gigabytes(free)} free at {nearest_existing(root)}")
    for note in inventory.notes:
        say(f"note: {note}")
    check_output(root, needed=(needed or 0) + MARGIN_BYTES)
    for leftover in root.parent.glob(f"incomplete.*_{root.name}"):
        say(f"note: {leftover} was left by a run that was killed; delete it, unless it is still running")
    builder.source, builder.inventory, builder.workers = source, inventory, workers or _sensible_workers(inventory)
    try:
        generate(name, builder)
    finally:
        if root.parent.is_dir() and not any(root.parent.iterdir()):
            root.parent.rmdir()


def bytes_needed(inventory: Inventory) -> int | None:
    """Of all records, uncompressed; None if neither the shape nor the size is known before reading."""
    if inventory.shape is None:
        return inventory.bytes_needed
    z, h, w = inventory.shape
    return record_bytes(z, h, w) * sum(map(len, inventory.splits.values()))


def record_bytes(z: int, h: int, w: int) -> int:
    """Of one record: frames, depth and mask, and a little for the rest."""
    return h * w * (3 * z + 4 + 1) + 4 * z + 256


def _sensible_workers(inventory: Inventory) -> int:
    """One a core, but none for so few stacks that starting it takes longer than the work."""
    return min(available_cores(), max(1, sum(map(len, inventory.splits.values())) // STACKS_PER_WORKER))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


