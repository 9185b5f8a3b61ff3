"""What a run of the solver reports beside its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array
from dff_jax.unroll.hyperparameters import Settings
from dff_jax.unroll.problem import Problem, data_energy, disagreement, prior_energy


class Trace(NamedTuple):
    """Every iterate and what is known of it. With a tolerance, entries beyond `num_steps` repeat the last."""

    depth: Array  # [K+1,B,H,W] D(0)..D(K)
    data_energy: Array  # [K+1,B] 1/2 sum W_i^2 (D - D_i)^2
    prior_energy: Array | None  # [K+1,B] lambda R(D); None: the prox has no energy
    residual: Array  # [K,B] root mean square of D(k) - D(k-1); 0 at a fixed point
    step_size: Array  # [K,B] mean of eta over the pixels
    data_share: Array  # [K,B] mean of eta S: 0 = the data term is ignored, 1 = every step starts again from D(0)
    disagreement: Array  # [B,H,W] V
    num_steps: Array  # [] int32, steps taken
    contraction: Array | None = None  # [] spectral radius of the last step (implicit or with a tolerance), an estimate


def make_trace(
    settings_at: Callable[[Array, Any], Settings],
    regularizer: Callable[[Array, Problem], Array] | None,
    problem: Problem,
    per_iteration: Any,
    depth: Array,
    num_steps: Array | int,
) -> Trace:
    """The trace of iterates [K+1,B,H,W], computed after the fact.

    Args:
      settings_at: (k, iteration k's own parameters) -> what the solver worked with.
      regularizer: R of the prox, if it has one.
      per_iteration: parameters with a leading axis K, or None.
    """
    K = depth.shape[0] - 1

    def used(one: tuple[Array, Any]) -> tuple[Array, Array, Array]:
        given = settings_at(*one)
        eta = jnp.broadcast_to(given.eta, depth.shape[1:])
        S = given.problem.S
        return eta.mean((-2, -1)), (eta * S).mean((-2, -1)), jnp.asarray(given.problem.regularization)

    if K:
        step, share, weights = lax.map(used, (jnp.arange(K), per_iteration))
        weights = jnp.concatenate([weights[:1], weights])  # D(0) is judged by the first iteration's lambda
    else:
        step = share = jnp.zeros((0, *depth.shape[1:-2]), depth.dtype)
        weights = jnp.asarray(problem.regularization)[None]
    prior = None
    if regularizer is not None:

        def prior_at(one: tuple[Array, Array]) -> Array:
            return prior_energy(problem._replace(regularization=one[0]), one[1], regularizer)

        prior = lax.map(prior_at, (weights, depth))
    return Trace(
        depth=depth,
        data_energy=lax.map(lambda d: data_energy(problem, d), depth),
        prior_energy=prior,
        residual=jnp.sqrt(jnp.square(jnp.diff(depth, axis=0)).mean((-2, -1))),
        step_size=step,
        data_share=share,
        disagreement=disagreement(problem),
        num_steps=jnp.asarray(num_steps, jnp.int32),
    )


def energies(trace: Trace) -> Array:
    """E(D(k)), [K+1,B]: data, and prior where it is known."""
    return trace.data_energy if trace.prior_energy is None else trace.data_energy + trace.prior_energy
