"""From a volume of focus measures to depth: peak, confidence, composite."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from dff_jax.ops.windows import window_max
from dff_jax.types import Array

LEVELS = (0.8, 0.5)  # of the peak's height, at which its flanks are read
LEAST_HEIGHT = 1e-3  # of the peak's: below there is only noise
BASE = 0.9  # share of the curve's least value that is taken off as unsharp background


class Peak(NamedTuple):
    """The peak of each pixel's focus curve."""

    position: Array  # [B,H,W] q
    prominence: Array  # [B,H,W] >= 0: how far it stands above the curve's mean, in units of that mean


def gaussian_peak(measure: Array, focus: Array, floor: float = 1e-6) -> Array:
    """Depth [B,H,W] where a Gaussian through the three samples around the maximum peaks.

    The logarithm of a Gaussian is a parabola; it is fitted through (q_{m-1}, q_m, q_{m+1}) by Lagrange's formula, so
    the spacing may be uneven (mathematics of Nayar and Nakagawa 1994 for even spacing). Where there is no peak
    (a flat or rising curve, or a maximum at either end) the setting of the sharpest frame is returned.

    Args:
      measure: [B,Z,H,W], non-negative.
      focus: [B,Z] q, ascending.
      floor: added before the logarithm.
    """
    last = measure.shape[1] - 1
    sharpest = jnp.argmax(measure, axis=1)
    middle = jnp.clip(sharpest, 1, max(last - 1, 1)) if last > 1 else sharpest
    q_at = lambda i: jnp.take_along_axis(focus, i.reshape(i.shape[0], -1), 1).reshape(i.shape)  # noqa: E731
    q_best = q_at(sharpest)
    if last < 2:
        return q_best
    log_at = lambda i: jnp.log(jnp.take_along_axis(measure, i[:, None], 1)[:, 0] + floor)  # noqa: E731
    q0, q1, q2 = q_at(middle - 1), q_at(middle), q_at(middle + 1)
    f0, f1, f2 = log_at(middle - 1), log_at(middle), log_at(middle + 1)
    slope_left, slope_right = (f1 - f0) / (q1 - q0), (f2 - f1) / (q2 - q1)
    curvature = (slope_right - slope_left) / (q2 - q0)
    peaked = (curvature < 0) & (sharpest == middle)
    vertex = 0.5 * (q0 + q1) - 0.5 * slope_left / jnp.where(peaked, curvature, -1.0)
    return jnp.where(peaked, jnp.clip(vertex, q0, q2), q_best)


def symmetric_peak(measure: Array, focus: Array) -> Peak:
    """Peak as the middle between the curve's flanks, which needs no model of its summit.

    Sharpness falls alike to both sides of the plane in focus, so the middle of two points of equal height is the peak,
    whatever the shape. Frames within the depth of field are equally sharp and hold only noise, and a parabola through
    the few frames of a coarse stack is drawn to the nearest of them (a curve of photographs has a sharper summit and
    wider flanks than a Gaussian). The flanks are read, linearly in the logarithm, at `LEVELS` of the peak's height,
    but no higher than the better neighbour of the sharpest frame, as above it a flank is cut by the summit; with three
    frames that is the equiangular interpolation (Shimizu and Okutomi, ICCV 2001, for stereo). A flank is followed from
    the maximum down, so that no second peak is taken for it. Where the curve ends above a level, that level is left
    out; where the sharpest frame is the first or the last, the flank that is not seen is taken to be as steep as the
    other, and the peak to lie no further out than that frame.

    Args:
      measure: [B,Z,H,W], non-negative.
      focus: [B,Z] q, ascending.
    """
    num = measure.shape[1]
    top, mean, least = measure.max(1), measure.mean(1), BASE * measure.min(1)
    height = jnp.moveaxis((measure - least[:, None]) / jnp.maximum(top - least, 1e-9)[:, None], 1, 0)
    log_height = jnp.log(jnp.clip(height, LEAST_HEIGHT, 1.0))
    sharpest = jnp.argmax(measure, axis=1)
    best = jnp.take_along_axis(focus, sharpest.reshape(sharpest.shape[0], -1), 1).reshape(sharpest.shape)
    none = jnp.zeros_like(top)

    def look(neighbour, frame):
        return jnp.where(jnp.abs(frame[0] - sharpest) == 1, jnp.maximum(neighbour, frame[1]), neighbour), None

    numbers = jnp.arange(num)
    neighbour, _ = lax.scan(look, jnp.full_like(top, math.log(LEAST_HEIGHT)), (numbers, log_height))
    levels = [jnp.minimum(math.log(level), neighbour) for level in LEVELS] + [neighbour]

    def flank(beyond: Array, reverse: bool) -> list[Array]:
        """Where the curve falls through each level, among the frames `beyond` [Z,B,H,W]; NaN where it does not."""

        def follow(carry, frame):
            above, q_above, places = carry
            heights, q = frame
            below, q = jnp.minimum(above, heights), q[:, None, None]
            falls = above - below > 1e-9
            share = lambda level: jnp.where(falls, (above - level) / jnp.where(falls, above - below, 1.0), 1.0)  # noqa: E731
            places = [
                jnp.where((above >= level) & (level >= below), q_above + share(level) * (q - q_above), place)
                for level, place in zip(levels, places, strict=True)
            ]
            return (below, q, places), None

        start = none, focus[:, -1 if reverse else 0][:, None, None], [jnp.full_like(top, jnp.nan)] * len(levels)
        frames = jnp.where(beyond, log_height, 0.0), focus.T
        return lax.scan(follow, start, frames, reverse=reverse)[0][2]

    z = numbers[:, None, None, None]
    flanks = flank(z > sharpest[None], False), flank(z < sharpest[None], True)
    total, count = none, none
    *middles, last = [0.5 * (right + left) for right, left in zip(*flanks, strict=True)]
    if num > 2:
        ends = [_peak_at_end(log_height[::step], focus[:, ::step]) for step in (1, -1)]
        best = jnp.where(sharpest == 0, ends[0], jnp.where(sharpest == num - 1, ends[1], best))
    for middle in middles:
        found = ~jnp.isnan(middle)
        total, count = total + jnp.where(found, middle, 0.0), count + found
    fallback = jnp.where(jnp.isnan(last), best, last)
    position = jnp.where(count > 0, total / jnp.maximum(count, 1.0), fallback)
    return Peak(position, (top - mean) / jnp.maximum(mean, 1e-9))


