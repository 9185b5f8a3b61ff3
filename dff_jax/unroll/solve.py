"""The solver: one `jax.lax.scan` over the iterations of a scheme."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array
from dff_jax.unroll.problem import Problem
from dff_jax.unroll.schemes import Scheme

Gradient = Literal["auto", "backprop", "remat"]


def solve(
    scheme: Scheme,
    problem: Problem,
    d0: Array,
    *,
    shared: Any = None,
    per_iteration: Any = None,
    num_iterations: int,
    gradient: Gradient = "auto",
    unroll: int | bool | None = None,
    return_history: bool = False,
) -> tuple[Array, Array | None]:
    """Runs K iterations of a scheme from d0.

    Args:
      scheme: what one iteration does.
      problem: candidates and weights [B,H,W,N], regularization, context.
      d0: [B,H,W] the start; `initial_depth(problem)` or any warm start.
      shared: parameters that every iteration uses.
      per_iteration: parameters with a leading axis K, of which each iteration sees its own slice; None if tied.
      num_iterations: K, static; 0 returns d0 as the scheme reads it.
      gradient: "remat" recomputes each step in the backward pass (memory of one step, whatever K), "backprop" keeps
        every step. "auto" is a rolled scan with "remat", except on CPU, where XLA runs convolution gradients inside
        a loop 3 to 13 times slower than unrolled and an unrolled scan keeps everything anyway.
      unroll: of the scan; None: chosen with `gradient` as above (True on CPU unless gradient="remat", else 1).
      return_history: also return D(1)..D(K).

    Returns:
      (depth [B,H,W], history [K,B,H,W] or None).

    Raises:
      ValueError: num_iterations is negative, or per_iteration's leading axis is not K (see `resize_stack`).
    """
    if num_iterations < 0:
        raise ValueError(f"num_iterations must be 0 or more, got {num_iterations}")
    for leaf in jax.tree.leaves(per_iteration):
        if leaf.shape[:1] != (num_iterations,):
            raise ValueError(
                f"per_iteration: a leaf has shape {leaf.shape}, its first axis should be K = {num_iterations}; "
                "resize_stack(params, K) makes it so"
            )
    on_cpu = jax.default_backend() == "cpu"
    if gradient == "auto":
        gradient = "backprop" if on_cpu else "remat"
    if unroll is None:
        unroll = True if on_cpu and gradient == "backprop" else 1

    def body(state, step):
        k, own = step
        state = scheme.update((shared, own), state, problem, k)
        return state, scheme.depth(state) if return_history else None

    if gradient == "remat":
        body = jax.checkpoint(body, prevent_cse=False)
    state = scheme.init(d0, problem)
    if num_iterations == 0:
        depth = scheme.depth(state)
        return depth, jnp.zeros((0, *depth.shape), depth.dtype) if return_history else None
    steps = (jnp.arange(num_iterations), per_iteration)
    state, history = lax.scan(body, state, steps, length=num_iterations, unroll=unroll)
    return scheme.depth(state), history
