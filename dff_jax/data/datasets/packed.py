"""HDF5 files that hold whole splits: `stack_<part>` [N,Z,H,W,3] and `disp_<part>` [N,H,W], as HCI and DDFF-12 come."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dff_jax.data.datasets.records import Item
from dff_jax.data.files.hdf5 import need, open_h5, stored_array
from dff_jax.data.files.reading import MAX_PIXELS, collecting, reading
from dff_jax.errors import InputError
from dff_jax.types import FocalStack

if TYPE_CHECKING:
    import h5py

MAX_STACKS = 10**6
SUFFIXES = (".h5", ".h5py", ".hdf5")


class Layout(NamedTuple):
    """How the stacks of a file are to be read."""

    focus: tuple[float, ...]  # [Z] settings in the order of the file
    unit: str
    bgr: bool  # whether the file has blue first
    zero_is_none: bool  # whether truth holds only above 0; else wherever it is finite


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
    others = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES) if source.is_dir() else []
    if len(others) == 1:
        return others[0]
    advice = "give the file or its folder"
    if others:
        advice = f"there are {', '.join(path.name for path in others)}, so give one of them"
    raise InputError(f"{source}: not {what}; looked for {' or '.join(names)}; {advice}")


def part_shape(
    file: h5py.File, stack: str, truth: str | None, num_frames: int, problems: list[str]
) -> tuple[int, int, int, int] | None:
    """The shape (N, Z, H, W) of one part; None, and what is wrong added to `problems`, if its arrays do not fit."""
    before, n, z, h, w = len(problems), 0, 0, 0, 0
    with collecting(problems), reading(f"{file.filename}: {stack}"):
        n, z, h, w, _ = need(file, stack, (None, num_frames, None, None, 3), "uif").shape
        if min(n, h, w) == 0 or n > MAX_STACKS or h * w > MAX_PIXELS:
            what = "empty" if min(n, h, w) == 0 else "too large to be true"
            raise InputError(f"{what}, of shape {(n, z, h, w, 3)}; copy the file again")
    if truth is not None:
        with collecting(problems), reading(f"{file.filename}: {truth}"):
            other = need(file, truth, (None, None, None), "f").shape
            if n and other != (n, h, w):
                raise InputError(f"has shape {other} where {stack} has {(n, z, h, w, 3)}; copy the file again")
    return None if len(problems) > before else (n, z, h, w)


def part_items(path: Path, stack: str, truth: str | None, layout: Layout, names: Sequence[str]) -> tuple[Item, ...]:
    """An item for each stack of one part; `names` has one for each."""
    return tuple(
        Item(name, functools.partial(read_packed, path, stack, truth, index, layout, name))
        for index, name in enumerate(names)
    )


def read_packed(path: Path, stack: str, truth: str | None, index: int, layout: Layout, name: str) -> FocalStack:
    """Reads stack `index` of the arrays `stack` and `truth` of a file; frames are sorted so that q ascends.

    Raises:
      InputError: damaged, or frames that are not in 0..255.
    """
    with open_h5(path) as file:
        with reading(f"{path}: {stack}[{index}]", "array"):
            frames = to_bytes(np.asarray(stored_array(file, stack)[index]))
        depth = None
        if truth is not None:
            with reading(f"{path}: {truth}[{index}]", "array"):
                depth = np.asarray(stored_array(file, truth)[index]).astype(np.float32)
    order = np.argsort(layout.focus)
    frames = np.ascontiguousarray(frames[order][..., ::-1] if layout.bgr else frames[order])
    focus = np.asarray(layout.focus, np.float64)[order]
    if depth is None:
        return FocalStack(frames, focus, layout.unit, name=name)
    mask = np.isfinite(depth) & (depth > 0) if layout.zero_is_none else np.isfinite(depth)
    return FocalStack(frames, focus, layout.unit, np.where(mask, depth, np.float32(0)), mask, name)


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
