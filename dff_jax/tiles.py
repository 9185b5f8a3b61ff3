"""Cutting a large picture into overlapping tiles of one shape, and the weights that put it together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dff_jax.errors import InputError

WHOLE = 1.5  # a picture of up to (WHOLE * tile)^2 pixels is done in one piece
STRIDE = 32  # tiles are multiples of it where the picture allows: no padding inside a network


class Tile(NamedTuple):
    """A rectangle of the picture and its share of every pixel in it."""

    rows: slice
    columns: slice
    weight: np.ndarray  # [h,w] float32; at every pixel of the picture the tiles' weights sum to 1


def check_tiling(tile: int, overlap: int) -> None:
    """Raises InputError for sizes that cannot be cut."""
    if tile < 2 * STRIDE:
        raise InputError(f"tile: must be at least {2 * STRIDE} pixels, got {tile}")
    if not 0 < overlap <= tile // 2:
        raise InputError(f"overlap: must lie between 1 and half a tile ({tile // 2}), got {overlap}")


def split(height: int, width: int, tile: int, overlap: int) -> Iterator[Tile]:
    """Covers height x width pixels with tiles of one shape, `tile` a side at most, overlapping by `overlap`.

    From one tile to the next the weights pass linearly over the middle half of the overlap. Its outer
    quarters, where an estimator saw a border that is none, count nothing: what looks no farther than
    overlap/4 pixels gives the same with and without tiles.
    """
    whole = height * width <= (WHOLE * tile) ** 2
    down, across = (
        [(0, length, np.ones(length, np.float32))] if whole else _spans(length, tile, overlap)
        for length in (height, width)
    )
    for top, bottom, vertical in down:
        for left, right, horizontal in across:
            yield Tile(slice(top, bottom), slice(left, right), vertical[:, None] * horizontal[None, :])


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, np.ndarray]]:
    """(start, stop, weights [stop - start]) along one side."""
    if length <= tile:
        return [(0, length, np.ones(length, np.float32))]
    count = -(-(length - overlap) // (tile - overlap))
    size = -(-(length + (count - 1) * overlap) // count)  # as small as so many tiles allow
    size = min(-(-size // STRIDE) * STRIDE, length)
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    x = np.arange(length) + 0.5
    weights = np.zeros((count, length))
    for i, start in enumerate(starts):
        weights[i, start : start + size] = 1.0
        if i > 0:
            weights[i] *= _ramp(x, starts[i], starts[i - 1] + size)
        if i + 1 < count:
            weights[i] *= 1.0 - _ramp(x, starts[i + 1], start + size)
    weights /= weights.sum(0)  # more than two tiles may meet
    return [(a, a + size, w[a : a + size].astype(np.float32)) for a, w in zip(starts, weights, strict=True)]


def _ramp(x: np.ndarray, start: int, stop: int) -> np.ndarray:
    """0 to 1 over the middle half of [start, stop]."""
    return np.clip((x - (start + stop) / 2) / ((stop - start) / 2) + 0.5, 0.0, 1.0)
