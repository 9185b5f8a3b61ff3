"""Weighted median filter guided by an image: moves depth edges to the edges of the image.

    m(p) = argmin_d sum_j w_j(p) |d - z_j|,   w_j(p) = c_j exp(-|I_j - I_p|^2 / (2 sigma^2) - |j - p|^2 / (2 reach^2))

with confidence c, over a window of which every second pixel in each direction counts. A mean would put a ramp where two
surfaces meet; the median takes one side (Ma, He, Wei, Sun and Wu, Constant time weighted median filtering for stereo
matching and beyond, ICCV 2013, who also show what it does to the edges of a depth map).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from dff_jax.ops.windows import window_max
from dff_jax.types import Array

RADIUS, STRIDE = 8, 2  # pixels
SIGMA = 0.06  # of a guide in [0,1]
REACH = 4.0  # pixels
_PARTS, _ROUNDS = 8, 3  # each round cuts what is left of the window's range into so many parts: 1/512 of it in the end


def weighted_median(
    z: Array, guide: Array, confidence: Array, *, radius: int = RADIUS, sigma: float = SIGMA, reach: float = REACH
) -> Array:
    """m(z), [...,H,W], to 1/1024 of what z spans in a pixel's window; the window is cut at the border.

    It is searched, without sorting: the value below which half of the weight lies. Sends no gradient back.

    Args:
      z: [...,H,W].
      guide: [...,H,W,c].
      confidence: [...,H,W], >= 0; a pixel in whose window it is 0 throughout gets the middle of that window's range.
      radius: of the window in pixels.
      sigma: a difference of the guide (root of the sum over its channels of squares) that lowers a weight to 0.61.
      reach: a distance in pixels that does so.
    """
    z, guide, confidence = lax.stop_gradient((z, guide, confidence))
    height, width = z.shape[-2:]
    steps = np.arange(-radius, radius + 1)
    steps = steps[steps % STRIDE == 0]
    places = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    near = jnp.asarray(np.exp(-(places**2).sum(-1) / (2 * reach**2)), z.dtype)
    margin = [(0, 0)] * (z.ndim - 2) + [(radius, radius)] * 2
    values = jnp.pad(z, margin, mode="edge")
    weights = jnp.pad(confidence, margin)
    image = jnp.moveaxis(guide, -1, 0)
    colours = jnp.pad(image, [(0, 0), *margin])

    def shifted(x: Array, place: Array) -> Array:
        at = (0,) * (x.ndim - 2) + (radius + place[0], radius + place[1])
        return lax.dynamic_slice(x, at, (*x.shape[:-2], height, width))

    def narrow(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        step = (high - low) / _PARTS

        def add(sums: list[Array], place: tuple[Array, Array]) -> tuple[list[Array], None]:
            where, closeness = place
            away = ((shifted(colours, where) - image) ** 2).sum(0)
            weight = closeness * shifted(weights, where) * jnp.exp(-away / (2 * sigma**2))
            value = shifted(values, where)
            below = [jnp.where(value <= low + (i + 1) * step, weight, 0.0) for i in range(_PARTS - 1)]
            return [total + x for total, x in zip(sums, [*below, weight], strict=True)], None

        # a row of the window at a time: place by place the sums would go through memory each time
        start, row = [jnp.zeros_like(z)] * _PARTS, len(steps)
        sums, _ = lax.scan(add, start, (jnp.asarray(places), near), unroll=row)
        first = sum((total < 0.5 * sums[-1]).astype(z.dtype) for total in sums[:-1])
        return (low + first * step, low + (first + 1) * step), None

    bounds = -window_max(-values, 2 * radius + 1), window_max(values, 2 * radius + 1)
    (low, high), _ = lax.scan(narrow, bounds, None, length=_ROUNDS)
    return 0.5 * (low + high)
