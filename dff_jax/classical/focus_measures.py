"""Focus measures: how sharp is each pixel of each frame. Frames are [..., H, W]; the border is continued."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.lax import optimization_barrier

from dff_jax.ops.windows import box_mean, window_sum
from dff_jax.types import Array

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def luminance(rgb: Array) -> Array:
    """Luma [...,H,W] of display-coded RGB [...,H,W,3]."""
    r, g, b = (weight * rgb[..., i] for i, weight in enumerate(_LUMA))
    return r + g + b


def modified_laplacian(image: Array, step: int = 1) -> Array:
    """ML = |2I - I(x-d) - I(x+d)| + |2I - I(y-d) - I(y+d)| of image [...,H,W]; d = `step` pixels.

    Nayar and Nakagawa, Shape from focus, PAMI 1994.
    """
    out = jnp.zeros_like(image)
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
    padded = jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
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
    padded = jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(ring, ring)] * 2, mode="edge")

    def disc_sum(radius: int) -> tuple[Array, int]:
        """Sum over a disc, and of how many pixels: runs of pixels by row, rows with runs of one length together.

        XLA's convolution of a single channel took twelve times as long on CPU.
        """
        rows: dict[int, list[int]] = {}
        for dy in range(-radius, radius + 1):
            rows.setdefault(math.isqrt(radius**2 - dy**2), []).append(ring + dy)
        total = jnp.zeros_like(image)
        for half, starts in rows.items():
            cut = padded[..., ring - half : ring + half + width]
            run = optimization_barrier(window_sum(cut, 2 * half + 1, image.ndim - 1))
            total = total + sum((run[..., start : start + height, :] for start in starts), jnp.zeros_like(image))
        return total, sum((2 * half + 1) * len(starts) for half, starts in rows.items())

    (inner, of_inner), (hole, of_hole), (whole, of_whole) = map(disc_sum, (disc, gap, ring))
    return jnp.abs(inner / of_inner - (whole - hole) / (of_whole - of_hole))
