"""Optimisation unrolled over depth candidates: the research surface. Pure JAX; imports no flax.

    problem = Problem(candidates, weights, regularization=0.1, context=anything)
    depth, history = solve(proximal_gradient(prox), problem, initial_depth(problem), step_size=0.5,
                           shared={"prox": params}, num_iterations=3)

A scheme is a tuple of pure functions; a prox is any `prox(params, z, problem, eta) -> depth`.
"""

from dff_jax.unroll.gradients import attach_implicit, contraction
from dff_jax.unroll.guide import guide_of
from dff_jax.unroll.guided_filter import guided_filter
from dff_jax.unroll.hyperparameters import (
    constant_step,
    inverse_softplus,
    learned_step,
    raw_step,
    softplus_step,
    stable,
    step_from,
)
from dff_jax.unroll.parameters import average_stack, repeat_shared, resize_stack, stack_init
from dff_jax.unroll.prior import align_prior, pull_to_prior
from dff_jax.unroll.problem import (
    Problem,
    data_energy,
    data_prox,
    disagreement,
    energy,
    gradient,
    initial_depth,
    prior_energy,
)
from dff_jax.unroll.prox import Dual, Prox, as_prox, box, identity
from dff_jax.unroll.schemes import (
    SCHEMES,
    Scheme,
    State,
    admm,
    chambolle_pock,
    exact_prox,
    fista,
    hqs,
    learned_gradient,
    proximal_gradient,
)
from dff_jax.unroll.solve import solve
from dff_jax.unroll.tikhonov import tikhonov
from dff_jax.unroll.total_variation import edge_tv, tv
from dff_jax.unroll.trace import Trace, energies

PROXES = {
    "identity": lambda: identity,
    "tikhonov": tikhonov,
    "tv": tv,
    "edge_tv": edge_tv,
    "guided_filter": guided_filter,
}
"""Closed-form proxes by name, as factories without arguments; for configurations."""

__all__ = [
    "Dual", "PROXES", "Problem", "Prox", "SCHEMES", "Scheme", "State", "Trace", "admm", "align_prior",
    "as_prox", "attach_implicit", "average_stack", "box", "chambolle_pock", "constant_step", "contraction",
    "data_energy", "data_prox", "disagreement", "edge_tv", "energies", "energy", "exact_prox", "fista",
    "gradient", "guide_of", "guided_filter", "hqs", "identity", "initial_depth", "inverse_softplus",
    "learned_gradient", "learned_step", "prior_energy", "proximal_gradient", "pull_to_prior", "raw_step",
    "repeat_shared", "resize_stack", "softplus_step", "solve", "stable", "stack_init", "step_from", "tikhonov", "tv",
]  # fmt: skip
