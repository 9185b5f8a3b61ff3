"""How far a long loop is: a bar on a terminal, plain lines with rate and time left elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

from dff_jax.errors import printable

T = TypeVar("T")
SECONDS = 10.0
"""Least time between two plain lines."""


class ProgressBar:
    """Counts what a loop has done and shows it. Of several processes only the first one shows anything."""

    def __init__(
        self, label: str, total: int, unit: str = "stack", *, done: int = 0, every: float = SECONDS, shown: bool = True
    ):
        """Begins the display.

        Args:
          label: what is done.
          total: how many units there are in all.
          unit: what is counted, in the singular.
          done: how many of them were done before.
          every: seconds between two plain lines; infinite: only `note` writes one.
          shown: False counts without a display.
        """
        self._label, self._total, self._unit, self.done, self._every = printable(label), total, unit, done, every
        self._shown = shown and _speaks()
        terminal = self._shown and sys.stderr.isatty()
        self._bar = _terminal_bar(self._label, total, unit, done) if terminal else None
        self._last = time.monotonic()
        self.restart()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def restart(self) -> None:
        """Begins the measurement of the rate anew; what was done in between, such as an evaluation, does not count."""
        self._began, self._since = time.monotonic(), self.done

    def rate(self) -> float:
        """Units per second since the start or the last `restart`; 0 before the first unit."""
        return (self.done - self._since) / max(time.monotonic() - self._began, 1e-9)

    def advance(self, count: int = 1) -> None:
        """Counts `count` more units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._every < float("inf") and (time.monotonic() - self._last >= self._every or self.done == self._total):
            self.note()

    def note(self, text: str = "") -> None:
        """Shows `text` beside the bar, or in a plain line that is written now."""
        if self._bar is not None:
            self._bar.set_postfix_str(printable(text))
            return
        self._last, rate = time.monotonic(), self.rate()
        parts = [f"{self._label}: {self.done}/{self._total} {self._unit}s"] + [text] * bool(text)
        if rate:
            parts.append(f"{rate:.3g} {self._unit}s/s")
            left = (self._total - self.done) / rate
            parts.append(f"{duration(left)} left" if left else f"took {duration(time.monotonic() - self._began)}")
        if self._shown:
            say(", ".join(parts))

    def say(self, message: str) -> None:
        """Writes a line that does not break the bar."""
        say(message) if self._bar is None else self._bar.write(printable(message), file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is and begins a new line."""
        if self._bar is not None:
            self._bar.close()


def _terminal_bar(label: str, total: int, unit: str, done: int) -> Any:
    from tqdm import tqdm  # only here: a bare accelerator image does not have it

    return tqdm(desc=label, total=total, initial=done, unit=unit, file=sys.stderr)


def track(items: Iterable[T], label: str, total: int, unit: str = "stack", shown: bool = True) -> Iterator[T]:
    """Passes on the `total` items, whose making is the work, and shows how many there are."""
    with ProgressBar(label, total, unit, shown=shown) as bar:
        for item in items:
            bar.advance()
            yield item


def say(message: str) -> None:
    """Writes one line to stderr; of several processes only the first one does."""
    if _speaks():
        print(printable(message), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _speaks() -> bool:
    """Asked so that a program of one process does not start JAX's backend for it."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0
