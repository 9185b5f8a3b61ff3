"""The unroll as a config describes it: which prox, scheme, step size and regularization, and their parameters.

`params["prox"]` are the proximal network's (with a leading axis K if untied; absent for a closed form),
`params["unroll"]` has "shared" and "per_iteration": step size, regularization, and whatever a user's scheme brings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.errors import ConfigError
from dff_jax.network.layers import Conv
from dff_jax.network.prox import GatedProximalNetwork
from dff_jax.network.recurrent import RecurrentUpdate
from dff_jax.network.residual import ResidualCnn
from dff_jax.types import Array
from dff_jax.unroll import (
    PROXES,
    SCHEMES,
    Problem,
    Prox,
    Scheme,
    Trace,
    initial_depth,
    inverse_softplus,
    learned_step,
    raw_step,
    resize_stack,
    solve,
    stack_init,
    step_from,
)
from dff_jax.unroll.hyperparameters import StepSize
from dff_jax.unroll.prox import PlainProx

LOOKUP_REACH = 2  # planes to each side of the present depth

NETWORKS = {"gated_unet": GatedProximalNetwork, "residual_cnn": ResidualCnn, "gru": RecurrentUpdate}


class Context(NamedTuple):
    """What a prox may look at beside the depth, as `problem.context`."""

    features: Array  # [B,H,W,c] F (and the guide)
    confidence: Array | None = None  # [B,H,W,2] S and the candidates' disagreement at unit scale
    evidence: Array | None = None  # [B,H,W,C] log P over planes uniform in t, at unit scale, to be looked up
    step_size: Array | None = None  # [B,H,W] predicted, before its softplus
    hidden: Array | None = None  # [B,H,W,n] with which a recurrent prox starts
    heard: Array | None = None  # [B,H,W,n] what the prox's first convolution makes of all that no iteration changes


class Unroll(NamedTuple):
    """What the estimator does with its problem."""

    init: Callable[[Array, Problem], dict[str, Any]]  # (key, problem) -> its part of the params
    solve: Callable[..., tuple[Array, Array | Trace | None]]  # (params, problem, K, return_history) as unroll.solve
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
            one = lambda key: init_prox(key, problem)  # noqa: E731
            params["prox"] = one(k_prox) if config.tied else stack_init(one, k_prox, K)
        return params

    def run(params: dict, problem: Problem, num_iterations: int, return_history: Any) -> tuple[Array, Any]:
        shared, own = dict(params["unroll"]["shared"]), dict(params["unroll"]["per_iteration"])
        if "prox" in params:
            (shared if config.tied else own)["prox"] = params["prox"]
            if config.tied and config.prox == "gated_unet":
                context = problem.context._replace(heard=_hear(config, params["prox"], problem.context))
                problem = problem._replace(context=context)
        own = resize_stack(own, num_iterations) if own and num_iterations else None
        return solve(
            scheme, problem, initial_depth(problem), step_size=step_size, shared=shared, per_iteration=own,
            num_iterations=num_iterations, gradient=config.gradient, return_history=return_history,
        )  # fmt: skip

    def regularization(params: dict) -> Array:
        shared, own = params["unroll"]["shared"], params["unroll"]["per_iteration"]
        if "regularization" in shared:
            return jax.nn.softplus(shared["regularization"])
        if "regularization" in own:
            return jax.nn.softplus(own["regularization"][0])
        return jnp.asarray(config.regularization_init, jnp.float32)

    return Unroll(init, run, regularization)


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
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: cannot load {name!r} ({error})") from None


def _prox(config: Proximal) -> tuple[Prox | PlainProx, Callable[[Array, Problem], Any] | None]:
    """The prox, and the initialisation (key, problem) -> params of one iteration; None where there are none."""
    if config.prox in NETWORKS:
        return _network(config)
    found = resolve(config.prox, NETWORKS | PROXES, "model.prox")
    if not callable(found):
        raise ConfigError(f"model.prox: {config.prox!r} should be a function (params, z, problem, eta) or a Prox")
    return (found() if config.prox in PROXES else found), None


def _network(config: Proximal) -> tuple[Prox, Callable[[Array, Problem], Any]]:
    """P(cat(z, F, eta, lambda, D(k-1))) (12, 17): a direct answer, or a correction to z."""
    net, recurrent = NETWORKS[config.prox](config), config.prox == "gru"

    def moving(z: Array, problem: Problem, eta: Array) -> list[Array]:
        """What an iteration changes: z, eta, lambda, D(k-1) and what F says there."""

        def flat(value: Array) -> Array:
            value = value if jnp.ndim(value) == z.ndim else jnp.reshape(value, (1,) * z.ndim)
            return jnp.broadcast_to(value, z.shape)[..., None]

        evidence = problem.context.evidence
        seen = [flat(z), flat(eta), flat(problem.regularization), flat(problem.previous)]
        return seen if evidence is None else [*seen, look_up(evidence, problem.previous)]

    def look(z: Array, problem: Problem, eta: Array) -> Array:
        (first, *rest), (features, *confidence) = moving(z, problem, eta), _fixed(problem.context)
        return jnp.concatenate([first, features, *rest[:3], *confidence, *rest[3:]], -1)  # z, F, eta, lambda, D, ...

    def apply(params: Any, z: Array, problem: Problem, eta: Array, memory: Any) -> tuple[Array, Any]:
        heard = problem.context.heard
        if heard is not None:
            inputs = jnp.concatenate(moving(z, problem, eta), -1).astype(config.dtype)
            answer = net.apply({"params": _split(params, problem.context)[1]}, inputs, heard)
        elif recurrent:
            inputs = look(z, problem, eta).astype(config.dtype)
            answer, memory = net.apply({"params": params}, inputs, memory.astype(config.dtype))
            memory = memory.astype(jnp.float32)
        else:
            answer = net.apply({"params": params}, look(z, problem, eta).astype(config.dtype))
        answer = answer.astype(jnp.float32)
        return (z + answer if config.prox_output == "residual" else answer), memory

    def start(z: Array, problem: Problem) -> Any:
        return problem.context.hidden if recurrent else ()

    def init(key: Array, problem: Problem) -> Any:
        z = initial_depth(problem)
        inputs = look(z, problem._replace(previous=z), jnp.zeros(()))
        return net.init(key, inputs, *([start(z, problem)] if recurrent else []))["params"]

    return Prox(apply, start), init


def _fixed(context: Context) -> list[Array]:
    return [context.features] if context.confidence is None else [context.features, context.confidence]


def _split(params: dict, context: Context) -> tuple[Array, dict]:
    """The first convolution's kernel for the inputs that stay, and `params` with only that for those that change."""
    outer = params["phi1"]["Conv_0"]
    kernel, c = outer["Conv_0"]["kernel"], context.features.shape[-1]
    n = 0 if context.confidence is None else context.confidence.shape[-1]
    fixed = jnp.concatenate([kernel[:, :, 1 : 1 + c], kernel[:, :, 4 + c : 4 + c + n]], 2)
    rest = jnp.concatenate([kernel[:, :, :1], kernel[:, :, 1 + c : 4 + c], kernel[:, :, 4 + c + n :]], 2)
    outer = outer | {"Conv_0": outer["Conv_0"] | {"kernel": rest}}
    return fixed, params | {"phi1": params["phi1"] | {"Conv_0": outer}}


