"""The focus axis: units, order, and the working coordinate t.

Blur is linear in inverse depth, CoC_px = a |q - q_z|, where q is disparity or diopters. So metres are turned into
diopters on the way in and back on the way out; disparity, diopters and a bare index are used as they are. `mm` and
`micron` are positions of a stage or rail, and blur is linear in them; a leading minus ("-mm") says that the smaller
position is the nearer one, so q = -position.
`t = (q - q_min)/(q_max - q_min)` is 0 at the first plane and 1 at the last, whatever the unit.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dff_jax.errors import InputError
from dff_jax.types import Array

Unit = Literal["disparity", "diopter", "metre", "index", "mm", "micron"]
UNITS: tuple[str, ...] = get_args(Unit)
Near = Literal["larger", "smaller"]
LENGTHS = {"metre": 1.0, "mm": 1e-3, "micron": 1e-6}
"""Units that are lengths, in metres."""
POSITIONS = ("mm", "micron")
_SYMBOLS = {"disparity": "px", "diopter": "dpt", "metre": "m", "index": "frames", "mm": "mm", "micron": "µm"}

FARTHEST = 1e4  # metres; what lies beyond is at infinity


def check_unit(unit: str) -> str:
    """Returns `unit`; raises InputError naming the choices if there is no such unit."""
    if base(unit) not in (POSITIONS if unit[:1] == "-" else UNITS):
        raise InputError(f"unit: {unit!r} is not a focus unit; choose one of {', '.join(UNITS)}")
    return unit


def base(unit: str) -> str:
    """The unit without its direction."""
    return unit.removeprefix("-")


def symbol(unit: str) -> str:
    """How the unit is written behind a number."""
    return _SYMBOLS[base(unit)]


def larger_is_nearer(unit: str) -> bool | None:
    """Whether larger values of `unit` lie nearer to the camera; None for an index, which does not say."""
    known = {"disparity": True, "diopter": True, "metre": False, "index": None}
    return known.get(check_unit(unit), unit in POSITIONS)


def to_q(values: Any, unit: str) -> Any:
    """Values in `unit` (any shape, numpy or jax) to the linear coordinate q: 1/metres, -position, else unchanged."""
    if check_unit(unit) == "metre":
        return 1.0 / values
    return -values if unit[0] == "-" else values


def from_q(q: Any, unit: str) -> Any:
    """Inverse of `to_q`. In metres, what lies beyond `FARTHEST` comes out as infinity."""
    if check_unit(unit) != "metre":
        return to_q(q, unit)
    xp = jnp if isinstance(q, Array) else np
    return xp.where(q > 1 / FARTHEST, 1.0 / xp.maximum(q, 1 / FARTHEST), xp.inf)


def origin(q: np.ndarray) -> np.float64:
    """What is taken off settings q [Z] before they become float32: 0 unless they lie far from 0, as an encoder's.

    Every method works with differences of q; only their size matters.
    """
    return np.float64(q[0] if np.abs(q).max() > 100 * abs(q[-1] - q[0]) else 0)


def short_of_infinity(q: Any, focus: Array, unit: str) -> Any:
    """q [B,...] in metres cut off at four times the farthest setting [B,Z] short of infinity; else unchanged.

    A mean over metres would say nothing if a single pixel at infinity could enter it.
    """
    if unit != "metre":
        return q
    least = jnp.min(jnp.where(focus > 1 / FARTHEST, focus, jnp.inf), -1) / 4
    return jnp.maximum(q, jnp.where(jnp.isfinite(least), least, 1.0).reshape(-1, *(1,) * (q.ndim - 1)))


def sort_order(focus: ArrayLike, unit: str, names: list[str] | None = None) -> np.ndarray:
    """Indices [Z] that put frames into ascending q, by value.

    Args:
      focus: [Z] focus settings in `unit`, one a frame; infinity is one in metres.
      names: [Z] what to call each frame in an error.

    Raises:
      InputError: fewer than two frames, a value that is not finite, a metre that is not positive, two frames with
        the same focus setting, or a range that float32 cannot hold.
    """
    check_unit(unit)
    focus = np.asarray(focus, np.float64)
    names = names or [f"frame {i}" for i in range(len(focus))]
    if focus.ndim != 1 or len(focus) < 2:
        raise InputError(f"focus: a focal stack needs at least 2 frames, got {focus.size}")
    for value, name in zip(focus, names, strict=True):
        if not (np.isfinite(value) or (unit == "metre" and value == np.inf)):
            raise InputError(f"{name}: focus setting {value} is not a finite number")
        if unit == "metre" and value <= 0:
            raise InputError(f"{name}: focus distance {value} m is not positive; is the unit right (--unit)?")
    order = np.argsort(-focus if unit == "metre" else to_q(focus, unit), kind="stable")
    for a, b in zip(order[:-1], order[1:], strict=True):
        if focus[a] == focus[b]:
            raise InputError(
                f"{names[a]} and {names[b]}: the same focus setting {focus[a]:g}; each frame needs its own"
            )
    with np.errstate(over="ignore"):  # to infinity
        ends = to_q(focus[order[[0, -1]]], unit)
    if not 1e-30 < float(ends[1]) - float(ends[0]) < 1e30:  # float32 has to hold it and its reciprocal
        raise InputError(f"focus: settings from {focus.min():g} to {focus.max():g} span too much or too little")
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
