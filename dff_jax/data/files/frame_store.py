"""Room for the frames of a stack: in memory, or, if it is large, on disk.

A large stack is an ordinary array over a file without a name. `let_go` after each frame or tile keeps its pages from
piling up in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax.runtime.files import scratch_file

Allocate = Callable[[tuple[int, ...], Any], np.ndarray]
"""(shape, dtype) -> an array of no particular content."""


def allocator(folder: str | Path, limit: float) -> Allocate:
    """Arrays of up to `limit` bytes in memory, larger ones on the disk of `folder`.

    They raise InputError where the disk has no room for them.
    """

    def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size <= limit:
            return np.empty(shape, dtype)
        with scratch_file(folder, size) as file:  # which lives on as long as its map
            return np.ndarray(shape, dtype, mmap.mmap(file.fileno(), size))

    return allocate


def on_disk(frames: np.ndarray) -> bool:
    """Whether an array of `allocator` lies on disk; of a view, False."""
    return isinstance(frames.base, mmap.mmap)


def let_go(frames: np.ndarray) -> None:
    """Takes what was read or written of an array on disk out of this process's memory; it stays as it is."""
    if on_disk(frames):
        frames.base.madvise(mmap.MADV_DONTNEED)
