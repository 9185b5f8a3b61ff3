"""The unroll as a config describes it: which prox, scheme, step size and regularization, and their parameters.

`params["prox"]` are the proximal network's (with a leading axis K if untied; absent for a closed form),
`params["unroll"]` has "shared" and "per_iteration": step size, regularization, and whatever a user's scheme brings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.config.own_code import working_directory_importable
from dff_jax.errors import ConfigError
from dff_jax.network.prox import NETWORKS, learned_prox, static_convolution
from dff_jax.types import Array
from dff_jax.unroll import (
    PROXES,
    SCHEMES,
    Problem,
    Prox,
    Scheme,
    Trace,
    inverse_softplus,
    learned_step,
    raw_step,
    resize_stack,
    softplus_step,
    solve,
    stack_init,
    step_from,
)
from dff_jax.unroll.hyperparameters import StepSize
from dff_jax.unroll.prox import PlainProx


class Unroll(NamedTuple):
    """What the estimator does with its problem."""

    init: Callable[[Array, Problem], dict[str, Any]]  # (key, problem) -> its part of the params
    solve: Callable[..., tuple[Array, Array | Trace | None]]  # (params, problem, D(0), K, return_history)
    regularization: Callable[[dict], Array]  # params -> lambda at the start


def build_unroll(config: Proximal) -> Unroll:
    """The unroll of `config`.

    Raises:
      ConfigError: no such scheme or prox, or two that do not go together.
    """
    prox, init_prox = _prox(config)
    factory, step_size = resolve(config.scheme, SCHEMES, "model.scheme"), _step_size(config)
    try:
        scheme = factory(prox)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.scheme: {config.scheme!r} with model.prox {config.prox!r}: {error}") from None
    if not isinstance(scheme, Scheme):
        raise ConfigError(f"model.scheme: {config.scheme!r} should return a dff_jax.unroll.Scheme, got {scheme!r}")
    K = max(1, config.num_iterations)

    def init(key: Array, problem: Problem) -> dict[str, Any]:
        k_prox, k_scheme = key, jax.random.fold_in(key, 1)
        params = {"unroll": _init_settings(config, *scheme.parameters(k_scheme, K))}
        if init_prox is not None:
            one = partial(init_prox, problem=problem)
            params["prox"] = one(k_prox) if config.tied else stack_init(one, k_prox, K)
        return params

    def solve_problem(
        params: dict, problem: Problem, d0: Array, num_iterations: int, return_history: bool | Literal["trace"]
    ) -> tuple[Array, Array | Trace | None]:
        shared, own = dict(params["unroll"]["shared"]), dict(params["unroll"]["per_iteration"])
        if "prox" in params:
            (shared if config.tied else own)["prox"] = params["prox"]
            if config.tied:  # once instead of in each iteration
                static = static_convolution(config, params["prox"], problem.context)
                problem = problem._replace(context=problem.context._replace(static=static))
        own = resize_stack(own, num_iterations) if own and num_iterations else None
        return solve(
            scheme, problem, d0, step_size=step_size, shared=shared, per_iteration=own, num_iterations=num_iterations,
            gradient=config.gradient, return_history=return_history,
        )  # fmt: skip

    def regularization(params: dict) -> Array:
        shared, own = params["unroll"]["shared"], params["unroll"]["per_iteration"]
        if "regularization" in shared:
            return jax.nn.softplus(shared["regularization"])
        if "regularization" in own:
            return jax.nn.softplus(own["regularization"][0])
        return jnp.asarray(config.regularization_init, jnp.float32)

    return Unroll(init, solve_problem, regularization)


def resolve(name: str, known: dict[str, Any], field: str) -> Any:
    """`known[name]`, or what `module:function` names.

    Raises:
      ConfigError: no such name (the choices are listed), module or function; the message names `field`.
    """
    if name in known:
        return known[name]
    module_name, _, function = name.partition(":")
    if not function:
        raise ConfigError(
            f"{field}: {name!r} is unknown; choose one of {', '.join(known)}, or name your own module:function"
        )
    try:
        with working_directory_importable():
            return getattr(importlib.import_module(module_name), function)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{field}: cannot load {name!r} ({type(error).__name__}: {error})") from None


def _prox(config: Proximal) -> tuple[Prox | PlainProx, Callable[..., Any] | None]:
    """The prox, and the initialisation (key, problem) -> params of one iteration; None where there are none."""
    if config.prox in NETWORKS:
        return learned_prox(config)
    found = resolve(config.prox, {**NETWORKS, **PROXES}, "model.prox")
    if not callable(found):
        raise ConfigError(f"model.prox: {config.prox!r} should be a function (params, z, problem, eta) or a Prox")
    prox: Any = found() if config.prox in PROXES else found
    return prox, None


def _step_size(config: Proximal) -> StepSize | float:
    """eta of an iteration; a scheme keeps a plain number stable."""
    if config.step_size == "constant":
        return config.step_size_init
    if config.step_size == "per_pixel":
        return step_from(lambda problem: problem.context.step_size, config.bounded_step)
    return learned_step if config.bounded_step else softplus_step


def _init_settings(config: Proximal, shared: dict[str, Any], own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scheme's own parameters, and eta and lambda where they are learned and the scheme has none of that name."""
    K = max(1, config.num_iterations)
    shared, own = jax.tree.map(jnp.asarray, (dict(shared), dict(own)))
    for leaf in jax.tree.leaves(own):
        if leaf.shape[:1] != (K,):
            raise ConfigError(
                f"model.scheme: {config.scheme!r} has a parameter per iteration of shape {leaf.shape}; "
                f"its first axis should be K = {K}"
            )
    for name, kind, raw_of, value in (
        ("step_size", config.step_size, partial(raw_step, bounded=config.bounded_step), config.step_size_init),
        ("regularization", config.regularization, inverse_softplus, config.regularization_init),
    ):
        if name in shared or name in own:
            continue
        if kind in ("learned", "learned_shared"):
            shared[name] = jnp.float32(raw_of(value))
        elif kind == "learned_per_iteration":
            own[name] = jnp.full((K,), raw_of(value), jnp.float32)
    return {"shared": shared, "per_iteration": own}
