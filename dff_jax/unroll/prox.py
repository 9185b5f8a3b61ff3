"""Closed-form proximal maps: prox(params, z, problem, eta) -> argmin_D 1/2 |D - z|^2 + eta lambda R(D)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dff_jax.types import Array
from dff_jax.unroll.problem import Problem


def identity(params: Any, z: Array, problem: Problem, eta: Array) -> Array:
    """R = 0: the prox of nothing."""
    return z


def box(low: float, high: float):
    """R = 0 inside [low, high] and infinite outside: the projection onto the interval."""

    def prox(params: Any, z: Array, problem: Problem, eta: Array) -> Array:
        return jnp.clip(z, low, high)

    return prox
