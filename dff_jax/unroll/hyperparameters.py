"""Step size eta and regularization lambda of an iteration: constant, learned, or predicted pixel by pixel.

Three names in `shared` or `per_iteration` have a meaning: `prox` (what the prox gets as its params), `step_size` and
`regularization` (raw numbers; lambda is the softplus; so is eta by `softplus_step`, and `learned_step` keeps it stable
besides). In `shared` they serve every iteration, in `per_iteration` each its own; beyond the K they were trained for
the last one repeats (`resize_stack`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.types import Array
from dff_jax.unroll.problem import Problem

StepSize = Callable[[dict[str, Any], Problem, Array], Array]  # (params, problem, k) -> eta, a scalar or [B,H,W]


class Settings(NamedTuple):
    """What one iteration works with."""

    params: dict[str, Any]  # shared and own, merged
    problem: Problem  # with this iteration's lambda
    eta: Array  # scalar or [B,H,W]


def settings(shared: Any, own: Any, problem: Problem, k: Array, step_size: StepSize) -> Settings:
    """Parameters, lambda and eta of iteration k. Its own parameters win over the shared ones; either may be None."""
    params = {**(shared or {}), **(own or {})}
    if "regularization" in params:
        problem = problem._replace(regularization=jax.nn.softplus(params["regularization"]))
    return Settings(params, problem, step_size(params, problem, k))


def as_step_size(step_size: StepSize | float) -> StepSize:
    """A number as a constant step; a function as it is."""
    return step_size if callable(step_size) else constant_step(step_size)


def at_most(limit: float) -> Callable[[StepSize | float], StepSize]:
    """The step rule of a scheme that diverges beyond limit / max S: lowers a number to that, for each stack on its own.

    A function stays as it is.
    """

    def rule(step_size: StepSize | float) -> StepSize:
        if callable(step_size):
            return step_size
        return lambda params, problem, k: jnp.minimum(step_size, limit / problem.S.max((-2, -1), keepdims=True))

    return rule


def constant_step(eta: float) -> StepSize:
    """The same eta for every iteration, whatever S. The caller sees to it that it is stable."""
    return lambda params, problem, k: jnp.asarray(eta, problem.candidates.dtype)


def stable(u: Array, problem: Problem) -> Array:
    """eta = u / (1 + u S), [B,H,W], for any u > 0: below 1 / S in every pixel, so that no step overshoots.

    With it a gradient step is the exact prox of u times the data term, (D + u b) / (1 + u S). The bound is smooth,
    because beyond a hard one every step would start again from D(0), and S would get no gradient. The data term is
    diagonal, so a step size for each pixel is a diagonal preconditioner.
    """
    return u / (1 + u * problem.S)


def learned_step(params: dict[str, Any], problem: Problem, k: Array) -> Array:
    """eta = stable(softplus(params["step_size"])), [B,H,W]. Learned once, or per iteration, by where it lies."""
    return stable(jax.nn.softplus(params["step_size"]), problem)


def softplus_step(params: dict[str, Any], problem: Problem, k: Array) -> Array:
    """eta = softplus(params["step_size"]), whatever S: as the paper has it. Nothing keeps it below 2 / max S."""
    return jax.nn.softplus(params["step_size"])


def step_from(read: Callable[[Problem], Array], bounded: bool = True) -> StepSize:
    """eta = stable(softplus(read(problem))), [B,H,W]: predicted pixel by pixel, wherever the context has it. Not
    `bounded`, it is the softplus alone."""

    def step(params: dict[str, Any], problem: Problem, k: Array) -> Array:
        u = jax.nn.softplus(read(problem))
        return stable(u, problem) if bounded else u

    return step


def raw_step(eta: float, bounded: bool = True) -> float:
    """The raw number from which `learned_step` makes `eta` where S = 1, 0 < eta < 1; or, not `bounded`,
    `softplus_step` everywhere."""
    return inverse_softplus(eta / (1 - eta) if bounded else eta)


def inverse_softplus(value: float) -> float:
    """The raw number whose softplus is `value` > 0."""
    return math.log(math.expm1(value))