def _peak_at_end(log_height: Array, focus: Array) -> Array:
    """Between the first two settings, of curves [Z,B,H,W] whose sharpest frame is the first.

    Flanks of equal slope where sampling is coarse. Where all three frames lie near the summit (the third above
    `LEVELS`) the curve is round there, and a parabola fits. With equal first frames both give the middle between them.
    """
    q0, q1, q2 = (focus[:, i, None, None] for i in range(3))
    y0, y1, y2 = log_height[:3]
    half = 0.5 * jnp.abs(q1 - q0)
    first, second = (y0 - y1) / jnp.abs(q1 - q0), (y1 - y2) / jnp.abs(q2 - q1)  # how steeply it falls
    steep = half * (1 - first / jnp.maximum(second, 1e-9))
    bend = (second - first) / jnp.abs(q2 - q0)
    round_ = jnp.where(bend > 1e-9, half - 0.5 * first / jnp.maximum(bend, 1e-9), 0.0)
    coarse = jnp.clip((math.log(LEVELS[0]) - y2) / math.log(2.0), 0.0, 1.0)
    inwards = coarse * jnp.clip(steep, 0.0, half) + (1 - coarse) * jnp.clip(round_, 0.0, half)
    return q0 + jnp.sign(q1 - q0) * inwards


def peak_confidence(measure: Array, noise: float = 0.01) -> Array:
    """[B,H,W] in [0,1]: how far the peak of measure [B,Z,H,W] stands out of the curve, and of the noise."""
    top, mean = measure.max(1), measure.mean(1)
    return (top - mean) / jnp.maximum(top, 1e-12) * top / (top + noise)


def interpolation_weights(depth: Array, focus: Array) -> Array:
    """Shares [B,Z,H,W] of the two frames around depth [B,H,W] on focus [B,Z] (linear; ends held)."""
    q = focus[:, :, None, None]
    depth = jnp.clip(depth[:, None], q[:, :1], q[:, -1:])
    below = jnp.concatenate([q[:, :1] - 1.0, q[:, :-1]], 1)
    above = jnp.concatenate([q[:, 1:], q[:, -1:] + 1.0], 1)
    return jnp.clip(jnp.minimum((depth - below) / (q - below), (above - depth) / (above - q)), 0.0, 1.0)


def sharp_composite(frames: Array, depth: Array, focus: Array) -> Array:
    """All-in-focus image [B,H,W,3]: frames [B,Z,H,W,3] read at depth [B,H,W], between two frames linearly."""
    return (interpolation_weights(depth, focus)[..., None] * frames).sum(1)  # a product of matrices is slower


def nearest_composite(frames: Array, depth: Array, focus: Array, reach: int = 4) -> Array:
    """`sharp_composite` at the nearest surface (the largest q) within `reach` pixels, rows and columns alike.

    Around an occluding edge, the frame that is in focus on the nearer surface shows the edge sharp. In the frame of the
    farther surface the blur of the nearer one lies over it. So this image has the edge in its true place.
    """
    margin = [(0, 0)] * (depth.ndim - 2) + [(reach, reach)] * 2
    nearest = window_max(jnp.pad(depth, margin, mode="edge"), 2 * reach + 1)
    return sharp_composite(frames, nearest, focus)
