"""Stacks of image files: a quick probe that finds what is missing or damaged, and the reader of one stack."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.datasets.base import Inventory
from dff_jax.data.files.depth_maps import LOOKED_AT, map_size, outside_note, read_truth
from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.folder import labelled_files, picture_file, read_sharp
from dff_jax.data.files.frames import read_frames
from dff_jax.data.files.images import image_size
from dff_jax.data.files.reading import collecting, other_size
from dff_jax.errors import SourceError
from dff_jax.focus_axis import sort_order
from dff_jax.pictures.panels import to_uint8
from dff_jax.runtime.progress import say, track
from dff_jax.types import FocalStack


class StackFiles(NamedTuple):
    """One stack as files."""

    name: str  # begins with the split, see `base.Item`
    frames: tuple[Path, ...]  # [Z]
    focus: tuple[float, ...]  # [Z], in `unit`
    truth: Path | None
    unit: str
    positive: bool = True  # whether truth holds only above 0; else wherever it is not 0
    sharp: Path | None = None  # the all-in-focus picture


def add_stack(
    found: Inventory, stack: StackFiles, read: Callable[[StackFiles], FocalStack] | None = None
) -> tuple[int, int, int]:
    """Probes every file of a stack by its header; adds the stack to `found`, or its problems.

    Args:
      read: reads the stack once its frames are sorted so that q ascends; by default `read_files`.

    Returns:
      Z, H, W.
    """
    before = len(found.problems)
    sizes: dict[Path, tuple[int, int]] = {}
    order = np.arange(0)
    with collecting(found.problems):
        order = sort_order(stack.focus, stack.unit, [str(path) for path in stack.frames])
    for path in (*stack.frames, *filter(None, [stack.sharp])):
        with collecting(found.problems):
            sizes[path] = image_size(path)
    if stack.truth is not None:
        with collecting(found.problems):
            sizes[stack.truth] = map_size(stack.truth)
    common = height, width = Counter(sizes.values()).most_common(1)[0][0] if sizes else (0, 0)
    others = {path: size for path, size in sizes.items() if size != common}
    found.problems += [str(other_size(path, size, common, "the frames are")) for path, size in others.items()]
    if len(found.problems) == before:
        frames, focus = tuple(stack.frames[i] for i in order), tuple(float(stack.focus[i]) for i in order)
        ordered = stack._replace(frames=frames, focus=focus)
        shape, reader = (len(frames), height, width), functools.partial(read or read_files, ordered)
        found.add(stack.name, shape, reader, stack.sharp is not None)
    return len(stack.frames), height, width


def check_labelled(name: str, place: Path, folders: list[Path], unit: str) -> tuple[tuple[int, int, int], ...]:
    """The Z, H, W of stack folders with ground truth, whose names and headers are checked before any is read.

    A note says if truth of some of them lies outside the focus settings.

    Raises:
      SourceError: everything that is missing or damaged.
    """
    found, shapes, notes = Inventory(), [], []
    looked_at = {*np.linspace(0, len(folders) - 1, min(len(folders), LOOKED_AT)).astype(int).tolist()}
    for i, folder in enumerate(track(folders, f"{name}: checking", len(folders), shown=len(folders) > LOOKED_AT)):
        with collecting(found.problems):
            files, truth = labelled_files(folder)
            focus, before = tuple(labelled_settings(files, unit)), len(found.problems)
            stack = StackFiles(folder.name, tuple(files), focus, truth, unit, sharp=picture_file(folder))
            z, height, width = add_stack(found, stack)
            shapes.append((z, height, width))
            if i in looked_at and len(found.problems) == before:
                depth, mask = read_truth(truth, (height, width))
                notes.append(outside_note(str(truth), depth[mask], focus, unit) if mask.any() else "")
    if found.problems:
        raise SourceError(name, place, tuple(found.problems))
    if said := list(filter(None, notes)):
        say(f"note: {said[0]}" + (f" (so do {len(said) - 1} more of {len(notes)} stacks)" if len(said) > 1 else ""))
    return tuple(shapes)


def read_files(stack: StackFiles) -> FocalStack:
    """Reads one stack whose frames are in ascending q. There is no truth where it is not finite, as in Middlebury's.

    Raises:
      InputError: a file that cannot be read, frames and truth of several sizes, or truth that is nowhere finite.
    """
    frames, size = read_frames(stack.frames)
    depth = mask = None
    if stack.truth is not None:
        depth, mask = read_truth(stack.truth, size, positive=stack.positive)
    sharp = None if stack.sharp is None else to_uint8(read_sharp(stack.sharp, size))
    return FocalStack(to_uint8(frames), np.array(stack.focus), stack.unit, depth, mask, stack.name, sharp)
