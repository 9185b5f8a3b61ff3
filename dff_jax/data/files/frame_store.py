"""Room for the frames of a stack: in memory or, for a large stack, in a file without a name."""

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
        with scratch_file(folder, size) as file:  # the map keeps the file
            return np.memmap(file, dtype, "r+", shape=shape)

    return allocate


def on_disk(frames: np.ndarray) -> bool:
    """Whether these are frames of `allocator` on disk."""
    return isinstance(frames, np.memmap)


def release_pages(frames: np.ndarray) -> None:
    """Takes the pages of frames on disk out of this process's memory; their content stays.

    Whoever goes through all frames calls this after each one, or the process would grow to the size of the stack.
    """
    base: Any = frames
    while isinstance(base, np.ndarray):  # of a view, the array
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
