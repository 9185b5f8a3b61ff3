"""From a volume of focus measures to depth: peak, confidence, composite."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array

FLANK = 0.4  # of the peak's height: down to there its flanks are fitted
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


def fitted_peak(measure: Array, focus: Array) -> Peak:
    """Peak of the Gaussian that fits all of the curve's summit, not only three samples.

    Frames within the depth of field are equally sharp: there three samples hold only noise, while the flanks to both
    sides tell where the middle is. So a parabola is fitted by least squares to the logarithm of the curve, over the
    frames that hang together with its maximum and reach more than `FLANK` of its height; their weight grows with
    height. The three frames around the maximum always count a little. Where that is no peak (two frames, a maximum at
    the end with a convex flank) the sharpest frame's setting is returned; never one outside the frames fitted.

    Args:
      measure: [B,Z,H,W], non-negative.
      focus: [B,Z] q, ascending.
    """
    num = measure.shape[1]
    top, mean, least = measure.max(1), measure.mean(1), BASE * measure.min(1)
    height = jnp.moveaxis((measure - least[:, None]) / jnp.maximum(top - least, 1e-9)[:, None], 1, 0)
    sharpest = jnp.argmax(measure, axis=1)
    best = jnp.take_along_axis(focus, sharpest.reshape(sharpest.shape[0], -1), 1).reshape(sharpest.shape)
    unit = ((focus[:, -1] - focus[:, 0]) / max(num - 1, 1))[:, None, None]
    z = jnp.arange(num).reshape(-1, 1, 1, 1)

    def least_so_far(heights: Array, reverse: bool) -> Array:
        """Running minimum along the focus axis: what hangs together with the maximum has no valley in between."""
        both = lambda low, x: (jnp.minimum(low, x),) * 2  # noqa: E731
        return lax.scan(both, jnp.ones_like(top), heights, reverse=reverse)[1]

    right = least_so_far(jnp.where(z >= sharpest[None], height, 1.0), False)
    left = least_so_far(jnp.where(z <= sharpest[None], height, 1.0), True)
    middle = jnp.clip(sharpest, 1, max(num - 2, 1))  # three frames at least, or there is no parabola
    beside = jnp.where(jnp.abs(z - middle[None]) <= 1, 0.05, 0.0)
    weight = jnp.maximum((jnp.minimum(left, right) - FLANK) / (1 - FLANK), beside)
    log_height = jnp.log(jnp.maximum(height, 1e-3))

    def add(carry, frame):  # a scan, as XLA on CPU reduces the leading axes of a volume slowly
        weight, y, q = frame
        near, far, sums = carry
        x = (q[:, None, None] - best) / unit
        near, far = jnp.where(weight > 0, jnp.minimum(near, x), near), jnp.where(weight > 0, jnp.maximum(far, x), far)
        terms = [weight * x**n for n in range(5)]
        terms += [terms[n] * y for n in range(3)]
        return (near, far, [a + b for a, b in zip(sums, terms, strict=True)]), None

    none = jnp.zeros_like(top)
    (near, far, sums), _ = lax.scan(add, (none, none, [none] * 8), (weight, log_height, focus.T))
    s0, s1, s2, s3, s4, t0, t1, t2 = sums
    # Cramer's rule for y = c + b x + a x^2, without the common determinant, which is >= 0
    a = t2 * (s0 * s2 - s1 * s1) - t1 * (s0 * s3 - s1 * s2) + t0 * (s1 * s3 - s2 * s2)
    b = -t2 * (s0 * s3 - s1 * s2) + t1 * (s0 * s4 - s2 * s2) - t0 * (s1 * s4 - s2 * s3)
    peaked = (a < 0) & (num > 2)
    vertex = jnp.where(peaked, -0.5 * b / jnp.where(peaked, a, -1.0), 0.0)
    return Peak(best + unit * jnp.clip(vertex, near, far), (top - mean) / jnp.maximum(mean, 1e-9))


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
    return jnp.einsum("bzhw,bzhwc->bhwc", interpolation_weights(depth, focus), frames)
