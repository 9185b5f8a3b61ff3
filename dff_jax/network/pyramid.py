"""DFV's pyramid pooling, whose bins scale with the picture."""

from __future__ import annotations

import string
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dff_jax import extent
from dff_jax.types import Array

LEVELS = 4


def pool_bins(*lengths: int) -> list[int]:
    """DFV's pyramid: four bin counts, linspace(1, min(lengths) // 2, 4) rounded down."""
    most = min(lengths) // 2
    return [int(1 + i * (most - 1) / 3 + 1e-6) for i in range(LEVELS)]


def average_pool(x: Array, window: tuple[int, ...]) -> Array:
    """VALID average pooling with stride = window over the axes before the channels."""
    return nn.avg_pool(x, window, strides=window)


def pyramid_level(x: Array, level: int, transform: Callable[[Array], Array]) -> Array:
    """One level of the pyramid: `transform` of x averaged over bins, enlarged back (linearly, half-pixel centres).

    Args:
      x: [n,H,W,c] or [n,Z,H,W,c].
      level: 0 to 3, from the fewest bins to the most (`pool_bins`).
      transform: acts on each pixel alone.
    """
    lengths = x.shape[1:-1]
    if extent.current() is None:
        bins = pool_bins(*lengths)[level]
        y = transform(average_pool(x, tuple(length // bins for length in lengths)))
        shape = (*x.shape[:-1], y.shape[-1])
        return y if y.shape == shape else jax.image.resize(y, shape, "linear", antialias=False)
    real = [*lengths[:-2], extent.count(lengths[-2], 0), extent.count(lengths[-1], 1)]
    fewest = real[0]
    for length in real[1:]:
        fewest = jnp.minimum(fewest, length)
    bins = 1 + level * (fewest // 2 - 1) // 3
    windows = [length // bins for length in real]
    counts = [length // window for length, window in zip(real, windows, strict=True)]
    slots = [max(1, length // 2) for length in lengths]  # a bin is two pixels long at least
    down = [_means(*one) for one in zip(slots, lengths, counts, windows, strict=True)]
    up = [_enlarging(*one) for one in zip(lengths, slots, real, counts, strict=True)]
    pooled = _apply(down, extent.fill(x, first=-3))
    with extent.within(tuple(counts[-2:]), full=tuple(slots[-2:])):
        y = transform(pooled)
    return _apply(up, y)


def _means(slots: int, length: int, count: Array, window: Array) -> Array:
    """[slots,length]: takes a line to the means of its first `count` windows."""
    slot, place = jnp.arange(slots)[:, None], jnp.arange(length)[None]
    return jnp.where((place // window == slot) & (slot < count), 1.0 / window, 0.0)


def _enlarging(length: int, slots: int, real: Array, count: Array) -> Array:
    """[length,slots]: takes the first `count` values of a line to `real` places by linear interpolation."""
    centre = jnp.clip((jnp.arange(length) + 0.5) * count / real - 0.5, 0, count - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(slots)[None]))


def _apply(matrices: list[Array], x: Array) -> Array:
    """One matrix along each axis between the first and the last, in float32."""
    y, letters = x.astype(jnp.float32), string.ascii_lowercase[: x.ndim]
    for axis, matrix in enumerate(matrices, 1):
        spec = f"{letters},Y{letters[axis]}->{letters.replace(letters[axis], 'Y')}"
        y = jnp.einsum(spec, y, matrix, precision=lax.Precision.HIGHEST)
    return y.astype(x.dtype)
