"""Optimisation unrolled over depth candidates: the research surface. Pure JAX; imports no flax.

    problem = Problem(candidates, weights, regularization=0.1, context=anything)
    scheme = proximal_gradient(prox, step_size=0.5)
    depth, history = solve(scheme, problem, initial_depth(problem), shared={"prox": params}, num_iterations=3)

A scheme is a pair of pure functions and a reader; a prox is any `prox(params, z, problem, eta) -> depth`.
"""

from dff_jax.unroll.parameters import merge, repeat_shared, resize_stack, stack_init
from dff_jax.unroll.problem import Problem, disagreement, energy, gradient, initial_depth
from dff_jax.unroll.prox import box, identity
from dff_jax.unroll.schemes import SCHEMES, Scheme, constant_step, learned_step, proximal_gradient, resolve_scheme
from dff_jax.unroll.solve import solve

__all__ = [
    "SCHEMES",
    "Problem",
    "Scheme",
    "box",
    "constant_step",
    "disagreement",
    "energy",
    "gradient",
    "identity",
    "initial_depth",
    "learned_step",
    "merge",
    "proximal_gradient",
    "repeat_shared",
    "resize_stack",
    "resolve_scheme",
    "solve",
    "stack_init",
]
