"""A pull towards a depth known from elsewhere: a monocular network, a coarse sensor, yesterday's map.

R(D) = 1/2 sum_x c(x) (D - prior)^2, whose prox is the mean (z + tau c prior) / (1 + tau c) with tau = eta lambda.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from dff_jax.types import Array
from dff_jax.unroll.problem import Problem
from dff_jax.unroll.prox import Prox

FLAT = 1e-10  # variance over mean square, below which a prior counts as constant (float32 rounding is 1e-14)

Read = Callable[[Problem], Array]


def pull_to_prior(read: Read, weight: Read | None = None, align: bool = False) -> Prox:
    """The prox of 1/2 c (D - prior)^2, exact for any eta and lambda, scalars or maps.

    Args:
      read: problem -> prior [...,H,W], in the candidates' unit (or any, with align).
      weight: problem -> c [...,H,W] >= 0, the trust in the prior; 1 if None.
      align: first fit the prior to the candidates, as monocular depth is known only up to scale and shift
        (`align_prior`).
    """

    def prior_of(problem):
        prior = read(problem)
        return align_prior(prior, problem) if align else prior

    def apply(params, z, problem, eta, memory):
        tau = eta * problem.regularization
        pull = tau if weight is None else tau * weight(problem)
        return (z + pull * prior_of(problem)) / (1 + pull), memory

    def regularizer(depth, problem):
        squared = 0.5 * (depth - prior_of(problem)) ** 2
        return squared if weight is None else weight(problem) * squared

    return Prox(apply, regularizer=regularizer)


def align_prior(prior: Array, problem: Problem) -> Array:
    """scale * prior + shift, [...,H,W]: the least-squares fit to b/S with weights S, one pair of numbers a stack.

        min over (scale, shift) of sum_x S (scale prior + shift - b/S)^2,   scale = cov_S(prior, b/S) / var_S(prior)

    The scale may be negative (an inverse depth). A constant prior becomes the mean of b/S; without any weight S in a
    stack its prior stays as it is.
    """

    def total(x):
        return x.sum((-2, -1), keepdims=True)

    S, b = problem.S, problem.b
    weight = total(S)
    known = weight > 0
    weight = jnp.where(known, weight, 1)
    centre, target = total(S * prior) / weight, total(b) / weight
    offset = prior - centre
    variance = total(S * offset**2) / weight
    covariance = total((b - S * target) * offset) / weight  # S (b/S - target), without the division
    varies = variance > FLAT * total(S * prior**2) / weight
    scale = jnp.where(varies, covariance / jnp.where(varies, variance, 1), 0)
    return jnp.where(known, scale * offset + target, prior)
