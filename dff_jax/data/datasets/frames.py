"""Stacks of picture files: a quick look that finds what is missing or damaged, and the reader of one stack."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.datasets.records import Inventory, Item, record_bytes
from dff_jax.data.files.depth_maps import read_depth_map
from dff_jax.data.files.images import image_size, read_image
from dff_jax.errors import InputError
from dff_jax.focus_axis import sort_order
from dff_jax.pictures.panels import to_uint8
from dff_jax.types import FocalStack


class StackFiles(NamedTuple):
    """One stack as files."""

    name: str  # unique in its split
    frames: tuple[Path, ...]  # [Z]
    focus: tuple[float, ...]  # [Z], in `unit`
    truth: Path | None
    unit: str
    positive: bool = True  # whether truth holds only above 0; else wherever it is not 0


def inventory(splits: dict[str, list[StackFiles]], problems: Sequence[str], notes: Sequence[str] = ()) -> Inventory:
    """Probes every file and puts the frames of each stack into ascending q.

    Args:
      splits: stacks of each split; splits without any are left out.
      problems: what is known already.
    """
    problems = list(problems)
    items: dict[str, tuple[Item, ...]] = {}
    shapes: list[tuple[int, int, int]] = []
    for split, stacks in splits.items():
        made = []
        for stack in stacks:
            found, shape = _probe(stack)
            problems += found
            if shape is not None:
                shapes.append(shape)
                order = sort_order(stack.focus, stack.unit)
                ordered = stack._replace(
                    frames=tuple(stack.frames[i] for i in order), focus=tuple(float(stack.focus[i]) for i in order)
                )
                made.append(Item(stack.name, functools.partial(read_files, ordered)))
        if made:
            items[split] = tuple(made)
    return Inventory(items, tuple(problems), tuple(notes), sum(record_bytes(*shape) for shape in shapes))


def read_files(stack: StackFiles) -> FocalStack:
    """Reads one stack whose frames are in ascending q.

    Raises:
      InputError: a file that cannot be read, or frames and truth of several sizes.
    """
    frames = []
    for path in stack.frames:
        image = to_uint8(read_image(path))
        if frames and image.shape != frames[0].shape:
            raise InputError(_sizes(path, image.shape[:2], frames[0].shape[:2]))
        frames.append(image)
    depth = mask = None
    if stack.truth is not None:
        depth, mask = read_truth(stack.truth, frames[0].shape[:2], stack.positive)
    return FocalStack(np.stack(frames), np.array(stack.focus), stack.unit, depth, mask, stack.name)


def read_truth(path: Path, size: tuple[int, int], positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """A depth map as (depth [H,W] float32, 0 where the mask is False; mask [H,W] bool).

    Where it is not finite, as Middlebury marks what is unknown, there is no truth.

    Raises:
      InputError: unreadable, not of `size` (H, W), or nowhere finite.
    """
    values, finite = read_depth_map(path)
    if values.shape != size:
        raise InputError(_sizes(path, values.shape, size))
    if not finite.any():
        raise InputError(f"{path}: every value is NaN or infinite; write 0 where unknown")
    mask = finite & (values > 0 if positive else values != 0)
    return np.where(mask, values, 0).astype(np.float32), mask


def truth_size(path: Path) -> tuple[int, int] | None:
    """H, W of an EXR depth map from its header; None for another format, which only reading shows.

    Raises:
      InputError: missing, empty, or not an EXR file.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; copy it again")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; copy it again")
    if path.suffix.lower() != ".exr":
        return None
    import OpenEXR

    try:
        with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
            low, high = file.header()["dataWindow"]
            width, height = (int(high[i]) - int(low[i]) + 1 for i in (0, 1))
    except Exception:  # OpenEXR raises bare RuntimeErrors and others
        raise InputError(f"{path}: not a readable EXR file; copy it again") from None
    return height, width


def _probe(stack: StackFiles) -> tuple[list[str], tuple[int, int, int] | None]:
    """Problems of one stack; its Z, H, W if there are none."""
    problems: list[str] = []
    sizes: dict[Path, tuple[int, int]] = {}
    try:
        sort_order(stack.focus, stack.unit, [str(path) for path in stack.frames])
    except InputError as error:
        problems.append(str(error))
    for path in stack.frames:
        try:
            sizes[path] = image_size(path)
        except InputError as error:
            problems.append(str(error))
    common = Counter(sizes.values()).most_common(1)
    if stack.truth is not None:
        try:
            size = truth_size(stack.truth)
            if size is not None:
                sizes[stack.truth] = size
        except InputError as error:
            problems.append(str(error))
    problems += [_sizes(path, size, common[0][0]) for path, size in sizes.items() if common and size != common[0][0]]
    return problems, None if problems or not common else (len(stack.frames), *common[0][0])


def _sizes(path: Path, size: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"{path}: {size[1]} x {size[0]} where the frames are {expected[1]} x {expected[0]} (width x height); "
        "copy it again"
    )
