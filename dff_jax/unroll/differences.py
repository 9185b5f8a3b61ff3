"""First differences of a depth map: the linear operator of total variation and Tikhonov."""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax import extent
from dff_jax.types import Array

NORM_SQUARED = 8.0
"""An upper bound of |grad|^2 (Chambolle 2004)."""


def forward(depth: Array) -> Array:
    """Forward differences [...,H,W] -> [...,H,W,2] (down, right); 0 beyond the last row and column (Neumann)."""
    down = jnp.diff(depth, axis=-2, append=depth[..., -1:, :])
    right = jnp.diff(depth, axis=-1, append=depth[..., :, -1:])
    return jnp.stack([extent.fill(down, less=(1, 0)), extent.fill(right, less=(0, 1))], -1)


def adjoint(p: Array) -> Array:
    """The adjoint of `forward` (minus the divergence), [...,H,W,2] -> [...,H,W]."""
    if extent.current() is not None:
        p = jnp.stack([extent.fill(p[..., 0], less=(1, 0)), extent.fill(p[..., 1], less=(0, 1))], -1)
    down, right = p[..., :-1, :, 0], p[..., :, :-1, 1]
    none = [(0, 0)] * (p.ndim - 3)
    down = jnp.pad(down, [*none, (1, 0), (0, 0)]) - jnp.pad(down, [*none, (0, 1), (0, 0)])
    right = jnp.pad(right, [*none, (0, 0), (1, 0)]) - jnp.pad(right, [*none, (0, 0), (0, 1)])
    return down + right
