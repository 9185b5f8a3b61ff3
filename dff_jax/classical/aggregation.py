"""Averages of focus measures over neighbourhoods that do not cross the edges of a guide image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from dff_jax.ops.resize import enlarge_axis
from dff_jax.ops.windows import box_mean
from dff_jax.types import Array

_AT_ONCE = 2**16  # pixels


def guided_mean(volume: Array, guide: Array, radius: int, epsilon: float) -> Array:
    """Mean of each frame of `volume` around each pixel, along the edges of the guide and not across them.

    In every window an affine function of the guide is fitted to the frame, a I + b with a = cov(I, m) / (var(I) +
    epsilon), and each pixel gets the mean over the fits of its windows (He, Sun and Tang, Guided image filtering, PAMI
    35, 2013). A box would smear the sharpness of a textured surface over its neighbour's border.

    Args:
      volume: [B,Z,H,W] focus measure, non-negative; so is the result.
      guide: [B,H,W] image of the scene, in [0,1].
      radius: of the windows, pixels; a mean depends on pixels up to twice as far away.
      epsilon: variance of the guide below which a window counts as one surface.
    """

    size = 2 * radius + 1
    guide = (guide - guide.mean((-2, -1), keepdims=True))[None]  # centred: no cancellation in float32

    def means(*maps: Array) -> Array:  # together, which compiles sooner
        return box_mean(jnp.stack(maps), size)

    mean_guide, mean_square = means(guide, guide * guide)
    variance = mean_square - mean_guide**2

    def mean(frames: Array) -> Array:  # [n,B,H,W]
        mean_frames, mean_product = means(frames, guide * frames)
        slope = (mean_product - mean_guide * mean_frames) / (variance + epsilon)
        slope, offset = means(slope, mean_frames - slope * mean_guide)
        return jnp.maximum(slope * guide + offset, 0.0)

    frames = jnp.moveaxis(volume, 1, 0)
    # large frames one by one, so that the data of a frame stays in the processor's cache
    one_by_one = guide.size > _AT_ONCE and jax.default_backend() == "cpu"
    found = lax.map(mean, frames[:, None])[:, 0] if one_by_one else mean(frames)
    return jnp.moveaxis(found, 0, 1)


def pool(x: Array, scale: int) -> Array:
    """Means over blocks of scale x scale pixels of x [...,H,W]; the last row and column fill up the last blocks."""
    if scale == 1:
        return x
    height, width = x.shape[-2:]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -height % scale), (0, -width % scale)], mode="edge")
    return x.reshape(*x.shape[:-2], x.shape[-2] // scale, scale, x.shape[-1] // scale, scale).mean((-3, -1))


def enlarge(x: Array, scale: int) -> Array:
    """The blocks of `pool` as pixels again, [...,h,w] to [...,scale h,scale w], linearly between their middles."""
    return x if scale == 1 else enlarge_axis(enlarge_axis(x, scale, x.ndim - 2), scale, x.ndim - 1)
