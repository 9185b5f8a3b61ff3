"""Ctrl-C and SIGTERM. Three contexts say what they do inside:

* `interruptible`, around a command: both raise KeyboardInterrupt.
* `interrupt_held_back`, around a call into XLA: they wait until the call returns.
* `stop_on_signal`, around training: the first sets an event, so that the step is finished and saved.

Only the main thread may install handlers. In another thread the contexts change nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _handling(handler: Any, instead_of: Callable[[Any], bool]) -> Iterator[dict[int, Any]]:
    """Installs `handler` where `instead_of` accepts the present handler; yields the handlers that it replaced."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in SIGNALS if instead_of(old := signal.getsignal(number))}
    _install(dict.fromkeys(before, handler))
    try:
        yield before
    finally:
        _install(before)


def _install(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)  # None: it was not installed from Python


def _is_default(handler: Any) -> bool:
    return handler in (signal.SIG_DFL, signal.default_int_handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGTERM raise KeyboardInterrupt as Ctrl-C does, so that a command cleans up after both.

    A second signal within a second is ignored, as it would interrupt the cleaning up. Python drops an exception that is
    raised while it collects garbage or finalizes an object; the signal is then sent again. While JAX is imported, both
    signals end the process at once: an interrupted import leaves a long traceback.
    """
    last, received = -math.inf, signal.SIGINT
    report = sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last, received
        if time.monotonic() - last > 1:
            last, received = time.monotonic(), signal.Signals(number)
            raise KeyboardInterrupt

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        nonlocal last
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return report(dropped)
        last = -math.inf
        again = threading.Timer(0.02, os.kill, (os.getpid(), received))
        again.daemon = True
        again.start()

    with _handling(signal.SIG_DFL, _is_default):
        import jax  # noqa: F401
    with _handling(interrupt, _is_default):
        sys.unraisablehook = send_again
        try:
            yield
        finally:
            sys.unraisablehook = report


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait for the end of the block, and says so on stderr. A second one does not wait.

    XLA cannot be stopped half way, and an exception raised inside its compiler crashes Python at its exit.
    """
    received: list[tuple[int, FrameType | None]] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append((number, frame))
        if len(received) > 1:
            before[number](number, frame)
        else:
            os.write(2, b"stopping as soon as the compiler or the device is done; a second time stops at once\n")

    with _handling(remember, callable) as before:
        yield
    if received:
        number, frame = received[0]
        before[number](number, frame)


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yields an event that the first SIGINT or SIGTERM sets. A later one acts as if this context were not there.

    Signals within a second count as one: a terminal sends Ctrl-C to a launcher and to the processes to which the
    launcher passes it on.
    """
    asked = threading.Event()
    first = math.inf  # when the first came

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if time.monotonic() - first > 1:
            _install(before)
            signal.raise_signal(number)
        elif not asked.is_set():
            first = time.monotonic()
            asked.set()
            # os.write: a signal may interrupt print inside itself, and print refuses to be re-entered.
            os.write(2, b"\nstopping after this step and saving; once more to stop at once\n")

    with _handling(ask, lambda handler: True) as before:
        yield asked


def end_with_parent() -> None:
    """In a worker process: ends it as soon as the parent has ended, killed or not.

    A killed parent ends no worker by itself: each would wait for work for ever, in a pipe that the others hold open.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
