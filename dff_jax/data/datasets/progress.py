"""How far a long preparation is: a bar on a terminal, else a plain line now and then, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
REPORT_SECONDS = 15.0


def report(items: Iterable[T], label: str, count: int) -> Iterator[T]:
    """Passes the `count` stacks of `items` on, whose making is the work, saying rate and time left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=count, unit="stack", file=sys.stderr)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        now = time.monotonic()
        if done == count or now - last > REPORT_SECONDS:
            last = now
            print(f"{label} {_line(done, count, now - start)}", file=sys.stderr, flush=True)
        yield item


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _line(done: int, count: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    left = "" if done == count else f", {duration((count - done) / rate)} left"
    return f"{done}/{count} stacks, {duration(seconds)}, {rate:.1f} stacks/s{left}"
