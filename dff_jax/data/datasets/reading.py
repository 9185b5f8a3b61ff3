"""Items to records, in order, in this process or several. The readers are numpy only: no worker touches a device."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dff_jax.data.datasets.summary import Digest, digest
from dff_jax.data.datasets.writing import serialize
from dff_jax.errors import InputError
from dff_jax.focus_axis import to_q
from dff_jax.runtime.progress import track

if TYPE_CHECKING:
    from dff_jax.data.datasets.base import Item
    from dff_jax.types import FocalStack


class Noted(NamedTuple):
    """What `Item.read` may give instead of a stack alone."""

    stack: FocalStack
    remarks: tuple[str, ...] = ()  # for the user, a sentence each
    details: dict[str, Any] = {}  # JSON-able, kept in statistics.json under the stack's name
    pictures: dict[str, bytes] = {}  # PNG files, kept as <key>/<name of the stack>.png beside the records


class Outcome(NamedTuple):
    """One stack, ready to be written."""

    name: str
    record: bytes  # serialized, of `record_features`
    digest: Digest
    remarks: tuple[str, ...]
    details: dict[str, Any]
    pictures: dict[str, bytes]


@functools.cache
def record_features() -> tfds.features.FeaturesDict:
    """The layout of every converted record. Z, H and W may differ from one to the next."""
    # Raw bytes: array_record compresses them, and faster than tfds does.
    return tfds.features.FeaturesDict({
        "stack": tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes"),
        "focus": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "depth": tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="bytes"),
        "mask": tfds.features.Tensor(shape=(None, None), dtype=np.bool_, encoding="bytes"),
        "name": tfds.features.Text(),
    })  # fmt: skip


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_items(
    splits: dict[str, tuple[Item, ...]], label: str, workers: int, scratch: Path
) -> Iterator[Outcome | InputError]:
    """Every item of every split in order; an InputError where one cannot be read.

    Args:
      splits: the items.
      label: what to call them in messages.
      workers: more than one are spawned processes, so the calling program's main module must guard its work by
        `if __name__ == "__main__"`.
      scratch: an existing folder; workers leave records there, 2 each, until their turn comes.

    Raises:
      InputError: a worker that was killed, such as for want of memory.
    """
    count = sum(map(len, splits.values()))
    if min(workers, count) < 2:
        for split, items in splits.items():
            yield from track(map(read_one, items), f"{label}: {split}", len(items))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, count), mp_context=context, initializer=_start_worker)
    try:
        for split, items in splits.items():
            yield from track(_in_order(pool, items, 2 * workers, scratch), f"{label}: {split}", len(items))
    except BrokenProcessPool:
        raise InputError(f"{label}: a worker was killed, perhaps for want of memory; repeat with --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_one(item: Item) -> Outcome | InputError:
    """Reads one item, checks that it is as promised, and makes its record, which takes half as long as reading."""
    try:
        found = item.read()
    except InputError as error:
        return InputError(str(error))  # of this class exactly: others need not survive pickling
    stack, *more = found if isinstance(found, Noted) else Noted(found)
    record = serialize(to_record(stack, item.name), record_features())
    return Outcome(item.name, record, digest(stack), *more)


def to_record(stack: FocalStack, name: str) -> dict[str, Any]:
    """A stack as base.StackBuilder writes it.

    Raises:
      ValueError: a reader that does not keep its promise (shapes, types, order, truth).
    """
    frames, focus = stack.frames, np.asarray(stack.focus)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"{name}: frames are {frames.dtype} {frames.shape}, not uint8 [Z,H,W,3]")
    if focus.shape != frames.shape[:1]:
        raise ValueError(f"{name}: {focus.shape} focus settings for {len(frames)} frames")
    if not np.all(np.diff(to_q(focus, stack.unit)) > 0):
        raise ValueError(f"{name}: frames are not sorted by ascending q: {focus.tolist()} in {stack.unit}")
    size = frames.shape[1:3]
    if stack.depth is None:
        depth, mask = np.zeros(size, np.float32), np.zeros(size, bool)
    else:
        depth, mask = np.asarray(stack.depth, np.float32), np.asarray(stack.mask)
        if depth.shape != size or mask.shape != size or mask.dtype != bool:
            raise ValueError(f"{name}: depth {depth.shape}, mask {mask.dtype} {mask.shape}, frames {size}")
        if not np.isfinite(depth).all() or depth[~mask].any():
            raise ValueError(f"{name}: depth must be finite, and 0 where the mask is False")
    return {"stack": frames, "focus": focus.astype(np.float32), "depth": depth, "mask": mask, "name": name}


def _in_order(
    pool: ProcessPoolExecutor, items: tuple[Item, ...], ahead: int, scratch: Path
) -> Iterator[Outcome | InputError]:
    """At most `ahead` items are being read or waiting, so that the space they take stays bounded."""
    waiting: deque[Future] = deque()
    for index, item in enumerate(items):
        waiting.append(pool.submit(_read_to_file, item, scratch / f"{index % ahead}.record"))
        if len(waiting) == ahead:  # its file is free again when it has been taken
            yield _taken(*waiting.popleft().result())
    while waiting:
        yield _taken(*waiting.popleft().result())


def _read_to_file(item: Item, path: Path) -> tuple[Outcome | InputError, Path]:
    """Large records through a pipe would take as long as reading them: 64 kB at a time, each with its own wait."""
    outcome = read_one(item)
    if isinstance(outcome, Outcome):
        path.write_bytes(outcome.record)
        outcome = outcome._replace(record=b"")
    return outcome, path


def _taken(outcome: Outcome | InputError, path: Path) -> Outcome | InputError:
    if isinstance(outcome, Outcome):
        outcome = outcome._replace(record=path.read_bytes())
        path.unlink()
    return outcome


def _start_worker() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
