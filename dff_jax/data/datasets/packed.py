"""HDF5 files that hold whole splits: `stack_<part>` [N,Z,H,W,3] and `disp_<part>` [N,H,W], as HCI and DDFF-12 come."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dff_jax.data.datasets.records import Item
from dff_jax.data.files.hdf5 import need, open_h5
from dff_jax.data.files.reading import MAX_PIXELS, reading
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


class PackedStack(NamedTuple):
    """One stack of a file. Picklable."""

    path: Path
    stack: str  # keys
    truth: str | None
    index: int
    layout: Layout
    name: str


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
    found = f"; there are {', '.join(path.name for path in others)}, so give one of them" if others else ""
    raise InputError(f"{source}: not {what}; looked for {' or '.join(names)}{found or '; give the file or its folder'}")


def part_shape(file: h5py.File, stack: str, truth: str | None, num_frames: int) -> tuple[tuple[int, ...], list[str]]:
    """The shape (N, Z, H, W) of one part, and what is wrong with its two arrays."""
    problems = []
    shape = None
    try:
        shape = need(file, stack, (None, num_frames, None, None, 3), "uif").shape[:4]
    except InputError as error:
        problems.append(str(error))
    if truth is not None:
        try:
            other = need(file, truth, (None, None, None), "f").shape
            if shape is not None and other != (shape[0], *shape[2:]):
                problems.append(
                    f"{file.filename}: {truth} has shape {other} where {stack} has {(*shape, 3)}; copy the file again"
                )
        except InputError as error:
            problems.append(str(error))
    if shape is not None and (min(shape) == 0 or shape[0] > MAX_STACKS or shape[2] * shape[3] > MAX_PIXELS):
        what = "is empty" if min(shape) == 0 else "is too large to be true"
        problems.append(f"{file.filename}: {stack} {what}, of shape {(*shape, 3)}; copy the file again")
    return shape or (0, 0, 0, 0), problems


def part_items(path: Path, stack: str, truth: str | None, layout: Layout, names: Sequence[str]) -> tuple[Item, ...]:
    """An item for each stack of one part; `names` has one for each."""
    return tuple(
        Item(name, functools.partial(read_packed, PackedStack(path, stack, truth, index, layout, name)))
        for index, name in enumerate(names)
    )


def read_packed(which: PackedStack) -> FocalStack:
    """Reads one stack; frames are sorted so that q ascends.

    Raises:
      InputError: damaged, frames that are not in 0..255, or infinite everywhere.
    """
    layout, where = which.layout, f"{which.path}: {which.stack}[{which.index}]"
    with open_h5(which.path) as file:
        frames = _part(file, which.stack, which.index)
        truth = None if which.truth is None else _part(file, which.truth, which.index)
    frames = to_bytes(frames, where)
    order = np.argsort(layout.focus)
    frames = np.ascontiguousarray(frames[order][..., ::-1] if layout.bgr else frames[order])
    focus = np.asarray(layout.focus, np.float64)[order]
    if truth is None:
        return FocalStack(frames, focus, layout.unit, name=which.name)
    depth = truth.astype(np.float32)
    mask = np.isfinite(depth) & (depth > 0) if layout.zero_is_none else np.isfinite(depth)
    return FocalStack(frames, focus, layout.unit, np.where(mask, depth, np.float32(0)), mask, which.name)


def to_bytes(frames: np.ndarray, where: str) -> np.ndarray:
    """Frames of any real type that hold 0..255, rounded to uint8.

    Raises:
      InputError: values outside, or floats in [0, 1], which means another scale.
    """
    if frames.dtype == np.uint8:
        return frames
    low, high = frames.min(), frames.max()
    if not (low >= -0.5 and high < 255.5):  # False for NaN too
        raise InputError(f"{where} holds {low:g} to {high:g}, where pixels are 0 to 255; copy the file again")
    if frames.dtype.kind == "f" and 0 < high <= 1:
        raise InputError(f"{where} holds {low:g} to {high:g}; pixels in [0, 1] must be multiplied by 255 first")
    return np.rint(frames).clip(0, 255).astype(np.uint8)


def _part(file: h5py.File, key: str, index: int) -> np.ndarray:
    with reading(f"{file.filename}: {key}[{index}]", "array"):
        return np.asarray(file[key][index])
