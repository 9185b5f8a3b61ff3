"""Stacks of image files: a quick probe that finds what is missing or damaged, and the reader of one stack."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.datasets.records import Inventory, Item, record_bytes
from dff_jax.data.files.depth_maps import exr_size, read_depth_map
from dff_jax.data.files.folder import read_frames
from dff_jax.data.files.images import image_size
from dff_jax.data.files.reading import collecting, other_size, read_bytes
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
    items: dict[str, list[Item]] = {}
    needed = 0
    for split, stacks in splits.items():
        for stack in stacks:
            found = len(problems)
            size = _probe(stack, problems)
            if size is None or len(problems) > found:
                continue
            needed += record_bytes(len(stack.frames), *size)
            order = sort_order(stack.focus, stack.unit)
            ordered = stack._replace(
                frames=tuple(stack.frames[i] for i in order), focus=tuple(float(stack.focus[i]) for i in order)
            )
            items.setdefault(split, []).append(Item(stack.name, functools.partial(read_files, ordered)))
    return Inventory({split: tuple(found) for split, found in items.items()}, tuple(problems), tuple(notes), needed)


def _probe(stack: StackFiles, problems: list[str]) -> tuple[int, int] | None:
    """H, W of one stack by the headers of its files; adds what is wrong to `problems`."""
    sizes: dict[Path, tuple[int, int]] = {}
    with collecting(problems):
        sort_order(stack.focus, stack.unit, [str(path) for path in stack.frames])
    for path in stack.frames:
        with collecting(problems):
            sizes[path] = image_size(path)
    if stack.truth is not None:
        with collecting(problems):
            if stack.truth.suffix.lower() == ".exr":
                sizes[stack.truth] = exr_size(stack.truth)
            else:
                read_bytes(stack.truth, 1)  # its size is not known before it is read
    if not sizes:
        return None
    common = Counter(sizes.values()).most_common(1)[0][0]
    others = {path: size for path, size in sizes.items() if size != common}
    problems += [str(other_size(path, size, common, "the frames are")) for path, size in others.items()]
    return common


def read_files(stack: StackFiles) -> FocalStack:
    """Reads one stack whose frames are in ascending q.

    Raises:
      InputError: a file that cannot be read, or frames and truth of several sizes.
    """
    frames, size = read_frames(stack.frames)
    depth = mask = None
    if stack.truth is not None:
        depth, mask = read_truth(stack.truth, size, stack.positive)
    return FocalStack(to_uint8(frames), np.array(stack.focus), stack.unit, depth, mask, stack.name)


def read_truth(path: Path, size: tuple[int, int], positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """A depth map as (depth [H,W] float32, 0 where the mask is False; mask [H,W] bool).

    Where it is not finite, as Middlebury marks what is unknown, there is no truth.

    Raises:
      InputError: unreadable, not of `size` (H, W), or nowhere finite.
    """
    values, finite = read_depth_map(path)
    if values.shape != size:
        raise other_size(path, values.shape, size, "the frames are")
    if not finite.any():
        raise InputError(f"{path}: every value is NaN or infinite; write 0 where unknown")
    mask = finite & (values > 0 if positive else values != 0)
    return np.where(mask, values, 0).astype(np.float32), mask
