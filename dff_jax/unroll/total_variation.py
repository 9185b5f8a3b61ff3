"""Isotropic total variation, plain or weighted by the edges of a guide image.

    R(D) = sum_x g(x) |grad D(x)|,   grad by forward differences, g = 1 or a weight >= 0

Its prox in the metric 1/eta is solved in the dual (Chambolle 2004), with one vector p(x) a pixel:

    D = z - eta A^T p,   p = argmin 1/2 |z - eta A^T p|^2_{1/eta}  subject to |p(x)| <= lambda(x) g(x),   A = grad

by fast gradient projection (Beck and Teboulle, Fast gradient-based algorithms for constrained total variation image
denoising, IEEE TIP 18, 2009, algorithm FGP). The gradient there is -A D. Where eta is a map, each p(x) has a step size
of its own, 1/m with m = 4 (eta(x) + max eta of the two neighbours), as

    |A^T p|^2_eta = sum_x eta(x) (sum of the <= 4 differences that meet x)^2 <= sum_j 4 (eta(x_j) + eta(x'_j)) p_j^2

so that a large eta in one place does not slow down the others. For one eta, m = 8 eta, the usual bound.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dff_jax.types import Array
from dff_jax.unroll.differences import NORM_SQUARED, Pair, adjoint, forward, squared_length
from dff_jax.unroll.guide import as_channels, edge_weight, guide_of, length
from dff_jax.unroll.problem import Problem
from dff_jax.unroll.prox import Dual, Prox

Weight = Callable[[Problem], Array]  # -> g [...,H,W] >= 0

LEAST_POWER = 0.4  # of the smallest float: squared dual vectors count as at least that, so that x^-2.5 is finite
SMALLEST_STEP = 1e-12  # of eta in the denominator, for eta = 0


def tv(iterations: int = 30, warm_start: bool = True, weight: Weight | None = None) -> Prox:
    """The prox of weighted isotropic total variation: piecewise flat depth with free edges.

    lambda = 0 gives z exactly; a constant image stays. Differentiable in z, lambda, eta and what the weight reads, by
    passing back through the iterations.

    Args:
      iterations: dual steps in each call, static. Information moves a pixel a step; the distance to the exact prox
        falls like 1/iterations^2 in the dual energy.
      warm_start: keep p as the prox memory from call to call (momentum starts afresh, so that it is safe): an outer
        scheme then reaches the exact fixed point with few iterations a call.
      weight: problem -> g [...,H,W], multiplies lambda.

    Raises:
      ValueError: iterations is below 1.
    """
    if iterations < 1:
        raise ValueError(f"tv: iterations must be at least 1, got {iterations}")
    momentum = _momentum(iterations)

    def radius(problem: Problem, dtype: np.dtype) -> Array:
        bound = jnp.asarray(problem.regularization, dtype)
        return bound if weight is None else bound * weight(problem).astype(dtype)

    def apply(params, z, problem, eta, memory):
        eta = jnp.broadcast_to(jnp.asarray(eta, z.dtype), z.shape)
        bound = radius(problem, z.dtype)
        step = 1 / jnp.maximum(_majorizer(eta), SMALLEST_STEP)

        def body(carry, beta):
            p, ahead = carry
            slope = forward(z - eta * adjoint(ahead))
            new = project(jax.tree.map(lambda a, s: a + step * s, ahead, slope), bound)
            return (new, jax.tree.map(lambda n, o: n + beta * (n - o), new, p)), None

        p = project(memory, bound) if warm_start else _zeros(z)  # lambda may have changed since
        (p, _), _ = lax.scan(body, (p, p), jnp.asarray(momentum, z.dtype))
        return z - eta * adjoint(p), p if warm_start else memory

    def init(z, problem):
        return _zeros(z) if warm_start else ()

    def regularizer(depth, problem):
        slope = length(squared_length(forward(depth)))
        return slope if weight is None else slope * weight(problem).astype(depth.dtype)

    def dual_prox(p, sigma, problem):
        return project(p, radius(problem, p[0].dtype))

    return Prox(apply, init, regularizer, Dual(forward, adjoint, dual_prox, NORM_SQUARED))


def edge_tv(guide: Weight = guide_of, sharpness: float = 10.0, iterations: int = 30, warm_start: bool = True) -> Prox:
    """Total variation that is weaker where the guide has an edge: g = exp(-sharpness |grad guide|).

    Args:
      guide: problem -> image [...,H,W] or [...,H,W,c]; `guide_of` takes `problem.guide`.
      sharpness: in units of 1/(guide value per pixel); 10 for images in [0, 1]: an edge of 0.1 leaves 37 %.
      iterations, warm_start: as in `tv`.

    Raises:
      ValueError: there is no guide, or it has another size than the depth.
    """
    return tv(iterations, warm_start, lambda problem: edge_weight(as_channels(guide(problem), problem), sharpness))


def project(p: Pair, bound: Array) -> Pair:
    """p onto |p(x)| <= bound(x); bound a scalar or broadcastable to [...,H,W]."""
    squared = squared_length(p)
    least = float(jnp.finfo(squared.dtype).tiny) ** LEAST_POWER
    shrink = jnp.minimum(1, bound * lax.rsqrt(jnp.maximum(squared, least)))
    return p[0] * shrink, p[1] * shrink


def _zeros(z: Array) -> Pair:
    return jnp.zeros_like(z), jnp.zeros_like(z)


def _majorizer(eta: Array) -> Array:
    """4 (eta(x) + max(eta below, eta to the right)), [...,H,W]."""
    below = jnp.concatenate([eta[..., 1:, :], eta[..., -1:, :]], -2)
    right = jnp.concatenate([eta[..., :, 1:], eta[..., :, -1:]], -1)
    return NORM_SQUARED / 2 * (eta + jnp.maximum(below, right))


def _momentum(iterations: int) -> np.ndarray:
    """(t_k - 1) / t_{k+1} with t_1 = 1, t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2; [iterations]."""
    t, factors = 1.0, []
    for _ in range(iterations):
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        factors.append((t - 1) / after)
        t = after
    return np.array(factors)
