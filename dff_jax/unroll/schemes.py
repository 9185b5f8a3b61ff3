"""Schemes: how one iterate follows from the last. After optax's GradientTransformation, a pair of pure functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.errors import ConfigError
from dff_jax.types import Array
from dff_jax.unroll.parameters import merge
from dff_jax.unroll.problem import EPS, Problem, gradient

Depth = Array  # [B,H,W]
Prox = Callable[[Any, Depth, Problem, Array], Depth]  # (params, z, problem, eta) -> depth
StepSize = Callable[[dict, Problem, Array], Array]  # (params, problem, k) -> eta, a scalar or [B,H,W]

STABLE = 1.0  # eta S < 2 converges; beyond 1 a step overshoots, and the iterates swing about the data term's minimum


class Scheme(NamedTuple):
    """An iteration. The state is any pytree.

    init(d0 [B,H,W], problem) -> state
    update((shared, own), state, problem, k) -> state     own: this iteration's slice, or None; k: 0, 1, ...
    depth(state) -> [B,H,W]
    """

    init: Callable[[Depth, Problem], Any]
    update: Callable[[tuple[Any, Any], Any, Problem, Array], Any]
    depth: Callable[[Any], Depth] = lambda state: state


def constant_step(eta: float) -> StepSize:
    """The same eta for every iteration."""
    return lambda params, problem, k: jnp.asarray(eta, problem.candidates.dtype)


def learned_step(params: dict, problem: Problem, k: Array) -> Array:
    """eta = softplus(params["step_size"]), kept below 1 / S pixel by pixel, so that no step overshoots; [B,H,W].

    The data term is diagonal, so a step size of its own for each pixel is a diagonal preconditioner.
    """
    return jnp.minimum(jax.nn.softplus(params["step_size"]), STABLE / jnp.maximum(problem.S, EPS))


def proximal_gradient(prox: Prox, step_size: StepSize | float = 0.5) -> Scheme:
    """Proximal gradient descent (9, 12):

        z = D(k-1) - eta_k (S D(k-1) - b)
        D(k) = prox_{eta_k lambda R}(z)

    For a convex R it converges for 0 < eta < 2 / max S, and the energy never rises for eta <= 1 / max S
    (Parikh and Boyd, Proximal Algorithms, 2014, section 4.2). State: D(k).

    Args:
      prox: called as prox(params["prox"], z, problem, eta) with problem.previous = D(k-1).
      step_size: a number, or a function of (params, problem, k).
    """
    step = step_size if callable(step_size) else constant_step(step_size)

    def update(params, depth, problem, k):
        params = merge(params)
        eta = step(params, problem, k)
        z = depth - eta * gradient(problem, depth)
        return prox(params.get("prox"), z, problem._replace(previous=depth), eta)

    return Scheme(init=lambda d0, problem: d0, update=update)


SCHEMES: dict[str, Callable[[Prox, StepSize], Scheme]] = {"proximal_gradient": proximal_gradient}


def resolve_scheme(name: str) -> Callable[[Prox, StepSize], Scheme]:
    """The scheme factory (prox, step_size) -> Scheme of that name, or a user's own as `module:function`.

    Raises:
      ConfigError: no such name (the choices are listed), module or function.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    module_name, _, function = name.partition(":")
    if not function:
        raise ConfigError(
            f"model.scheme: {name!r} is unknown; choose one of {', '.join(SCHEMES)}, or name your own module:function"
        )
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.scheme: cannot load {name!r} ({error})") from None
