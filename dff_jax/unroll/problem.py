"""The fusion problem and what follows from it.

    E(D) = 1/2 sum_i W_i^2 (D - D_i)^2 + lambda R(D)                                    (8, the half absorbs a 2)
    S = sum_i W_i^2,  b = sum_i W_i^2 D_i,  grad = S D - b                              (9, 10, 11)

The data term is diagonal: E(D) = 1/2 S (D - b/S)^2 + lambda R(D) + V, so its exact prox is (v + eta b)/(1 + eta S),
and gradient descent on it is stable for 0 < eta < 2 / max S. With softmax weights S = 1 and b = D(0): the first
gradient step does nothing, and later ones only pull back to D(0); then one exact prox of lambda R at D(0) solves the
whole problem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dff_jax.types import Array

EPS = 1e-6  # of the divisions by S


class Problem(NamedTuple):
    """Depth candidates to be fused, [B,H,W,N] (any leading shape works)."""

    candidates: Array  # [B,H,W,N] D_i
    weights: Array  # [B,H,W,N] W_i^2, >= 0
    regularization: Array | float = 0.1  # lambda, a scalar or [B,H,W] (or [B,1,1])
    context: Any = None  # what else the prox reads: features, a prior
    guide: Array | None = None  # [B,H,W] or [B,H,W,c], the image whose edges an edge-aware prox follows
    previous: Array | None = None  # [B,H,W] D(k-1), set by `solve` for the prox (12)

    @property
    def S(self) -> Array:
        """[B,H,W] total weight (10): with softplus or sigmoid weights, the confidence in the candidates."""
        return self.weights.sum(-1)

    @property
    def b(self) -> Array:
        """[B,H,W] weighted sum of the candidates (11)."""
        return (self.weights * self.candidates).sum(-1)


def check(problem: Problem, d0: Array) -> None:
    """Checks that a problem can be solved from d0 [B,H,W]: shapes always, values where they are known (outside `jit`).

    Raises:
      ValueError: names the field: shapes that do not fit, a weight or a lambda that is negative, values that are not
        finite.
    """
    shape = problem.candidates.shape
    if problem.weights.shape != shape:
        raise ValueError(f"problem.weights: {problem.weights.shape}; must have the candidates' shape {shape}")
    if jnp.shape(d0) != shape[:-1]:
        raise ValueError(f"d0: {jnp.shape(d0)}; must be a depth for candidates {shape}, so {shape[:-1]}")
    given = jnp.shape(problem.regularization)
    try:
        fits = np.broadcast_shapes(given, shape[:-1]) == shape[:-1]
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"problem.regularization: {given}; must be a number or a map that fits {shape[:-1]}")
    named = {"weights": problem.weights, "regularization": problem.regularization, "candidates": problem.candidates}
    for name, value in named.items():
        if isinstance(value, jax.Array) and (isinstance(value, Tracer) or not value.is_fully_addressable):
            continue
        known = np.asarray(value)  # NumPy: inside `jit` JAX would trace the look at a constant
        if not np.isfinite(known).all():
            raise ValueError(f"problem.{name}: has values that are not finite")
        if name != "candidates" and (known < 0).any():
            raise ValueError(f"problem.{name}: has negative values; must be 0 or more")


def initial_depth(problem: Problem) -> Array:
    """D(0) = b / max(S, eps), [B,H,W] (13): the minimiser of the data term."""
    return problem.b / jnp.maximum(problem.S, EPS)


def gradient(problem: Problem, depth: Array) -> Array:
    """S D - b, [B,H,W]: the gradient of the data term (9)."""
    return problem.S * depth - problem.b


def data_prox(problem: Problem, v: Array, eta: Array | float) -> Array:
    """(v + eta b) / (1 + eta S), [B,H,W]: the exact prox of eta times the data term, for any eta > 0."""
    return (v + eta * problem.b) / (1 + eta * problem.S)


def disagreement(problem: Problem) -> Array:
    """V = 1/2 (sum W_i^2 D_i^2 - b^2/S), [B,H,W], >= 0: what no depth can satisfy.

    Computed as 1/2 sum W_i^2 (D_i - D(0))^2, which is the same and does not cancel.
    """
    spread = problem.candidates - initial_depth(problem)[..., None]
    return 0.5 * (problem.weights * spread**2).sum(-1)


def data_energy(problem: Problem, depth: Array) -> Array:
    """1/2 sum_i W_i^2 (D - D_i)^2 per stack, [B]: the data term of (8)."""
    terms = problem.weights * (depth[..., None] - problem.candidates) ** 2
    return 0.5 * terms.sum((-3, -2, -1))


def prior_energy(problem: Problem, depth: Array, regularizer: Callable[[Array, Problem], Array]) -> Array:
    """lambda R(D) per stack, [B]; `regularizer(depth, problem)` is R as a map [B,H,W] (`Prox.regularizer`)."""
    return (problem.regularization * regularizer(depth, problem)).sum((-2, -1))


def energy(problem: Problem, depth: Array, regularizer: Callable[[Array, Problem], Array] | None = None) -> Array:
    """E(D) per stack, [B] (8): the data term, plus lambda R(D) where a regularizer is given."""
    total = data_energy(problem, depth)
    return total if regularizer is None else total + prior_energy(problem, depth, regularizer)
