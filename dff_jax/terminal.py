"""A person at a terminal: progress, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm


def shown(items: Sequence[Any], what: str, each: str, progress: bool) -> Iterator[Any]:
    """Goes through `items` with a bar on a terminal, and at most ten plain lines elsewhere."""
    terminal = sys.stderr.isatty()
    every = max(1, len(items) // 10)
    for i, item in enumerate(tqdm(items, desc=what, unit=each, disable=not (progress and terminal))):
        if progress and not terminal and i % every == 0:
            print(f"{what}: {each} {i + 1} of {len(items)}", file=sys.stderr, flush=True)
        yield item


@contextlib.contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: raised inside XLA's compiler, it crashes Python on its way out.

    XLA could not be stopped half way in any case. A second Ctrl-C does not wait.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple] = []

    def remember(*args) -> None:
        if pressed:
            handler(*args)
        pressed.append(args)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        handler(*pressed[0])
