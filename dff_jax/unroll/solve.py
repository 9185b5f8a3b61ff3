"""The solver: one `jax.lax.scan` over the iterations of a scheme, or a `while_loop` that stops early."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array
from dff_jax.unroll.gradients import attach_implicit, contraction, parse_mode
from dff_jax.unroll.hyperparameters import StepSize, settings
from dff_jax.unroll.problem import Problem
from dff_jax.unroll.schemes import Scheme
from dff_jax.unroll.trace import Trace, make_trace

MOST_UNROLLED = 16  # iterations that are unrolled on CPU by default; beyond, compilation would take too long


def solve(
    scheme: Scheme,
    problem: Problem,
    d0: Array,
    *,
    step_size: StepSize | float = 0.5,
    shared: Any = None,
    per_iteration: Any = None,
    num_iterations: int,
    tolerance: float | None = None,
    gradient: str = "auto",
    unroll: int | bool | None = None,
    return_history: bool | Literal["trace"] = False,
) -> tuple[Array, Array | Trace | None]:
    """Runs K iterations of a scheme from d0.

    Args:
      scheme: what one iteration does.
      problem: candidates and weights [B,H,W,N], regularization, context.
      d0: [B,H,W] the start; `initial_depth(problem)` or any warm start.
      step_size: eta, a number or a function of (params, problem, k). Some schemes lower a number or let it fall over k.
      shared: parameters that every iteration uses.
      per_iteration: parameters with a leading axis K, of which each iteration sees its own slice; None if tied.
      num_iterations: K, static; 0 returns d0 as the scheme reads it.
      tolerance: stop after the first step that moves no pixel of the batch by more than this (in the candidates'
        unit), K at the latest. The trace says after how many.
      gradient: how gradients pass (`gradients`).
        "backprop" keeps every step; "remat" recomputes each in the backward pass (memory of one step, whatever K);
        "truncated(n)" passes through the last n steps, the ones before count as constant; "jacobian_free" is
        truncated(1); "implicit" takes D(K) for a fixed point of the last step.
        "auto": "remat" in a rolled scan, except on CPU, where XLA runs convolution gradients inside a loop 3 to 13
        times slower than unrolled and an unrolled scan keeps everything anyway: "backprop". With a tolerance:
        "implicit", as a while_loop cannot be back-propagated.
      unroll: of the scan; None: True on CPU for K <= 16 unless gradient="remat", else 1.
      return_history: True: also return D(1)..D(K); "trace": a `Trace` (energies, residuals, step sizes).

    Returns:
      (depth [B,H,W], history [K,B,H,W], Trace or None).

    Raises:
      ValueError: num_iterations is negative, per_iteration's leading axis is not K (see `resize_stack`), an unknown
        gradient mode, or one that a tolerance excludes.
    """
    K = num_iterations
    if K < 0:
        raise ValueError(f"num_iterations must be 0 or more, got {K}")
    for leaf in jax.tree.leaves(per_iteration):
        if leaf.shape[:1] != (K,):
            raise ValueError(
                f"per_iteration: a leaf has shape {leaf.shape}, its first axis should be K = {K}; "
                "resize_stack(params, K) makes it so"
            )
    on_cpu = jax.default_backend() == "cpu"
    mode, last = parse_mode(gradient)
    if mode == "auto":
        mode = "implicit" if tolerance is not None else "backprop" if on_cpu else "remat"
    if tolerance is not None and mode not in ("implicit", "truncated"):
        raise ValueError(f"gradient: {gradient} needs a fixed number of steps; with a tolerance use implicit")
    if tolerance is not None and last > 1:
        raise ValueError(f"gradient: {gradient} with a tolerance; use jacobian_free or implicit")
    if unroll is None:
        unroll = True if on_cpu and mode != "remat" and K <= MOST_UNROLLED else 1

    step_size = scheme.step_rule(step_size)

    def step(state, theta):
        shared, own, problem, k = theta
        params, problem, eta = settings((shared, own), problem, k, step_size)
        return scheme.update(params, state, problem._replace(previous=scheme.depth(state)), eta)

    def run(state, shared, problem, start, stop):
        """Steps start..stop-1; the state and the iterates."""

        def body(state, one):
            k, own = one
            state = step(state, (shared, own, problem, k))
            return state, scheme.depth(state) if return_history else None

        if mode == "remat":
            body = jax.checkpoint(body, prevent_cse=False)
        own = jax.tree.map(lambda x: x[start:stop], per_iteration)
        return lax.scan(body, state, (jnp.arange(start, stop), own), length=stop - start, unroll=unroll)

    own_last = jax.tree.map(lambda x: x[-1], per_iteration)
    theta = (shared, own_last, problem, jnp.int32(max(K - 1, 0)))
    state = scheme.init(d0, problem)
    first = scheme.depth(state)
    frozen = lax.stop_gradient((state, shared, problem))
    taken: Array | int = K
    parts: list[Array] = []
    if K == 0:
        mode = "none"
    elif mode in ("backprop", "remat") or last >= K:
        state, iterates = run(state, shared, problem, 0, K)
        parts = [iterates]
    else:
        before = K if mode == "implicit" else K - last
        if tolerance is None:
            state, iterates = run(*frozen, 0, before)
            parts = [iterates]
        else:
            state, iterates, taken = _until(scheme, step, *frozen, lax.stop_gradient(per_iteration), before, tolerance,
                                            bool(return_history))  # fmt: skip
            parts = [iterates]
        state = lax.stop_gradient(state)
        if mode == "implicit":
            state = attach_implicit(step, state, theta)
        elif tolerance is None:
            state, iterates = run(state, shared, problem, before, K)
            parts.append(iterates)
        else:
            state = step(state, theta)
            taken = taken + 1
            parts.append(scheme.depth(state)[None])
    depth = scheme.depth(state)
    if not return_history:
        return depth, None
    history = jnp.concatenate(parts) if parts else jnp.zeros((0, *depth.shape), depth.dtype)
    if mode == "implicit":  # the answer carries the gradient, the way there does not
        history = lax.stop_gradient(history).at[-1].set(depth)
    if return_history != "trace":
        return depth, history
    iterates = jnp.concatenate([first[None], history])
    settings_at = lambda k, own: settings((shared, own), problem, k, step_size)  # noqa: E731
    trace = make_trace(settings_at, scheme.regularizer, problem, per_iteration, iterates, taken)
    if K and (mode == "implicit" or tolerance is not None):
        trace = trace._replace(contraction=contraction(step, state, theta))
    return depth, trace


def _until(scheme, step, state, shared, problem, per_iteration, most, tolerance, keep):
    """Steps until none moves a pixel by more than `tolerance`; (state, iterates [most,...] or None, steps taken)."""
    depth = scheme.depth(state)
    iterates = jnp.zeros((most, *depth.shape), depth.dtype) if keep else None

    def unfinished(carry):
        _, _, k, moved = carry
        return (k < most) & (moved > tolerance)

    def body(carry):
        state, iterates, k, _ = carry
        own = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, keepdims=False), per_iteration)
        before = scheme.depth(state)
        state = step(state, (shared, own, problem, k))
        depth = scheme.depth(state)
        if keep:
            iterates = lax.dynamic_update_index_in_dim(iterates, depth, k, 0)
        return state, iterates, k + 1, jnp.abs(depth - before).max()

    start = (state, iterates, jnp.int32(0), jnp.array(jnp.inf, depth.dtype))
    state, iterates, taken, _ = lax.while_loop(unfinished, body, start)
    if keep:
        done = (jnp.arange(most) < taken).reshape(-1, *[1] * depth.ndim)
        iterates = jnp.where(done, iterates, scheme.depth(state)[None])
    return state, iterates, taken
