"""Rows of pixels, read a band at a time, to one upright array, scaled down on the way where that is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_BAND = 2**22  # pixels that are worked on together
_REACH = 3  # of Lanczos' filter, in pixels of the result


class Rows(NamedTuple):
    """A picture that is read a band of rows at a time, as it is stored."""

    size: tuple[int, int]  # H, W
    kind: Any  # np.uint8 or np.uint16
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]
    """(top, bottom) -> [bottom - top,W,3], and [bottom - top,W] bool, False where alpha is 0, or None."""
    reduced: int = 1  # the photograph is this many times as large, rounded up
    full: tuple[int, int] | None = None  # H, W of the photograph if reduced


def fitting(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """H, W brought down until the longer one is `max_size`."""
    scale = 1.0 if max_size is None else min(1.0, max_size / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def assemble(rows: Rows, orientation: int = 1, max_size: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture [H,W,3], upright and no larger than `max_size` (antialiased, Lanczos), and where it is opaque.

    Transparent pixels have no share in the colours of the others.
    """
    full = rows.full or rows.size
    height, width = fitting(full, max_size)
    down, right = full[0] / rows.reduced / height, full[1] / rows.reduced  # rows a row of the result; columns in all
    shape = (width, height) if orientation > 4 else (height, width)
    pixels, opaque = np.empty((*shape, 3), rows.kind), None
    step = max(1, int(_BAND / rows.size[1] / down)) if (height, width) == rows.size else 8 + int(_BAND / right / down)
    for start in range(0, height, step):
        stop = min(start + step, height)
        if (height, width) == rows.size:
            part, seen = rows.read(start, stop)
        else:
            top = max(0, math.floor((start - _REACH) * down) - 1)
            bottom = min(rows.size[0], math.ceil((stop + _REACH) * down) + 1)
            box = (0, start * down - top, right, min(stop * down, rows.size[0]) - top)
            part, seen = _resized(*rows.read(top, bottom), (width, stop - start), box)
        as_stored(pixels, orientation)[start:stop] = part
        if seen is not None and not seen.all():
            opaque = np.ones(shape, bool) if opaque is None else opaque
            as_stored(opaque, orientation)[start:stop] = seen
    return pixels, opaque


def downscale(image: np.ndarray, max_size: int | None) -> np.ndarray:
    """Brings the longer side of [H,W,3] uint8 or uint16 down to `max_size` (antialiased, Lanczos)."""
    if max_size is None or max(image.shape[:2]) <= max_size:
        return image
    rows = Rows((image.shape[0], image.shape[1]), image.dtype, lambda top, bottom: (image[top:bottom], None))
    return assemble(rows, max_size=max_size)[0]


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright picture with the rows and columns of a file of this EXIF orientation, 1 to 8."""
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    return upright.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else upright


def _resized(
    part: np.ndarray, opaque: np.ndarray | None, size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels in `box` (left, top, right, bottom) brought to `size` (width, height)."""

    def plane(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.float32))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box))

    if opaque is None or opaque.all():
        if part.dtype == np.uint8:
            return plane(part), None
        small, seen = np.stack([plane(part[..., c]) for c in range(3)], axis=-1), None
    else:
        share = plane(opaque)
        seen = share > 0.5
        weight = np.where(seen, 1 / np.maximum(share, 0.5), 0)
        small = np.stack([plane(part[..., c] * opaque) * weight for c in range(3)], axis=-1)
    return np.clip(np.rint(small), 0, np.iinfo(part.dtype).max).astype(part.dtype), seen
