"""Focal stacks that are arrays already: checked, and brought to the form that folders are read into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.files.focus_settings import parse_focus
from dff_jax.data.files.frames import MIN_SIDE
from dff_jax.errors import InputError
from dff_jax.types import FocalStack


def stack_from_arrays(
    frames: np.ndarray | Sequence[np.ndarray], focus: Sequence[float] | None = None, unit: str | None = None
) -> tuple[FocalStack, tuple[str, ...]]:
    """A focal stack from frames in memory, in the order given.

    Args:
      frames: [Z,H,W,3], [Z,H,W,4] (alpha is dropped), grey [Z,H,W] or [Z,H,W,1], or a list of such frames;
        uint8, uint16, or float in [0,1].
      focus: [Z] focus settings; None: the frame index.
      unit: None: disparity if `focus` is given, else index.

    Returns:
      The stack, frames [Z,H,W,3] uint8, uint16 or float32; and notes on what was assumed.

    Raises:
      InputError: another shape or type, frames of several sizes, floats outside [0,1] or NaN, focus settings
        of another count, a unit without focus settings.
    """
    if unit is not None:
        focus_axis.check_unit(unit)
    array = _array(frames)
    count = len(array)
    if focus is not None:
        values = parse_focus(focus, count)
        notes = () if unit else ("focus settings taken as disparity; unit= says otherwise",)
        return FocalStack(array, values, unit or "disparity"), notes
    if unit not in (None, "index"):
        raise InputError(f"focus: none given in {unit}; give one setting a frame")
    note = "no focus settings given: depth is the frame index, in equal steps; which end is near is not known"
    return FocalStack(array, np.arange(count, dtype=np.float64), "index"), (note,)


def _array(frames: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    if isinstance(frames, list | tuple):
        frames = [np.asarray(frame) for frame in frames]
        odd = next((i for i, frame in enumerate(frames) if frame.shape != frames[0].shape), None)
        if odd is not None:
            raise InputError(
                f"frames: frame {odd} has shape {frames[odd].shape} where frame 0 has {frames[0].shape}; all "
                "frames of a stack must have one size"
            )
        if len({frame.dtype for frame in frames}) > 1:
            raise InputError("frames: of several types; give all as uint8, uint16 or float32")
    array = np.asarray(frames)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise InputError(f"frames: shape {np.shape(frames)} is neither [Z,H,W,3] nor grey [Z,H,W]")
    if min(array.shape[1:3]) < MIN_SIDE:
        raise InputError(f"frames: shape {np.shape(frames)}; each side needs at least {MIN_SIDE} pixels")
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(f"frames: of type {array.dtype}; give uint8, uint16, or float in [0, 1]")
    array = array.astype(np.float32)
    if not np.all((array >= 0) & (array <= 1)):  # False for NaN as well
        raise InputError("frames: floats must lie in [0, 1] with no NaN; divide by the largest value")
    return array
