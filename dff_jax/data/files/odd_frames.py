"""Frames that do not belong to their stack by what they show: black or white, shaken, or a result among the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

GRID, THUMBNAIL = 16, 64
_PLAIN = 0.02  # of the range of values: a black or white frame stays within this of the end
_TEXTURED = 0.2  # of the sharpest tile's detail: below it a tile says nothing


class Look(NamedTuple):
    """A frame at a glance."""

    detail: np.ndarray  # [GRID,GRID] mean absolute second difference along the rows
    small: np.ndarray  # [THUMBNAIL,THUMBNAIL] means
    least: float
    most: float


def look(frame: np.ndarray) -> Look:
    """`frame` [H,W,3] uint8 or uint16, of which every fourth row is looked at."""
    grey = frame[::4, :, 1].astype(np.float32) / np.iinfo(frame.dtype).max
    second = np.abs(grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2])
    detail, small = (
        np.asarray(Image.fromarray(values).resize((count, count), Image.Resampling.BOX))
        for values, count in ((second, GRID), (grey, THUMBNAIL))
    )
    return Look(detail, small, float(grey.min()), float(grey.max()))


def plain_frames(looks: Sequence[Look]) -> dict[int, str]:
    """Frames that are black or white among others that are not: number -> what they are."""
    top = max(one.most for one in looks)  # a camera of 12 bits does not use 16
    plain = {z: "black" for z, one in enumerate(looks) if one.most <= _PLAIN * top}
    plain |= {z: "white" for z, one in enumerate(looks) if one.least >= (1 - _PLAIN) * top}
    others = [one for z, one in enumerate(looks) if z not in plain]
    enough = len(others) >= max(2, len(plain))
    return plain if enough and min(one.most - one.least for one in others) > 0.05 * top else {}


def remarks(looks: Sequence[Look], names: Sequence[str]) -> tuple[str, ...]:
    """Notes on shaken frames and on one that is sharp everywhere, of a stack sorted by focus."""
    detail = np.stack([one.detail.ravel() for one in looks])
    if len(looks) < 4 or detail.max() < 1e-3:
        return ()
    textured = detail.max(0) > _TEXTURED * detail.max()
    detail = detail[:, textured]
    found = []
    for z in range(1, len(looks) - 1):
        before, after = looks[z - 1].small, looks[z + 1].small
        # in focus, detail rises and falls once along the stack; motion blur makes a dent in it everywhere
        least = np.minimum(detail[z - 1], detail[z + 1])
        seen = least > 0.2 * detail.max(0)
        dent = seen.mean() > 0.1 and (detail[z] < 0.6 * least)[seen].mean() > 0.9
        moved = min(_shift(before, looks[z].small), _shift(looks[z].small, after)) - 2 * _shift(before, after)
        if dent or moved >= 2:
            what = "is blurred" if dent else "has moved"
            found.append(f"{names[z]} {what} against its neighbours: shaken? leave it out")
    for z in range(len(looks)):
        others = np.delete(detail, z, 0)
        best = np.bincount(others.argmax(0), minlength=len(others)) / textured.sum()
        spread = np.convolve(best, np.ones(3), "same").max() < 0.9  # a flat scene is sharp in one frame alone
        if spread and (detail[z] > 0.9 * others.max(0)).mean() > 0.9:
            found.append(f"{names[z]} is the sharpest frame everywhere: a result among the frames? leave it out if so")
    return tuple(found)


def _shift(a: np.ndarray, b: np.ndarray) -> int:
    """By how many pixels of the thumbnail b has moved against a (phase correlation)."""
    window = np.outer(np.hanning(THUMBNAIL), np.hanning(THUMBNAIL))
    spectrum = np.fft.rfft2((a - a.mean()) * window) * np.conj(np.fft.rfft2((b - b.mean()) * window))
    peak = np.fft.irfft2(spectrum / np.maximum(np.abs(spectrum), 1e-9), a.shape)
    place = np.unravel_index(peak.argmax(), peak.shape)
    return int(max(min(int(i), THUMBNAIL - int(i)) for i in place))
