"""Proximal maps: prox(params, z, problem, eta) -> argmin_D 1/2 |D - z|^2 + eta lambda R(D), lambda from the problem.

Any such function will do: a network's `apply`, a closed form, a lambda. One that wants more is a `Prox`: it may keep
a memory from one iteration to the next (the dual variable of total variation, a recurrent state) and know its energy.
With eta [B,H,W] the metric is diagonal: 1/2 sum (D - z)^2 / eta + lambda R(D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from dff_jax.types import Array
from dff_jax.unroll.problem import Problem

Depth = Array  # [B,H,W]
Memory = Any  # any pytree


class Dual(NamedTuple):
    """lambda R(D) = max_p <p, A D> - G*(p): what Chambolle-Pock works with. p is any pytree of maps."""

    operator: Callable[[Depth], Any]  # A
    adjoint: Callable[[Any], Depth]  # A^T
    prox: Callable[[Any, Array, Problem], Any]  # (p, sigma, problem) -> prox of sigma G* at p
    norm_squared: float  # |A|^2


class Prox(NamedTuple):
    """A proximal map with a memory and an energy. Called as a plain function it starts with a fresh memory."""

    # (params, z, problem, eta, memory) -> (depth, memory)
    apply: Callable[[Any, Depth, Problem, Array | float, Memory], tuple[Depth, Memory]]
    init: Callable[[Depth, Problem], Memory] = lambda z, problem: ()
    regularizer: Callable[[Depth, Problem], Array] | None = None  # R(D) as a map [B,H,W], without lambda
    dual: Dual | None = None

    def __call__(self, params: Any, z: Depth, problem: Problem, eta: Array | float) -> Depth:
        return self.apply(params, z, problem, eta, self.init(z, problem))[0]


PlainProx = Callable[[Any, Depth, Problem, Any], Depth]  # (params, z, problem, eta); eta a scalar or [B,H,W]


def as_prox(prox: Prox | PlainProx) -> Prox:
    """A plain function as a `Prox` without memory or energy; a `Prox` as it is."""
    if isinstance(prox, Prox):
        return prox
    return Prox(lambda params, z, problem, eta, memory: (prox(params, z, problem, eta), memory))


identity = Prox(
    lambda params, z, problem, eta, memory: (z, memory), regularizer=lambda depth, problem: jnp.zeros_like(depth)
)
"""R = 0: the prox of nothing."""


def box(low: float, high: float) -> Prox:
    """R = 0 inside [low, high] and infinite outside: the projection onto the interval."""

    def regularizer(depth: Depth, problem: Problem) -> Array:
        return jnp.where((depth >= low) & (depth <= high), 0.0, jnp.inf).astype(depth.dtype)

    return Prox(lambda params, z, problem, eta, memory: (jnp.clip(z, low, high), memory), regularizer=regularizer)
