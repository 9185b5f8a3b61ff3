"""Cutting a large picture into overlapping tiles of one shape, and the weights that put it together again.

Tiles start at multiples of STRIDE, so that a network that halves its picture five times sees every pixel in the phase
in which it would see it in the whole picture; and the last ones end where the picture ends, so that its border is
treated as it would be there. So their sides leave the same remainder as the picture's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dff_jax.errors import InputError

WHOLE = 1.5  # a picture of up to (WHOLE * tile)^2 pixels is done in one piece
STRIDE = 32
LEAST = 4 * STRIDE  # of a tile's side: less is mostly overlap
SHARED = 8  # from one tile to the next in this part of their overlap


class Tile(NamedTuple):
    """A rectangle of the picture and its share of every pixel in it, the product of two vectors."""

    rows: slice
    columns: slice
    down: np.ndarray  # [h] float32
    across: np.ndarray  # [w] float32

    @property
    def weight(self) -> np.ndarray:
        """[h,w]; at every pixel of the picture the tiles' weights sum to 1."""
        return self.down[:, None] * self.across[None, :]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.down), len(self.across)


def check_tiling(tile: int, overlap: int | None) -> None:
    """Raises InputError for sizes that cannot be cut; `overlap` None is the method's own."""
    if tile < LEAST:
        raise InputError(f"tile: must be at least {LEAST} pixels, got {tile}")
    if overlap is not None and not 0 < overlap <= tile // 2:
        raise InputError(f"overlap: must lie between 1 and half a tile ({tile // 2}), got {overlap}")


def split(height: int, width: int, tile: int, overlap: int, *, may_be_whole: bool = True) -> tuple[Tile, ...]:
    """Covers height x width pixels with tiles of one shape, `tile` a side at most, overlapping by `overlap` at least.

    Pictures a little larger than a tile stay whole, if they may.

    From one tile to the next the weights pass linearly over the middle eighth of the overlap. To both sides of it an
    estimator's answer near a border that is none counts nothing: what looks no farther than 7/16 of the overlap
    gives the same with and without tiles.
    """
    whole = may_be_whole and height * width <= (WHOLE * tile) ** 2
    rows, columns = (
        [(slice(0, length), np.ones(length, np.float32))] if whole else _spans(length, tile, overlap)
        for length in (height, width)
    )
    return tuple(Tile(y, x, down, across) for y, down in rows for x, across in columns)


def _spans(length: int, tile: int, overlap: int) -> list[tuple[slice, np.ndarray]]:
    """Places along one side, and the weights there."""
    if length <= tile:
        return [(slice(0, length), np.ones(length, np.float32))]
    size = tile - (tile - length) % STRIDE
    step = (size - overlap) // STRIDE  # as far apart as two starts may be, in strides
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
    """By how much tiles may be smaller with no more of them: a multiple of STRIDE."""
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
