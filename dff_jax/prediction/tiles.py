"""Cutting a large image into overlapping tiles of one shape, and the weights that put it together again.

Tiles start at multiples of STRIDE. A network that halves its image five times then sees each pixel in the same phase as
in the whole image. The last tiles end where the image ends, so that its border is treated as in the whole image. Hence
the sides of a tile leave the same remainder, divided by STRIDE, as the sides of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dff_jax.errors import InputError

WHOLE = 1.5  # an image of up to (WHOLE * tile)^2 pixels is not cut
STRIDE = 32
LEAST = 4 * STRIDE  # smallest side of a tile: less is mostly overlap
SHARED = 8  # the weights pass from one tile to the next within the middle 1/SHARED of their overlap


class TilingOptions(NamedTuple):
    """How a stack is worked on that may be too large for one piece."""

    tile: int = 1024  # longest side of a tile, pixels
    overlap: int | None = None  # of neighbouring tiles, pixels; None: as the method needs
    memory: float = 4.0  # GB for the process, without the frames that the caller gave
    devices: int = 1  # tiles that are worked on at a time
    progress: bool = False  # shows progress on stderr

    def check(self) -> None:
        """Raises InputError for values outside their bounds."""
        if self.tile < LEAST:
            raise InputError(f"tile: must be at least {LEAST} pixels, got {self.tile}")
        if self.overlap is not None and not 0 < self.overlap <= self.tile // 2:
            raise InputError(
                f"overlap: must lie between 1 and half a tile ({self.tile // 2}), got {self.overlap}"
            )
        if not self.memory > 0:
            raise InputError(f"memory: must be more than 0 GB, got {self.memory}")


class Tile(NamedTuple):
    """A rectangle of the image, and its share of each pixel there as the product of two vectors."""

    rows: slice
    columns: slice
    down: np.ndarray  # [h] float32
    across: np.ndarray  # [w] float32

    @property
    def weight(self) -> np.ndarray:
        """[h,w]; at each pixel of the image the weights of the tiles sum to 1."""
        return self.down[:, None] * self.across[None, :]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.down), len(self.across)


def split(height: int, width: int, tile: int, overlap: int, *, may_be_whole: bool = True) -> tuple[Tile, ...]:
    """Covers height x width pixels with tiles of one shape.

    Along the overlap of two tiles the weights are constant but for its middle eighth, where they pass linearly from one
    tile to the next. So a method that sees at most 7/16 of the overlap gives the same with and without tiles.

    Args:
      tile: longest side of a tile.
      overlap: least overlap of neighbours.
      may_be_whole: leaves an image that is a little larger than a tile in one piece.
    """
    whole = may_be_whole and height * width <= (WHOLE * tile) ** 2
    rows, columns = (
        [(slice(0, length), np.ones(length, np.float32))] if whole else _spans(length, tile, overlap)
        for length in (height, width)
    )
    return tuple(Tile(y, x, down, across) for y, down in rows for x, across in columns)


def _spans(length: int, tile: int, overlap: int) -> list[tuple[slice, np.ndarray]]:
    """Where tiles lie along one side, and their weights there."""
    if length <= tile:
        return [(slice(0, length), np.ones(length, np.float32))]
    size = tile - (tile - length) % STRIDE
    step = (size - overlap) // STRIDE  # largest distance of two starts, in strides
    count = -(-((length - size) // STRIDE) // step) + 1
    size -= _spare(length, size, overlap, count)
    strides = (length - size) // STRIDE
    starts = [STRIDE * (i * strides // (count - 1)) for i in range(count)]
    spans = []
    for i, start in enumerate(starts):
        x = np.arange(start, start + size) + 0.5
        weight = np.ones(size)
        if i > 0:
            weight *= _ramp(x, start, starts[i - 1] + size)
        if i + 1 < count:
            weight *= 1.0 - _ramp(x, starts[i + 1], start + size)
        spans.append((slice(start, start + size), weight.astype(np.float32)))
    return spans


def _spare(length: int, size: int, overlap: int, count: int) -> int:
    """By how many pixels `count` tiles may be smaller: a multiple of STRIDE."""
    spare = 0
    while True:
        smaller = size - spare - STRIDE
        farthest = -(-((length - smaller) // STRIDE) // (count - 1)) * STRIDE  # between two starts
        if smaller - farthest < overlap:
            return spare
        spare += STRIDE


def _ramp(x: np.ndarray, start: int, stop: int) -> np.ndarray:
    """0 to 1 over the middle of [start, stop]."""
    return np.clip((x - (start + stop) / 2) * SHARED / (stop - start) + 0.5, 0.0, 1.0)