def _hear(config: Proximal, params: dict, context: Context) -> Array:
    """conv(cat(a, b)) = conv(a) + conv(b): the part of the prox's first convolution that is the same in each iteration,
    once instead of K times."""
    kernel, _ = _split(params, context)
    inputs = jnp.concatenate(_fixed(context), -1).astype(config.dtype)
    return Conv(kernel.shape[-1], use_bias=False).apply({"params": {"Conv_0": {"kernel": kernel}}}, inputs)


def look_up(evidence: Array, t: Array) -> Array:
    """Evidence [B,H,W,C] over planes uniform in [0,1], read at t [B,H,W] and one and two planes to both sides.

    [B,H,W,2 LOOKUP_REACH + 1], by linear interpolation, the ends held. A network that sees F and D side by side would
    have to learn this product; RAFT (Teed and Deng, ECCV 2020) looks its correlation volume up so in each iteration.
    """
    last = evidence.shape[-1] - 1
    at = jnp.arange(last + 1.0).reshape((1,) * t.ndim + (-1,))

    def read(offset: int) -> Array:
        position = jnp.clip(t * last + offset, 0, last)
        return (evidence * jnp.maximum(0, 1 - jnp.abs(at - position[..., None]))).sum(-1)

    return jnp.stack([read(offset) for offset in range(-LOOKUP_REACH, LOOKUP_REACH + 1)], -1)


def _step_size(config: Proximal) -> StepSize | float:
    """eta of an iteration; a scheme keeps a plain number stable."""
    if config.step_size == "constant":
        return config.step_size_init
    if config.step_size == "per_pixel":
        return step_from(lambda problem: problem.context.step_size)
    return learned_step


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
        ("step_size", config.step_size, raw_step, config.step_size_init),
        ("regularization", config.regularization, inverse_softplus, config.regularization_init),
    ):
        if name in shared or name in own:
            continue
        if kind in ("learned", "learned_shared"):
            shared[name] = jnp.float32(raw_of(value))
        elif kind == "learned_per_iteration":
            own[name] = jnp.full((K,), raw_of(value), jnp.float32)
    return {"shared": shared, "per_iteration": own}
