"""HDF5 files that hold whole splits: `stack_<part>` [N,Z,H,W,3] and `disp_<part>` [N,H,W], as HCI and DDFF-12 come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dff_jax.data.datasets.base import Inventory
from dff_jax.data.files.hdf5 import need, open_h5, stored_array
from dff_jax.data.files.reading import MAX_PIXELS, collecting, reading
from dff_jax.errors import InputError
from dff_jax.types import FocalStack

if TYPE_CHECKING:
    import h5py

MAX_STACKS = 10**6
SUFFIXES = (".h5", ".h5py", ".hdf5")


class Part(NamedTuple):
    """The arrays of one split in a file, and how they are to be read."""

    split: str
    stack: str  # the key
    truth: str | None
    focus: tuple[float, ...]  # [Z] disparities in the order of the file
    bgr: bool = False  # whether the file has blue first
    zero_is_none: bool = False  # whether truth holds only above 0; else wherever it is finite
    sharp: str | None = None  # the key of the all-in-focus pictures


def find_h5(source: Path, names: Sequence[str], what: str) -> Path:
    """`source` if it is a file, else the file in it that has one of the names, else its only HDF5 file.

    Raises:
      InputError: there is none, or several.
    """
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    others = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(others) == 1:
        return others[0]
    advice = "give the file or its folder"
    if others:
        advice = f"there are {', '.join(path.name for path in others)}, so give one of them"
    raise InputError(f"{source}: not {what}; looked for {' or '.join(names)}; {advice}")


def add_part(
    found: Inventory, file: h5py.File, part: Part, names: Callable[[int], Sequence[str]] | None = None
) -> tuple[int, int] | None:
    """Adds the stacks of one part to `found`, or what is wrong with its arrays.

    Args:
      names: the names of so many stacks within their split, by default numbers; may raise InputError.

    Returns:
      H, W of the frames; None if something is wrong.
    """
    before, n, z, h, w = len(found.problems), 0, len(part.focus), 0, 0
    with collecting(found.problems), reading(f"{file.filename}: {part.stack}"):
        n, z, h, w, _ = need(file, part.stack, (None, z, None, None, 3), "uif").shape
        if min(n, h, w) == 0 or n > MAX_STACKS or h * w > MAX_PIXELS:
            what = "empty" if min(n, h, w) == 0 else "too large to be true"
            raise InputError(f"{what}, of shape {(n, z, h, w, 3)}; copy the file again")
    if part.truth is not None:
        with collecting(found.problems), reading(f"{file.filename}: {part.truth}"):
            other = need(file, part.truth, (None, None, None), "f").shape
            if n and other != (n, h, w):
                raise InputError(f"has shape {other} where {part.stack} has {(n, z, h, w, 3)}; copy the file again")
    if part.sharp is not None:
        with collecting(found.problems), reading(f"{file.filename}: {part.sharp}"):
            other = need(file, part.sharp, (None, None, None, 3), "uif").shape
            if n and other != (n, h, w, 3):
                raise InputError(f"has shape {other} where {part.stack} has {(n, z, h, w, 3)}; copy the file again")
    if len(found.problems) > before:
        return None
    with collecting(found.problems):
        for index, name in enumerate(names(n) if names else [f"{index:04d}" for index in range(n)]):
            name = f"{part.split}/{name}"
            read = functools.partial(read_packed, Path(file.filename), part, index, name)
            found.add(name, (z, h, w), read, part.sharp is not None)
    return h, w


def read_packed(path: Path, part: Part, index: int, name: str) -> FocalStack:
    """Reads stack `index` of one part of a file; frames are sorted so that q ascends.

    Raises:
      InputError: damaged, or frames that are not in 0..255.
    """
    depth = mask = sharp = None
    with open_h5(path) as file:
        with reading(f"{path}: {part.stack}[{index}]", "array"):
            frames = to_bytes(np.asarray(stored_array(file, part.stack)[index]))
        if part.truth is not None:
            with reading(f"{path}: {part.truth}[{index}]", "array"):
                depth = np.asarray(stored_array(file, part.truth)[index]).astype(np.float32)
                mask = np.isfinite(depth) & (depth > 0) if part.zero_is_none else np.isfinite(depth)
                depth = np.where(mask, depth, np.float32(0))
        if part.sharp is not None:
            with reading(f"{path}: {part.sharp}[{index}]", "array"):
                sharp = to_bytes(np.asarray(stored_array(file, part.sharp)[index]))
                sharp = np.ascontiguousarray(sharp[..., ::-1] if part.bgr else sharp)
    order = np.argsort(part.focus)
    frames = np.ascontiguousarray(frames[order][..., ::-1] if part.bgr else frames[order])
    return FocalStack(frames, np.array(part.focus)[order], "disparity", depth, mask, name, sharp)


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Frames of any real type that hold 0..255, rounded to uint8.

    Raises:
      InputError: values outside, or floats in [0, 1], which means another scale.
    """
    if frames.dtype == np.uint8:
        return frames
    low, high = frames.min(), frames.max()
    if not (low >= -0.5 and high < 255.5):  # False for NaN too
        raise InputError(f"holds {low:g} to {high:g}, where pixels are 0 to 255; copy the file again")
    if frames.dtype.kind == "f" and 0 < high <= 1:
        raise InputError(f"holds {low:g} to {high:g}; pixels in [0, 1] must be multiplied by 255 first")
    return np.rint(frames).clip(0, 255).astype(np.uint8)
