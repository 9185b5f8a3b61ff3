"""First differences of a depth map: the linear operator A of total variation and Tikhonov.

A pair (down, right) of maps, as two interleaved maps take five times as long on CPU (512 x 512).
"""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.types import Array

Pair = tuple[Array, Array]  # down, right, each [...,H,W]

NORM_SQUARED = 8.0
"""An upper bound of |A|^2 (Chambolle 2004)."""


def forward(depth: Array) -> Pair:
    """Forward differences of [...,H,W], (down, right); 0 in the last row and the last column (Neumann)."""
    none = [(0, 0)] * (depth.ndim - 2)
    down = jnp.pad(depth[..., 1:, :] - depth[..., :-1, :], [*none, (0, 1), (0, 0)])
    right = jnp.pad(depth[..., :, 1:] - depth[..., :, :-1], [*none, (0, 0), (0, 1)])
    return down, right


def adjoint(p: Pair) -> Array:
    """A^T p (minus the divergence), [...,H,W]. The last row of `down` and the last column of `right` do not count."""
    none = [(0, 0)] * (p[0].ndim - 2)
    down, right = p[0][..., :-1, :], p[1][..., :, :-1]
    down = jnp.pad(down, [*none, (1, 0), (0, 0)]) - jnp.pad(down, [*none, (0, 1), (0, 0)])
    right = jnp.pad(right, [*none, (0, 0), (1, 0)]) - jnp.pad(right, [*none, (0, 0), (0, 1)])
    return down + right


def squared_length(p: Pair) -> Array:
    """|p(x)|^2, [...,H,W]."""
    return p[0] ** 2 + p[1] ** 2
