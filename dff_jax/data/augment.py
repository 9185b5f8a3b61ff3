"""Random crops, flips, colour and sensor noise: pure functions of (stack, generator), on numpy.

All frames of a stack are cropped, flipped and coloured alike, as if the scene had been so; only noise is
drawn anew for every frame and pixel. A colour change is one curve a channel: integer frames just look it up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dff_jax.errors import ConfigError
from dff_jax.types import FocalStack

CROP_TRIES = 4
ENOUGH_VALID = 0.5  # share of a crop that should have ground truth


class Colour(NamedTuple):
    """One colour change: x -> clip((gain_c x^gamma - 1/2) contrast + 1/2, 0, 1) for each channel c."""

    gamma: Any  # []
    gain: Any  # [3] brightness times tint
    contrast: Any  # []


def make_colour(draws: Any, strength: float, xp: Any = np) -> Colour:
    """The colour change of `draws` [6], uniform in [-1,1]; strength 0 is the identity.

    Brightness, contrast and gamma lie within e^±strength, the tint of a channel within e^±(strength/2).
    `xp` is numpy or jax.numpy.
    """
    factor = xp.exp(strength * draws)
    return Colour(gamma=factor[0], gain=factor[1] * factor[3:] ** 0.5, contrast=factor[2])


def apply_colour(values: Any, gain: Any, colour: Colour) -> Any:
    """The curve of `Colour` with this `gain` (broadcastable to `values`, float in [0,1], numpy or jax)."""
    return ((gain * values**colour.gamma - 0.5) * colour.contrast + 0.5).clip(0.0, 1.0)


def to_float(frames: np.ndarray, colour: Colour | None = None) -> np.ndarray:
    """Frames [...,3] of uint8, uint16 or float in [0,1] to float32 in [0,1], through `colour` if given."""
    if not np.issubdtype(frames.dtype, np.integer):
        frames = frames.astype(np.float32)
        return frames if colour is None else apply_colour(frames, colour.gain, colour).astype(np.float32)
    white = np.iinfo(frames.dtype).max
    levels = np.arange(white + 1) / white
    if colour is None:
        return levels.astype(np.float32)[frames]
    curves = [apply_colour(levels, gain, colour).astype(np.float32) for gain in colour.gain]
    return np.stack([curve[frames[..., c]] for c, curve in enumerate(curves)], axis=-1)


def crop_window(
    size: tuple[int, int], crop: tuple[int, int], valid: np.ndarray | None, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random window of `crop` pixels in an image of `size`: of a few, the first with enough of `valid`."""
    best, best_share = None, -1.0
    for _ in range(CROP_TRIES):
        top, left = (int(rng.integers(full - part + 1)) for full, part in zip(size, crop, strict=True))
        window = slice(top, top + crop[0]), slice(left, left + crop[1])
        share = 1.0 if valid is None else float(valid[window].mean())
        if share > best_share:
            best, best_share = window, share
        if share >= ENOUGH_VALID:
            break
    return best


def _crop_and_turn(
    stack: FocalStack, crop: tuple[int, int], flips: bool, rng: np.random.Generator
) -> FocalStack:
    size = stack.frames.shape[1:3]
    if size[0] < crop[0] or size[1] < crop[1]:
        raise ConfigError(
            f"data.crop: {crop[0]} x {crop[1]} does not fit into stack {stack.name!r} "
            f"of {size[0]} x {size[1]} pixels; choose a smaller crop"
        )
    mirror_x, mirror_y, transpose = rng.integers(2, size=3).astype(bool) & flips
    transpose = transpose and size[0] >= crop[1] and size[1] >= crop[0]
    window = crop_window(size, crop[::-1] if transpose else crop, stack.mask, rng)

    def turn(image: np.ndarray | None, axis: int) -> np.ndarray | None:
        if image is None:
            return None
        image = image[(slice(None),) * axis + window]
        if mirror_y:
            image = np.flip(image, axis)
        if mirror_x:
            image = np.flip(image, axis + 1)
        return np.swapaxes(image, axis, axis + 1) if transpose else image

    return stack._replace(frames=turn(stack.frames, 1), depth=turn(stack.depth, 0), mask=turn(stack.mask, 0))


def augment(
    stack: FocalStack,
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    flips: bool = True,
    colour: float = 0.0,
    noise: float = 0.0,
) -> FocalStack:
    """A random crop of `stack`, perhaps turned, recoloured and noisier: frames float32 in [0,1].

    Args:
      crop: (height, width) of the result.
      flips: allows mirroring in x and y and transposition, each with probability 1/2.
      colour: strength, see `make_colour`.
      noise: largest standard deviation of the sensor noise, of full scale; drawn once for the stack.

    Raises:
      ConfigError: the stack is smaller than `crop`.
    """
    stack = _crop_and_turn(stack, crop, flips, rng)
    change = make_colour(rng.uniform(-1.0, 1.0, 6), colour) if colour else None
    frames = to_float(np.ascontiguousarray(stack.frames), change)
    if noise:
        sigma = np.float32(rng.uniform(0.0, noise))
        frames = (frames + sigma * rng.standard_normal(frames.shape, np.float32)).clip(0.0, 1.0)
    return stack._replace(frames=frames)
