"""What a run of the solver tells beside its answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dff_jax import extent
from dff_jax.types import Array
from dff_jax.unroll.hyperparameters import settings
from dff_jax.unroll.problem import Problem, data_energy, disagreement, prior_energy
from dff_jax.unroll.schemes import Scheme


class Trace(NamedTuple):
    """Every iterate and what is known of it. With a tolerance, entries beyond `num_steps` repeat the last."""

    depth: Array  # [K+1,B,H,W] D(0)..D(K)
    data_energy: Array  # [K+1,B] 1/2 sum W_i^2 (D - D_i)^2
    prior_energy: Array | None  # [K+1,B] lambda R(D); None: the prox has no energy
    residual: Array  # [K,B] root mean square of D(k) - D(k-1); 0 at a fixed point
    step_size: Array | None  # [K,B] mean of eta over the pixels; None: the scheme does not tell
    data_share: Array | None  # [K,B] mean of eta S: 0, the data term is not heard; 1, each step starts at D(0) anew
    disagreement: Array  # [B,H,W] V
    num_steps: Array  # [] int32, steps taken
    contraction: Array | None = None  # [] spectral radius of the last step (implicit or with a tolerance), an estimate


def make_trace(
    scheme: Scheme, problem: Problem, shared: Any, per_iteration: Any, depth: Array, num_steps: Array
) -> Trace:
    """The trace of iterates [K+1,B,H,W], computed after the fact."""
    K = depth.shape[0] - 1
    index = jnp.arange(K)
    prior = step = share = None
    if scheme.step_size is not None:

        def told(one):
            k, own = one
            given = settings((shared, own), problem, k, scheme.step_size)
            eta = jnp.broadcast_to(given.eta, depth.shape[1:])
            return extent.mean(eta), extent.mean(eta * problem.S), given.problem.regularization

        if K:
            step, share, regularization = lax.map(told, (index, per_iteration))
        else:
            step = share = jnp.zeros((0, *depth.shape[1:-2]), depth.dtype)
            regularization = jnp.zeros((0,))
        if scheme.regularizer is not None:
            first = regularization[:1] if K else jnp.asarray(problem.regularization)[None]

            def prior_at(one):
                weight, d = one
                return prior_energy(problem._replace(regularization=weight), d, scheme.regularizer)

            prior = lax.map(prior_at, (jnp.concatenate([first, regularization]) if K else first, depth))
    return Trace(
        depth=depth,
        data_energy=lax.map(lambda d: data_energy(problem, d), depth),
        prior_energy=prior,
        residual=jnp.sqrt(extent.mean(jnp.square(jnp.diff(depth, axis=0)))),
        step_size=step,
        data_share=share,
        disagreement=disagreement(problem),
        num_steps=jnp.asarray(num_steps, jnp.int32),
    )


def energies(trace: Trace) -> Array:
    """E(D(k)), [K+1,B]: data, and prior where it is known."""
    return trace.data_energy if trace.prior_energy is None else trace.data_energy + trace.prior_energy


def stop_gradient(trace: Trace) -> Trace:
    """A trace that sends no gradients back."""
    return jax.tree.map(lax.stop_gradient, trace)
