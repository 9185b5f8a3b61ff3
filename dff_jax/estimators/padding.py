"""Images of any size for networks that halve them five times."""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.types import Array

MULTIPLE = 32  # as encoders halve an image five times


def pad_to_multiple(frames: Array, multiple: int = MULTIPLE, least: int = 64, mode: str = "edge") -> Array:
    """Frames [B,Z,H,W,3] padded at the bottom and right to multiples of `multiple`, at least `least`.

    Args:
      mode: "edge", "black", or "reflect" (by the edge where an image is too small to be reflected).
    """
    pads = [max(least, -(-size // multiple) * multiple) - size for size in frames.shape[2:4]]
    if not any(pads):
        return frames
    if mode == "reflect" and any(pad >= size for pad, size in zip(pads, frames.shape[2:4], strict=True)):
        mode = "edge"
    widths = ((0, 0), (0, 0), (0, pads[0]), (0, pads[1]), (0, 0))
    return jnp.pad(frames, widths, mode="constant" if mode == "black" else mode)
