"""Focus measures: how sharp is each pixel of each frame. Frames are [..., H, W]; the border is continued."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.lax import optimization_barrier

from dff_jax import extent
from dff_jax.types import Array

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def luminance(rgb: Array) -> Array:
    """Luma [...,H,W] of display-coded RGB [...,H,W,3]."""
    return sum(weight * rgb[..., i] for i, weight in enumerate(_LUMA))


def window_max(x: Array, window: int) -> Array:
    """Maximum over each window x window square of x [...,H,W] (VALID): [...,H-window+1,W-window+1].

    By rows, then columns, doubling: XLA's own looks at window^2 entries for each, eighty times slower for 17 on CPU.
    """
    for axis in (x.ndim - 2, x.ndim - 1):
        length, size = x.shape[axis] - window + 1, 1
        cut = lambda x, start, count: lax.slice_in_dim(x, start, start + count, axis=axis)  # noqa: B023, E731
        while 2 * size <= window:
            count = x.shape[axis] - size
            x, size = jnp.maximum(cut(x, 0, count), cut(x, size, count)), 2 * size
        x = jnp.maximum(cut(x, 0, length), cut(x, window - size, length))
    return x


def _window_sum(x: Array, window: int, axis: int) -> Array:
    """Sum over each run of `window` entries (VALID) by doubling: about 2 log2(window) additions an entry."""
    length = x.shape[axis] - window + 1
    total, offset, run, size = None, 0, x, 1

    def cut(start: int, source: Array, count: int) -> Array:
        index = [slice(None)] * source.ndim
        index[axis] = slice(start, start + count)
        return source[tuple(index)]

    while size <= window:
        if window & size:
            piece = cut(offset, run, length)
            total = piece if total is None else total + piece
            offset += size
        if 2 * size <= window:
            count = run.shape[axis] - size
            run = cut(0, run, count) + cut(size, run, count)
        size *= 2
    return total


def box_mean(x: Array, window: int) -> Array:
    """Mean over a window x window square (odd) around each pixel of x [...,H,W]."""
    return array_box_mean(extent.edge(x), window)


def array_box_mean(x: Array, window: int) -> Array:
    """`box_mean` of an array that is picture all over, whatever the extent."""
    for axis in (x.ndim - 2, x.ndim - 1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (window // 2, window // 2)
        # kept apart, as XLA would fuse them and look up the border for each term
        padded = optimization_barrier(jnp.pad(x, pad, mode="edge"))
        x = optimization_barrier(_window_sum(padded, window, axis) / window)
    return x


def modified_laplacian(image: Array, step: int = 1) -> Array:
    """ML = |2I - I(x-d) - I(x+d)| + |2I - I(y-d) - I(y+d)| of image [...,H,W]; d = `step` pixels.

    Nayar and Nakagawa, Shape from focus, PAMI 1994.
    """
    image, out = extent.reflect(image, step), 0.0
    for axis in (image.ndim - 2, image.ndim - 1):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (step, step)
        padded = jnp.pad(image, pad, mode="reflect" if image.shape[axis] > step else "edge")
        length = image.shape[axis]
        index = [slice(None)] * image.ndim
        index[axis] = slice(0, length)
        before = padded[tuple(index)]
        index[axis] = slice(2 * step, 2 * step + length)
        out = out + jnp.abs(2 * image - before - padded[tuple(index)])
    return out


def sum_modified_laplacian(image: Array, window: int = 9, step: int = 1) -> Array:
    """Sum-modified-Laplacian of image [...,H,W] as a mean over the window (so its scale does not depend on it)."""
    return box_mean(modified_laplacian(image, step), window)


def gradient_magnitude(image: Array) -> Array:
    """|grad I| of image [...,H,W] by Sobel's masks, per pixel: the square root of Tenengrad's sum G_x^2 + G_y^2.

    Tenenbaum, Accommodation in computer vision, 1970; Krotkov, Focusing, IJCV 1987. The root keeps the contrast in the
    first power, as the other measures have it.
    """
    padded = jnp.pad(extent.edge(image), [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    height, width = image.shape[-2:]
    at = lambda y, x: padded[..., y : y + height, x : x + width]  # noqa: E731
    across = at(0, 2) + 2 * at(1, 2) + at(2, 2) - at(0, 0) - 2 * at(1, 0) - at(2, 0)
    down = at(2, 0) + 2 * at(2, 1) + at(2, 2) - at(0, 0) - 2 * at(0, 1) - at(0, 2)
    return jnp.sqrt(across**2 + down**2) / 8


def ring_difference(image: Array, inner: int = 3, outer: int = 7) -> Array:
    """|I - mean over a ring around the pixel| of image [...,H,W]: a second derivative with a gap, robust to noise.

    The ring lies between two squares of sides `inner` and `outer`, odd, after Jeon, Surh, Im and Kweon, Ring
    difference filter for fast and noise robust depth from focus, IEEE TIP 29, 2020 (theirs is round).
    """
    ring = (outer**2 * box_mean(image, outer) - inner**2 * box_mean(image, inner)) / (outer**2 - inner**2)
    return jnp.abs(image - ring)


def disc_ring_difference(image: Array, disc: int = 0, gap: int = 1, ring: int = 3) -> Array:
    """Ring difference filter, |mean over a disc around the pixel - mean over a ring around it|, of image [...,H,W].

    The disc holds the pixels within radius `disc` (0: the pixel alone), the ring those beyond `gap` and within `ring`:
    over the gap even coarse texture makes a difference, where a Laplacian sees only noise. Jeon, Surh, Im and Kweon,
    Ring difference filter for fast and noise robust depth from focus, IEEE TIP 29, 2020; their ring is wider.
    """
    height, width = image.shape[-2:]
    padded = jnp.pad(extent.edge(image), [(0, 0)] * (image.ndim - 2) + [(ring, ring)] * 2, mode="edge")

    def disc_sum(radius: int) -> tuple[Array, int]:
        """Sum over a disc, and of how many pixels: runs of pixels by row, rows with runs of one length together.

        XLA's convolution of a single channel took twelve times as long on CPU.
        """
        rows: dict[int, list[int]] = {}
        for dy in range(-radius, radius + 1):
            rows.setdefault(math.isqrt(radius**2 - dy**2), []).append(ring + dy)
        total = 0.0
        for half, starts in rows.items():
            cut = padded[..., ring - half : ring + half + width]
            run = optimization_barrier(_window_sum(cut, 2 * half + 1, image.ndim - 1))
            total = total + sum(run[..., start : start + height, :] for start in starts)
        return total, sum((2 * half + 1) * len(starts) for half, starts in rows.items())

    (inner, of_inner), (hole, of_hole), (whole, of_whole) = map(disc_sum, (disc, gap, ring))
    return jnp.abs(inner / of_inner - (whole - hole) / (of_whole - of_hole))
