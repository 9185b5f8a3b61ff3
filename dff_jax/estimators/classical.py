"""Depth without training, by the same solver as the networks: focus measures propose, total variation disposes.

Three focus measures at three scales give the candidates D_i (6), the sharpness of their peaks the weights W_i^2 (14),
edge-weighted total variation the prox, and `unroll.solve` the depth, in the working coordinate t.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from dff_jax import focus_axis
from dff_jax.classical import (
    REACH,
    candidate_weights,
    propose,
    sharp_composite,
    squared_excess,
)
from dff_jax.types import Array, Estimator, History, Prediction, Variables
from dff_jax.unroll import Problem, Trace, disagreement, edge_tv, initial_depth, proximal_gradient, solve

NUM_ITERATIONS = 3
LAMBDA = 0.01
LEAST_S = 0.02  # of S in the step size: caps the steps where nothing is known
SHARPNESS = 30.0  # of the edges in the guide
DUAL_STEPS = 40  # in each iteration


def step_size(params: dict, problem: Problem, k: Array) -> Array:
    """eta = 1 / max(S, LEAST_S), pixel by pixel, [B,H,W].

    This is a diagonal metric, in which the prox works too. eta S <= 1 everywhere, so the energy never rises. Where S is
    above the floor the data step is exact, and the iterations go on with the dual variable of total variation.
    """
    return 1 / jnp.maximum(problem.S, LEAST_S)


def classical(num_iterations: int = NUM_ITERATIONS, regularization: float = LAMBDA) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    Args:
      num_iterations: K where `apply` is not told.
      regularization: lambda, for depth in the working coordinate and weights of 1 at most together.
    """
    scheme = proximal_gradient(edge_tv(sharpness=SHARPNESS, iterations=DUAL_STEPS))
    default_iterations = num_iterations

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        return {"params": {}, "batch_stats": {}}

    def global_statistics(frames: Array, focus: Array) -> Array:
        return squared_excess(propose(frames, focus_axis.to_unit_coordinate(focus, focus))[1])

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, dict]:
        K = default_iterations if num_iterations is None else num_iterations
        t = focus_axis.to_unit_coordinate(focus, focus)
        first, candidates = propose(frames, t)
        reach = jnp.full_like(first[:, :1, :1], REACH)
        weights = candidate_weights(candidates, reach, variables.get("global_statistics"))
        problem = Problem(candidates.depth, weights, regularization)
        sharp = sharp_composite(frames, initial_depth(problem), t)
        problem = problem._replace(guide=sharp)
        depth, trace = solve(
            scheme, problem, initial_depth(problem), step_size=step_size, num_iterations=K, return_history="trace"
        )
        assert isinstance(trace, Trace)

        to_q = partial(focus_axis.from_unit_coordinate, focus=focus)
        history = History(
            expected=to_q(first),
            candidates=to_q(candidates.depth),
            weights=weights,
            iterates=to_q(jnp.moveaxis(trace.depth, 0, 1)),
            refined=jnp.zeros((depth.shape[0], 0, *depth.shape[1:]), depth.dtype),
            trace=trace,
        )
        return Prediction(
            depth=to_q(depth),
            confidence=jnp.sqrt(jnp.minimum(problem.S, 1.0)),
            disagreement=disagreement(problem) * jnp.square(focus_axis.span(focus))[:, None, None],
            all_in_focus=sharp_composite(frames, depth, t),
            history=history,
        ), {}

    return Estimator(init, apply, global_statistics)
