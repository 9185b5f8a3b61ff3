"""Stacks resized for an evaluation, as other code does it."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from dff_jax.data.parts import StackSource
from dff_jax.errors import InputError
from dff_jax.types import FocalStack

SMALLEST, LARGEST = 16, 16384  # pixels


def resized(source: StackSource, size: tuple[int, int]) -> StackSource:
    """Frames and picture scaled to [H,W] (bilinear, antialiased), truth by the nearest pixel, its values unchanged, as
    is the focus.

    The values stay because these stacks were rendered in the stated units: truth is what the frames' blur says, and
    that does not change when the image is made narrower.

    Raises:
      InputError: a side that is too small or too large.
    """
    if not all(SMALLEST <= side <= LARGEST for side in size):
        raise InputError(f"--resize: each side from {SMALLEST} to {LARGEST} pixels, got {size[0]} {size[1]}")
    return dataclasses.replace(source, read=lambda index: resize_stack(source.read(index), size))


def resize_stack(stack: FocalStack, size: tuple[int, int]) -> FocalStack:
    """One stack at `size` (H, W); see `resized`."""
    if stack.frames.shape[1:3] == tuple(size):
        return stack
    frames = np.stack([_resize_frame(frame, size) for frame in stack.frames])
    if stack.all_in_focus is not None:
        stack = stack._replace(all_in_focus=_resize_frame(stack.all_in_focus, size))
    if stack.depth is None:
        return stack._replace(frames=frames)
    rows, columns = (_nearest(old, new) for old, new in zip(stack.depth.shape, size, strict=True))
    mask = None if stack.mask is None else stack.mask[rows][:, columns]
    return stack._replace(frames=frames, depth=stack.depth[rows][:, columns], mask=mask)


def _nearest(old: int, new: int) -> np.ndarray:
    """Indices [new] of the pixels of `old` whose centres are nearest, with half-pixel centres."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)


def _resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W,3] uint8, uint16 or float32 to `size`, in its own type."""
    to = (size[1], size[0])
    if frame.dtype == np.uint8:
        return np.asarray(Image.fromarray(frame).resize(to, Image.Resampling.BILINEAR))
    planes = (Image.fromarray(np.ascontiguousarray(frame[..., c], np.float32)) for c in range(3))
    scaled = np.stack([np.asarray(plane.resize(to, Image.Resampling.BILINEAR)) for plane in planes], axis=-1)
    return np.rint(scaled).astype(frame.dtype) if frame.dtype.kind == "u" else scaled.astype(frame.dtype)
