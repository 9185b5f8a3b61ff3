"""Ctrl-C and SIGTERM: finish the step, save, leave; in a run of several processes all at the same step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.training.parallel import Devices


class Stop:
    """Whether to stop. `asked` is this process's own wish; `agreed` gives all processes the same answer.

    Every process calls `agreed` at the same points of its loop. The answer is that of the call before, whose sum over
    the processes was computed behind the step in between: so asking costs no waiting, and stopping one step.
    """

    def __init__(self, devices: Devices, asked: threading.Event):
        self.asked = asked
        self._devices, self._told = devices, None
        self._any = jax.jit(jnp.max, out_shardings=devices.whole)

    def agreed(self) -> bool:
        """Whether any process had been asked to stop when it last called."""
        if jax.process_count() == 1:
            return self.asked.is_set()
        heard = self._told is not None and self._read(self._told)
        self._told = self._tell()
        return heard

    def agreed_now(self) -> bool:
        """Whether any process has been asked to stop by now; waits for all of them."""
        if jax.process_count() == 1:
            return self.asked.is_set()
        return self._read(self._tell())

    def _tell(self) -> jax.Array:
        flags = np.full(jax.local_device_count(), self.asked.is_set(), np.int32)  # several processes use all devices
        return self._any(jax.make_array_from_process_local_data(self._devices.split, flags))

    def _read(self, told: jax.Array) -> bool:
        return bool(np.asarray(told.addressable_data(0)))


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second acts as if this were not here.

    Within a second they count as one: a terminal sends Ctrl-C to a launcher and to its processes, to which the launcher
    passes it on.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may install handlers
        return
    before: dict[int, Any] = {}
    first: float | None = None  # when the first came

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def ask(number, frame):
        nonlocal first
        if first is not None:
            if time.monotonic() - first > 1:
                restore()
                signal.raise_signal(number)
            return
        first = time.monotonic()
        asked.set()
        # os.write: print may be interrupted inside itself by a signal, and refuses to be re-entered.
        os.write(2, b"\nstopping after this step and saving; once more to stop at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()
