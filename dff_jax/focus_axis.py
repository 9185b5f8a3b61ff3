"""The focus axis: units, order, and the working coordinate t.

Blur is linear in inverse depth, CoC_px = a |q - q_z|, where q is disparity or diopters. So metres are turned into
diopters on the way in and back on the way out; disparity, diopters and a bare index are used as they are.
`t = (q - q_min)/(q_max - q_min)` is 0 at the first plane and 1 at the last, whatever the unit.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dff_jax.errors import InputError
from dff_jax.types import Array

Unit = Literal["disparity", "diopter", "metre", "index"]
UNITS: tuple[str, ...] = get_args(Unit)

# A point at infinity has q = 0; this is the farthest that metres are written out (0.001 micro-diopters).
MIN_DIOPTER = 1e-9


def check_unit(unit: str) -> str:
    """Returns `unit`; raises InputError naming the choices if there is no such unit."""
    if unit not in UNITS:
        raise InputError(f"unit: {unit!r} is not a focus unit; choose one of {', '.join(UNITS)}")
    return unit


def larger_is_nearer(unit: str) -> bool | None:
    """Whether larger values of `unit` lie nearer to the camera; None for an index, which does not say."""
    return {"disparity": True, "diopter": True, "metre": False, "index": None}[check_unit(unit)]


def to_q(values: Any, unit: str) -> Any:
    """Values in `unit` (any shape, numpy or jax) to the linear coordinate q: 1/metres, all else unchanged."""
    return 1.0 / values if check_unit(unit) == "metre" else values


def from_q(q: Any, unit: str) -> Any:
    """Inverse of `to_q`. In metres, q at or beyond infinity (q <= 0) comes out as 1/MIN_DIOPTER."""
    if check_unit(unit) != "metre":
        return q
    return 1.0 / (jnp.maximum(q, MIN_DIOPTER) if isinstance(q, Array) else np.maximum(q, MIN_DIOPTER))


def sort_order(focus: ArrayLike, unit: str, names: list[str] | None = None) -> np.ndarray:
    """Indices [Z] that put frames into ascending q, by value.

    Args:
      focus: [Z] focus settings in `unit`, one a frame.
      names: [Z] what to call each frame in an error.

    Raises:
      InputError: fewer than two frames, a value that is not finite, a metre that is not positive, or two frames
        with the same focus setting.
    """
    check_unit(unit)
    focus = np.asarray(focus, np.float64)
    names = names or [f"frame {i}" for i in range(len(focus))]
    if focus.ndim != 1 or len(focus) < 2:
        raise InputError(f"focus: a focal stack needs at least 2 frames, got {focus.size}")
    for value, name in zip(focus, names, strict=True):
        if not np.isfinite(value):
            raise InputError(f"{name}: focus setting {value} is not a finite number")
        if unit == "metre" and value <= 0:
            raise InputError(f"{name}: focus distance {value} m is not positive; is the unit right (--unit)?")
    q = to_q(focus, unit)
    order = np.argsort(q, kind="stable")
    for a, b in zip(order[:-1], order[1:], strict=True):
        if np.float32(q[a]) == np.float32(q[b]):
            raise InputError(
                f"{names[a]} and {names[b]}: the same focus setting {focus[a]:g}; each frame needs its own"
            )
    return order


def to_unit_coordinate(q: Array, focus: Array) -> Array:
    """t of q. q: [...] with focus [Z], or [B,...] with focus [B,Z] (q ascending along Z)."""
    low, span = _range(q, focus)
    return (q - low) / span


def from_unit_coordinate(t: Array, focus: Array) -> Array:
    """q of t, the inverse of `to_unit_coordinate`; same shapes."""
    low, span = _range(t, focus)
    return low + span * t


def span(focus: Array) -> Array:
    """q_max - q_min: [] for focus [Z], [B] for focus [B,Z]."""
    return focus[..., -1] - focus[..., 0]


def _range(values: Array, focus: Array) -> tuple[Array, Array]:
    shape = focus.shape[:-1] + (1,) * (values.ndim - focus.ndim + 1)
    return focus[..., 0].reshape(shape), span(focus).reshape(shape)
