"""Random crops, flips, colour, noise, fewer frames, changed focus: pure functions of (stack, generator), on numpy.

All frames of a stack are cropped, flipped and coloured alike, as if the scene had been so, and with them its
all-in-focus picture, if there is one; only noise is drawn anew for every frame and pixel, and the picture has none.
A colour change is one curve a channel: integer frames just look it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from dff_jax.errors import ConfigError
from dff_jax.types import Batch, FocalStack

FRAME_CHOICES = 3  # different numbers of frames in one run: the network is compiled for each
CROP_TRIES = 4
ENOUGH_VALID = 0.5  # share of a crop that should have ground truth

# Standard normal noise in 256 equally likely steps: five times quicker to draw than exact numbers, and alike in 8 bits.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)
_NORMAL /= _NORMAL.std()


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
    """Frames [...,3] of uint8, uint16 or float in [0,1] to float32 in [0,1], through `colour` if given.

    float32 frames without `colour` come back as they are, not copied.
    """
    if not np.issubdtype(frames.dtype, np.integer):
        frames = frames.astype(np.float32, copy=False)
        return frames if colour is None else apply_colour(frames, colour.gain, colour).astype(np.float32)
    white = np.iinfo(frames.dtype).max
    levels = np.arange(white + 1) / white
    if colour is None:
        return np.take(levels.astype(np.float32), frames)
    found = np.empty(frames.shape, np.float32)
    for c, gain in enumerate(colour.gain):
        found[..., c] = np.take(apply_colour(levels, gain, colour).astype(np.float32), frames[..., c])
    return found


def draw_frame_count(frames: tuple[int, int] | None, rng: np.random.Generator) -> int | None:
    """One of at most FRAME_CHOICES numbers, evenly spread from the fewest to the most; None if `frames` is."""
    if frames is None:
        return None
    return int(rng.choice(np.unique(np.linspace(*frames, FRAME_CHOICES).round())))


def thin_frames(stack: FocalStack, count: int, rng: np.random.Generator) -> FocalStack:
    """The stack with `count` >= 2 of its frames: those at the ends of the focus range, and a random choice between.

    Raises:
      ConfigError: the stack has fewer.
    """
    found = len(stack.focus)
    if found < count:
        raise ConfigError(f"data.frames: {count} are asked for, but stack {stack.name!r} has {found}; ask for fewer")
    if found == count:
        return stack
    order = np.argsort(stack.focus, kind="stable")
    keep = np.sort(np.r_[order[0], rng.choice(order[1:-1], count - 2, replace=False), order[-1]])
    return stack._replace(frames=stack.frames[keep], focus=stack.focus[keep])


def draw_focus(count: int, rng: np.random.Generator, reverse: bool, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """One stack's `turn` [] bool and `shares` [Z = count] float32 for `refocus`."""
    turn = np.array(reverse and bool(rng.integers(2)))
    return turn, rng.uniform(-jitter, jitter, count).astype(np.float32) if jitter else np.zeros(count, np.float32)


def refocus(batch: Batch, turn: Any, shares: Any, xp: Any = np) -> Batch:
    """Stacks turned around (q -> q_min + q_max - q) where `turn` [B], their settings moved by `shares` [B,Z].

    A share is of the distance to the nearest other setting. Blur depends on |q - q_z| alone, so near and far can trade
    places. `xp` is numpy or jax.numpy, as the batch.
    """
    ends = batch.focus[:, :1] + batch.focus[:, -1:]
    focus = xp.where(turn[:, None], ends - batch.focus[:, ::-1], batch.focus)
    steps = xp.pad(xp.diff(focus), ((0, 0), (1, 1)), constant_values=xp.inf)
    focus = focus + shares * xp.minimum(steps[:, :-1], steps[:, 1:])
    frames = xp.where(turn[:, None, None, None, None], batch.frames[:, ::-1], batch.frames)
    depth = xp.where(turn[:, None, None] & batch.mask, ends[..., None] - batch.depth, batch.depth)
    return batch._replace(frames=frames, focus=focus, depth=depth)


