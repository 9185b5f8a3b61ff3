"""The clock and the progress of an evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from dff_jax.runtime.progress import ProgressBar
from dff_jax.types import LoadedBatch, Prediction

OnBatch = Callable[[int, LoadedBatch, Callable[[], Prediction]], None]  # stacks done, the batch, what predicts it


class Clock:
    """Time per stack of one method, compiled beforehand; without the first run of each program, which warms up, if
    there are others."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, float, int]] = []  # first of its program, seconds, stacks
        self._shapes: set[tuple[int, ...]] = set()

    def time(self, shape: tuple[int, ...], function: Callable, *args: Any) -> Any:
        """What `function(*args)` gives, once it is there, for frames of this shape [B,...]."""
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        self.calls.append((shape not in self._shapes, time.perf_counter() - start, shape[0]))
        self._shapes.add(shape)
        return result

    def per_stack(self) -> float:
        """Seconds; NaN before the first call."""
        counted = [call for call in self.calls if not call[0]] or self.calls
        if not counted:
            return math.nan
        return sum(seconds for _, seconds, _ in counted) / sum(stacks for _, _, stacks in counted)


def show_in(bar: ProgressBar) -> OnBatch:
    """Counts the stacks of each batch in a progress bar."""
    return lambda done, loaded, predicted: bar.advance(done - bar.done)
