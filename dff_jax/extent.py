"""Pictures that fill only a part of their arrays: what lies outside is treated as a border is.

So that pictures of many sizes share one compiled program, they are padded on the right and below, and the program is
told how much of the array is picture: `height` and `width` are traced numbers, the array's size is static. Each
operation that sees neighbours, or reduces over the picture, first puts outside what it takes a border for: zeros for a
convolution, the edge repeated for a window, nothing for a sum. Then the answer inside is that of the picture alone.

    with extent.within((height, width), full=(H, W)):
        ...  # is traced; operations on [...,H,W], or at a stride of it, see to their borders

The extent is a context and no argument, as a dozen signatures between `Estimator.apply` and a convolution would only
hand it on. It is read while a function is traced, so enter it inside the traced function. Without one each function
here gives its argument back, and the traced program is as if this file did not exist.

Arrays are [...,H,W], or [...,H,W,C] with `first=-3`, the axis of H. An array smaller than `full` by a factor is at that
stride, where a part of a pixel counts as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array


class Extent(NamedTuple):
    """How much of an array is picture."""

    size: tuple[Array, Array]  # rows and columns, int32 scalars, at least 1
    full: tuple[int, int]  # of the arrays


_current: ContextVar[Extent | None] = ContextVar("extent", default=None)


@contextmanager
def within(size: tuple[Array, Array] | None, full: tuple[int, int]) -> Iterator[None]:
    """What is traced inside takes the upper left `size` of arrays of size `full` for picture; None: all of them."""
    rows_and_columns = None if size is None else tuple(jnp.asarray(n, jnp.int32) for n in size)
    token = _current.set(None if size is None else Extent(rows_and_columns, full))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Extent | None:
    """The extent in force, if any."""
    return _current.get()


def count(length: int, side: int) -> Array | int:
    """How many of the `length` rows (side 0) or columns (1) of an array are picture."""
    now = current()
    if now is None:
        return length
    stride, rest = divmod(now.full[side], length)
    if rest:
        raise ValueError(f"extent: an array of {length} has no whole stride in one of {now.full[side]}")
    return -(-now.size[side] // stride)


def inside(x: Array, first: int = -2, less: tuple[int, int] = (0, 0)) -> Array:
    """Where x is picture, as [1,...,H,W(,1)]; without the last `less` rows and columns of it."""
    masks = [_places(x, axis) < count(x.shape[axis], side) - less[side] for side, axis in _sides(x, first)]
    return masks[0] & masks[1]


def fill(x: Array, value: float = 0.0, first: int = -2, less: tuple[int, int] = (0, 0)) -> Array:
    """x with `value` outside; and in the last `less` rows and columns of the picture."""
    if current() is None:
        return x
    return jnp.where(inside(x, first, less), x, jnp.asarray(value, x.dtype))


def edge(x: Array, first: int = -2) -> Array:
    """x with the picture's edge repeated outside; a maximum over a window is not changed by that either."""
    if current() is None:
        return x
    for side, axis in _sides(x, first):
        number = count(x.shape[axis], side)
        last = lax.dynamic_index_in_dim(x, number - 1, axis)
        x = jnp.where(_places(x, axis) < number, x, last)
    return x


def reflect(x: Array, reach: int, first: int = -2) -> Array:
    """x with the picture reflected about its last pixel into the `reach` rows and columns outside."""
    if current() is None:
        return x
    for side, axis in _sides(x, first):
        number = count(x.shape[axis], side)
        places, before = _places(x, axis), x
        for i in range(reach):
            x = jnp.where(places == number + i, lax.dynamic_index_in_dim(before, number - 2 - i, axis), x)
    return x


def mean(x: Array, first: int = -2, keepdims: bool = False) -> Array:
    """Mean over the picture."""
    axes = (first, first + 1)
    if current() is None:
        return x.mean(axes, keepdims=keepdims)
    pixels = count(x.shape[first], 0) * count(x.shape[first + 1], 1)
    return fill(x, first=first).sum(axes, keepdims=keepdims) / pixels.astype(x.dtype)


def _sides(x: Array, first: int) -> list[tuple[int, int]]:
    return [(side, first % x.ndim + side) for side in (0, 1)]


def _places(x: Array, axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, tuple(n if a == axis else 1 for a, n in enumerate(x.shape)), axis)