class View(NamedTuple):
    """A window of an image, mirrored and transposed or not."""

    rows: slice
    columns: slice
    mirror_x: bool
    mirror_y: bool
    transpose: bool

    def take(self, image: np.ndarray, axis: int = 0, margin: int = 0) -> np.ndarray:
        """What the view shows of an image whose rows lie along `axis`, columns along the next.

        Args:
          margin: pixels more on each side, of an image with `axis` 0; its border repeats outside the image.
        """
        if margin:
            windows = zip((self.rows, self.columns), image.shape[:2], strict=True)
            image = image[np.ix_(*(np.arange(w.start - margin, w.stop + margin).clip(0, n - 1) for w, n in windows))]
        else:
            image = image[(slice(None),) * axis + (self.rows, self.columns)]
        image = np.flip(image, axis) if self.mirror_y else image
        image = np.flip(image, axis + 1) if self.mirror_x else image
        return np.swapaxes(image, axis, axis + 1) if self.transpose else image


def draw_view(
    image: np.ndarray,
    valid: np.ndarray | None,
    crop: tuple[int, int],
    flips: bool,
    rng: np.random.Generator,
    what: str,
) -> View:
    """A random window of `crop` pixels in `image` [H,W,...], by chance mirrored or transposed if `flips`.

    It prefers windows where `valid` [H,W] holds; see `crop_window`.

    Raises:
      ConfigError: the crop does not fit; the message calls the image `what`.
    """
    size = (image.shape[0], image.shape[1])
    check_crop(crop, size, what)
    mirror_x, mirror_y, transpose = rng.integers(2, size=3).astype(bool) & flips
    transpose = bool(transpose) and size[0] >= crop[1] and size[1] >= crop[0]
    window = crop_window(size, (crop[1], crop[0]) if transpose else crop, valid, rng)
    return View(*window, bool(mirror_x), bool(mirror_y), transpose)


def check_crop(crop: tuple[int, int], size: Sequence[int], what: str) -> None:
    """Raises ConfigError if a crop does not fit into `size` H, W."""
    if size[0] < crop[0] or size[1] < crop[1]:
        raise ConfigError(
            f"data.crop: {crop[0]} x {crop[1]} does not fit into {what} of {size[0]} x {size[1]} pixels; choose a "
            "smaller crop"
        )


def crop_window(
    size: tuple[int, int], crop: tuple[int, int], valid: np.ndarray | None, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random window of `crop` pixels in an image of `size`: of a few, the first with enough of `valid`."""
    best, best_share = (slice(0, crop[0]), slice(0, crop[1])), -1.0
    for _ in range(CROP_TRIES):
        top, left = (int(rng.integers(full - part + 1)) for full, part in zip(size, crop, strict=True))
        window = slice(top, top + crop[0]), slice(left, left + crop[1])
        share = 1.0 if valid is None else float(valid[window].mean())
        if share > best_share:
            best, best_share = window, share
        if share >= ENOUGH_VALID:
            break
    return best


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
    view = draw_view(stack.frames[0], stack.mask, crop, flips, rng, f"stack {stack.name!r}")
    stack = stack._replace(
        frames=view.take(stack.frames, 1),
        depth=None if stack.depth is None else view.take(stack.depth),
        mask=None if stack.mask is None else view.take(stack.mask),
        all_in_focus=None if stack.all_in_focus is None else view.take(stack.all_in_focus),
    )
    change = make_colour(rng.uniform(-1.0, 1.0, 6), colour) if colour else None
    frames = to_float(stack.frames, change)
    if stack.all_in_focus is not None:
        stack = stack._replace(all_in_focus=to_float(stack.all_in_focus, change))
    if noise:
        sigma = np.float32(rng.uniform(0.0, noise))
        frames = frames + np.take(sigma * _NORMAL, rng.integers(256, size=frames.shape, dtype=np.uint8))
        np.clip(frames, 0.0, 1.0, out=frames)
    return stack._replace(frames=frames)
