"""The guided filter as a pseudo-prox: smooths depth, keeps the edges of a guide image.

    q = mean(a) . I + mean(b),   a = (cov(I) + epsilon)^-1 cov(I, z),   b = mean(z) - a . mean(I)

with means over windows of 2 radius + 1 pixels, cut at the border (He, Sun and Tang, Guided image filtering, PAMI 35,
2013, eqs. 5-8 for grey and 19-21 for colour guides).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from dff_jax.ops.windows import box_mean
from dff_jax.types import Array
from dff_jax.unroll.guide import as_channels, guide_of
from dff_jax.unroll.problem import Problem
from dff_jax.unroll.prox import Prox


def guided_filter(guide: Callable[[Problem], Array] = guide_of, radius: int = 8, epsilon: float = 1e-3) -> Prox:
    """D = (z + tau q(z)) / (1 + tau) with q the guided filter and tau = eta lambda.

    A pseudo-prox: no energy belongs to it, so no scheme's convergence theorem applies (the filter matrix is not
    symmetric), and `regularizer` is None. eta and lambda act as the strength: it is the pull to q(z) as to a prior,
    z itself for eta lambda = 0 and the plain guided filter for eta lambda -> infinity. Linear in z, a constant stays,
    a depth that is an affine function of the guide stays up to epsilon.

    Args:
      guide: problem -> image [...,H,W] (grey) or [...,H,W,c]; `guide_of` takes `problem.guide`.
      radius: of the window, in pixels; the cost hardly depends on it.
      epsilon: guide variance (guide value squared) below which a window counts as flat and is averaged.

    Raises:
      ValueError: radius is below 1, there is no guide, or it has another size than the depth.
    """
    if radius < 1:
        raise ValueError(f"guided_filter: radius must be at least 1, got {radius}")

    def apply(params, z, problem, eta, memory):
        tau = eta * problem.regularization
        filtered = filter_guided(z, as_channels(guide(problem), problem), radius, epsilon)
        return (z + tau * filtered) / (1 + tau), memory

    return Prox(apply)


def filter_guided(z: Array, guide: Array, radius: int, epsilon: float) -> Array:
    """q(z) of He et al., [...,H,W], for z [...,H,W] and a guide [...,H,W,c]."""
    level = z.mean((-2, -1), keepdims=True)  # centred, so that the covariances do not cancel in float32
    z = z - level
    guide = guide - guide.mean((-3, -2), keepdims=True)
    channels = [guide[..., i] for i in range(guide.shape[-1])]
    pairs = [(i, j) for i in range(len(channels)) for j in range(i + 1)]

    means = window_mean(jnp.stack([z, *channels]), radius)
    mean_z, mean_guide = means[0], means[1:]
    products = [channels[i] * channels[j] for i, j in pairs] + [channel * z for channel in channels]
    products = window_mean(jnp.stack(products), radius)

    covariance = {}
    for (i, j), product in zip(pairs, products, strict=False):
        covariance[i, j] = product - mean_guide[i] * mean_guide[j] + (epsilon if i == j else 0)
    with_z = [product - mean * mean_z for product, mean in zip(products[len(pairs) :], mean_guide, strict=True)]
    slopes = _solve_symmetric(covariance, with_z)
    offset = mean_z - sum(a * mean for a, mean in zip(slopes, mean_guide, strict=True))

    coefficients = window_mean(jnp.stack([offset, *slopes]), radius)
    return level + coefficients[0] + sum(a * channel for a, channel in zip(coefficients[1:], channels, strict=True))


def window_mean(x: Array, radius: int) -> Array:
    """Mean over the pixels within `radius` (a square, cut at the border) of x [...,H,W]: O(log radius) a pixel."""
    height, width = x.shape[-2:]
    window = 2 * radius + 1
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(radius, radius)] * 2)
    means = box_mean(padded, window)[..., radius:-radius, radius:-radius]
    share = _inside(height, radius)[:, None] * _inside(width, radius)[None] / window**2
    return means / jnp.asarray(share, x.dtype).reshape(*[1] * (x.ndim - 2), height, width)


def _inside(size: int, radius: int) -> np.ndarray:
    """How many of the 2 radius + 1 rows (or columns) around each lie in the image; [size]."""
    i = np.arange(size)
    return np.minimum(i + radius, size - 1) - np.maximum(i - radius, 0) + 1


def _solve_symmetric(matrix: dict[tuple[int, int], Array], right: list[Array]) -> list[Array]:
    """x of M x = right in every pixel, M positive definite, given as its lower triangle {(i, j): map, j <= i}.

    Gaussian elimination written out over whole maps: LAPACK on a 3 x 3 system a pixel is far slower.
    """
    n = len(right)
    m, right = dict(matrix), list(right)
    for k in range(n):
        for i in range(k + 1, n):
            factor = m[i, k] / m[k, k]
            for j in range(k + 1, i + 1):
                m[i, j] = m[i, j] - factor * m[j, k]
            right[i] = right[i] - factor * right[k]
    x: dict[int, Array] = {}
    for i in reversed(range(n)):
        x[i] = (right[i] - sum(m[j, i] * x[j] for j in range(i + 1, n))) / m[i, i]
    return [x[i] for i in range(n)]
