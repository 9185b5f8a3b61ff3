"""Pictures of any size for networks that halve theirs five times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp

from dff_jax import extent
from dff_jax.types import Array

MULTIPLE = 32  # as encoders halve a picture five times


def pad_to_multiple(frames: Array, multiple: int = MULTIPLE, least: int = 64, mode: str = "edge") -> Array:
    """Frames [B,Z,H,W,3] padded at the bottom and right to multiples of `multiple`, at least `least`.

    Args:
      mode: "edge", "black", or "reflect" (by the edge where a picture is too small to be reflected).
    """
    pads = [max(least, -(-size // multiple) * multiple) - size for size in frames.shape[2:4]]
    if not any(pads):
        return frames
    if mode == "reflect" and any(pad >= size for pad, size in zip(pads, frames.shape[2:4], strict=True)):
        mode = "edge"
    widths = ((0, 0), (0, 0), (0, pads[0]), (0, pads[1]), (0, 0))
    return jnp.pad(frames, widths, mode="constant" if mode == "black" else mode)


@contextmanager
def padded(frames: Array, multiple: int = MULTIPLE, least: int = 64, mode: str = "edge") -> Iterator[Array]:
    """`pad_to_multiple`, for the length of a `with` block: there an extent in force is that of the padded picture.

    Where one is in force, `frames` may themselves be padded: the picture inside is padded as it would be alone.
    """
    now = extent.current()
    if now is None:
        yield pad_to_multiple(frames, multiple, least, mode)
        return
    need = tuple(jnp.maximum(least, -(-size // multiple) * multiple) for size in now.size)
    frames = pad_to_multiple(extent.fill(frames, first=2), multiple, least, "black")
    if mode != "black":
        frames = _continued(frames, now.size, need, mode)
    with extent.within(need, full=frames.shape[2:4]):
        yield frames


def _continued(frames: Array, size: tuple[Array, Array], need: tuple[Array, Array], mode: str) -> Array:
    """Frames [B,Z,H,W,3] whose first rows and columns, `size` of them, are continued up to `need` at least."""
    may_reflect = (need[0] < 2 * size[0]) & (need[1] < 2 * size[1])
    for axis, number in zip((2, 3), size, strict=True):
        place = jnp.arange(frames.shape[axis])
        source = jnp.minimum(place, number - 1)
        if mode == "reflect":
            mirrored = jnp.where(place < number, place, jnp.maximum(2 * (number - 1) - place, 0))
            source = jnp.where(may_reflect, mirrored, source)
        frames = jnp.take(frames, source, axis)
    return frames
