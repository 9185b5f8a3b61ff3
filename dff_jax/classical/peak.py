"""From a volume of focus measures to depth: peak, confidence, composite."""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.types import Array


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
