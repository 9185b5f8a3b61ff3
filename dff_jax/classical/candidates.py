"""Depth candidates and their weights without training: every focus measure at every scale proposes a depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from dff_jax.classical.aggregation import enlarge, guided_mean, pool
from dff_jax.classical.focus_measures import gradient_magnitude, luminance, modified_laplacian, ring_difference
from dff_jax.classical.peak import gaussian_peak, sharp_composite, symmetric_peak
from dff_jax.ops.windows import box_mean
from dff_jax.types import Array

Measure = Callable[[Array], Array]  # [...,H,W] luminance -> [...,H,W] >= 0


class Candidates(NamedTuple):
    """N proposals for each pixel."""

    depth: Array  # [B,H,W,N] q
    prominence: Array  # [B,H,W,N] of their peaks, see `Peak`
    noise: Array  # [N] the prominence that noise alone has


MEASURES: dict[str, tuple[Measure, float]] = {
    "sum_modified_laplacian": (modified_laplacian, 0.4),
    "tenengrad": (gradient_magnitude, 0.5),
    "ring_difference": (ring_difference, 0.5),
}
"""The measure of a pixel, and how much of it pure noise varies: the standard deviation of its mean over a window of w x
w pixels, over that mean, times w."""

SCALES = (1, 2, 4)
RADIUS = 4  # of the windows, pixels of a scale
EPSILON = 1e-3
FINE_FIRST = 3  # power of 1 / scale in a candidate's weight
AGREEMENT = 4  # power of the others' support
REACH = 0.1  # in the working coordinate t; candidates this far apart support each other half


def measure_candidates(image: Array, focus: Array, guide: Array) -> Candidates:
    """The candidates of all measures and scales, finest scale first.

    Wide windows see further into poor texture, narrow ones keep detail.

    Args:
      image: [B,Z,H,W] luminance.
      focus: [B,Z] q, ascending.
      guide: [B,H,W] luminance of the scene in focus everywhere.
    """
    num, height, width = image.shape[1:]
    guides = [pool(guide, scale) for scale in SCALES]

    def peaks(volume: Array) -> list[Array]:
        """A focus measure [B,Z,H,W] -> position (q) and prominence of its peaks at each scale, [2,B,h,w]."""
        pooled = [box_mean(volume, 3) if scale == 1 else pool(volume, scale) for scale in SCALES]
        means = [guided_mean(x, guide, RADIUS, EPSILON) for x, guide in zip(pooled, guides, strict=True)]
        side_by_side = jnp.concatenate([mean.reshape(*mean.shape[:2], 1, -1) for mean in means], -1)  # compiles sooner
        found = jnp.stack(symmetric_peak(side_by_side, focus))[..., 0, :]  # [2,B,pixels]
        ends = np.cumsum([math.prod(mean.shape[2:]) for mean in means])
        pieces = jnp.split(found, ends[:-1], -1)
        return [x.reshape(*x.shape[:2], *mean.shape[2:]) for x, mean in zip(pieces, means, strict=True)]

    measures, variations = zip(*MEASURES.values(), strict=True)
    # one after the other: a volume is the largest thing in memory
    found = lax.map(peaks, jnp.stack([measure(image) for measure in measures]))
    maps = [enlarge(peak, scale)[..., :height, :width] for scale, peak in zip(SCALES, found, strict=True)]
    depth, prominence = jnp.moveaxis(jnp.concatenate(maps), 0, -1)
    spread = _expected_maximum(num) / (2 * RADIUS + 1)
    noise = [variation * spread / scale for scale in SCALES for variation in variations]
    return Candidates(depth, prominence, jnp.array(noise, image.dtype))


def propose(frames: Array, focus: Array) -> tuple[Array, Candidates]:
    """A first depth [B,H,W], the peak of the sum-modified-Laplacian, and the candidates, guided by its composite.

    Args:
      frames: [B,Z,H,W,3] in [0,1].
      focus: [B,Z] q, ascending.
    """
    image = luminance(frames)
    first = gaussian_peak(box_mean(modified_laplacian(image), 9), focus)
    return first, measure_candidates(image, focus, luminance(sharp_composite(frames, first, focus)))


def squared_excess(candidates: Candidates) -> Array:
    """p_i^2 [B,H,W,N]; `candidate_weights` uses its mean over the image."""
    return excess_prominence(candidates) ** 2


def candidate_weights(candidates: Candidates, reach: Array, mean_square: Array | None = None) -> Array:
    """W_i^2 [B,H,W,N] >= 0, at most 1 together: sharp peaks count, fine scales first, and what the others support.

        p_i = max(prominence_i - noise_i, 0),   c_i = (p_i / (p_i + p_typical))^2 / scale_i^3
        a_i = sum_j c_j k(D_i - D_j) / sum_j c_j,   k(d) = 1 / (1 + (d / reach)^2)
        W_i^2 = c_i a_i^4 / sum_i scale_i^-3

    A pixel without texture has no weight and is left to the prior. A wide window, which crosses edges, counts only
    where the narrow ones find nothing. A candidate that contradicts several equally sharp ones (the halo of an edge in
    another plane) hardly moves their mean, unlike in least squares.

    Args:
      candidates: of `measure_candidates`.
      reach: [B,1,1] in q: candidates this far apart support each other half.
      mean_square: [N] means of `squared_excess` over the whole image, where these candidates are a part (a tile) of
        it; None: over the candidates. p_typical is the largest of their roots.
    """
    depth, _, noise = candidates
    excess = excess_prominence(candidates)
    square = jnp.square(excess).mean((1, 2)) if mean_square is None else mean_square[None]
    typical = jnp.sqrt(square).max(-1)[:, None, None, None]
    rank = jnp.repeat(jnp.array(SCALES, depth.dtype) ** -FINE_FIRST, len(MEASURES))
    sharp = (excess / (excess + jnp.maximum(typical, noise.max()))) ** 2 * rank.reshape(1, 1, 1, -1)
    total = jnp.maximum(sharp.sum(-1), 1e-9)

    def agreement(mine: Array) -> Array:
        near = 1 / (1 + ((depth - mine[..., None]) / reach[..., None]) ** 2)
        return (sharp * near).sum(-1) / total

    support = lax.map(agreement, jnp.moveaxis(depth, -1, 0))
    return sharp * jnp.moveaxis(support, 0, -1) ** AGREEMENT / rank.sum()


def excess_prominence(candidates: Candidates) -> Array:
    """p_i [B,H,W,N] >= 0: the prominence above that of noise."""
    return jnp.maximum(candidates.prominence - candidates.noise.reshape(1, 1, 1, -1), 0.0)


def _expected_maximum(count: int) -> float:
    """About how many standard deviations the largest of `count` normal numbers lies above the mean."""
    return math.sqrt(2 * math.log(max(count, 2)))
