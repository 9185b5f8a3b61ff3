"""Maxima, sums and means over square windows of images [...,H,W], by doubling; the plain form of each beside it.

XLA's own `reduce_window` on CPU looks at all window^2 entries for each pixel: eighty times slower for 17 x 17.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.lax import optimization_barrier

from dff_jax.types import Array


def window_max(x: Array, window: int) -> Array:
    """Maximum over each window x window square of x [...,H,W] (VALID): [...,H-window+1,W-window+1]."""
    for axis in (x.ndim - 2, x.ndim - 1):
        length, size = x.shape[axis] - window + 1, 1
        while 2 * size <= window:
            count = x.shape[axis] - size
            x, size = jnp.maximum(_cut(x, 0, count, axis), _cut(x, size, count, axis)), 2 * size
        x = jnp.maximum(_cut(x, 0, length, axis), _cut(x, window - size, length, axis))
    return x


def window_max_by_lax(x: Array, window: int) -> Array:
    """`window_max` by XLA's own operation."""
    return lax.reduce_window(x, -jnp.inf, lax.max, _square(x, window), (1,) * x.ndim, "VALID")


def window_sum(x: Array, window: int, axis: int) -> Array:
    """Sum over each run of `window` entries along `axis` (VALID), in about 2 log2(window) additions an entry."""
    length = x.shape[axis] - window + 1
    pieces, offset, run, size = [], 0, x, 1  # run: sums over `size` entries
    while size <= window:
        if window & size:
            pieces.append(_cut(run, offset, length, axis))
            offset += size
        if 2 * size <= window:
            count = run.shape[axis] - size
            run = _cut(run, 0, count, axis) + _cut(run, size, count, axis)
        size *= 2
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total


def box_mean(x: Array, window: int) -> Array:
    """Mean over a window x window square (odd) around each pixel of x [...,H,W], the edge continued."""
    for axis in (x.ndim - 2, x.ndim - 1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (window // 2, window // 2)
        # without the barriers XLA fuses the sums and looks up the border for each term
        padded = optimization_barrier(jnp.pad(x, pad, mode="edge"))
        x = optimization_barrier(window_sum(padded, window, axis) / window)
    return x


def box_mean_by_lax(x: Array, window: int) -> Array:
    """`box_mean` by XLA's own operation."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(window // 2, window // 2)] * 2, mode="edge")
    return lax.reduce_window(padded, 0.0, lax.add, _square(x, window), (1,) * x.ndim, "VALID") / window**2


def _cut(x: Array, start: int, count: int, axis: int) -> Array:
    return lax.slice_in_dim(x, start, start + count, axis=axis)


def _square(x: Array, window: int) -> tuple[int, ...]:
    return (1,) * (x.ndim - 2) + (window, window)
