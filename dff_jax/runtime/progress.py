"""A person at a terminal: progress, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
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
    """Ctrl-C and SIGTERM wait for the end of the block: raised inside XLA's compiler, they crash Python on its way out.

    XLA could not be stopped half way in any case; a line on stderr says so. A second one does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    received: list[tuple] = []

    def remember(number: int, frame: Any) -> None:
        if received:
            handlers[number](number, frame)
        else:
            os.write(2, b"stopping as soon as the compiler or the device is done; a second time stops at once\n")
        received.append((number, frame))

    for number in handlers:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        handlers[received[0][0]](*received[0])
