"""Items to records, in order, in this process or several. The readers are numpy only: no worker touches a device."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dff_jax.data.datasets.base import Item
from dff_jax.data.datasets.records import write_record
from dff_jax.errors import InputError
from dff_jax.runtime.progress import track
from dff_jax.runtime.stopping import end_with_parent


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_items(splits: dict[str, list[Item]], label: str, workers: int) -> Generator[bytes | InputError]:
    """The record of every item of every split in order; an InputError where one cannot be read.

    Args:
      splits: the items.
      label: what to call them in messages.
      workers: more than one are spawned processes, so the calling program's main module must guard its work by
        `if __name__ == "__main__"`.

    Raises:
      InputError: a worker was killed, such as for want of memory.
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
            yield from track(_in_order(pool, items, 2 * workers), f"{label}: {split}", len(items))
    except BrokenProcessPool:
        raise InputError(f"{label}: a worker was killed, perhaps for want of memory; repeat with --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_one(item: Item) -> bytes | InputError:
    """Reads one item, checks that it is as promised, and makes its record, which takes half as long as reading."""
    try:
        stack = item.read()
        if not item.all_in_focus:
            stack = stack._replace(all_in_focus=None)
        elif stack.all_in_focus is None:
            raise ValueError(f"{item.name}: an all-in-focus picture was promised")
        return write_record(stack, item.name)
    except InputError as error:
        return InputError(str(error))  # of this class exactly: others need not survive pickling


def _in_order(pool: ProcessPoolExecutor, items: Sequence[Item], ahead: int) -> Iterator[bytes | InputError]:
    """The records in the order of `items`; at most `ahead` are in memory or being read."""
    waiting = deque(pool.submit(read_one, item) for item in items[:ahead])
    for item in items[ahead:]:
        yield waiting.popleft().result()
        waiting.append(pool.submit(read_one, item))
    while waiting:
        yield waiting.popleft().result()


def _start_worker() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
