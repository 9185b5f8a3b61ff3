"""The solver: one `jax.lax.scan` over the iterations of a scheme, or a `while_loop` that stops early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from dff_jax.types import Array
from dff_jax.unroll.gradients import attach_implicit, contraction, parse_mode
from dff_jax.unroll.hyperparameters import StepSize, settings
from dff_jax.unroll.problem import Problem, check
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

    Each iteration gets its parameters (shared and its own, merged), its lambda and eta, and D(k-1) as problem.previous.

    Args:
      scheme: what one iteration does.
      problem: candidates and weights [B,H,W,N], regularization, context.
      d0: [B,H,W] the start; `initial_depth(problem)` or any warm start.
      step_size: eta, a number or a function of (params, problem, k). Some schemes lower a number or let it fall over k.
      shared: parameters that every iteration uses.
      per_iteration: parameters with a leading axis K, of which each iteration sees its own slice; None if tied.
      num_iterations: K, static; 0 returns d0.
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
      ValueError: what `problem.check` finds; num_iterations is negative or traced; per_iteration's leading axis is not
        K (see `resize_stack`); an unknown gradient mode, or one that a tolerance excludes.
    """
    if isinstance(num_iterations, Tracer):
        raise ValueError("num_iterations: must be known when `jit` traces; pass K as a static argument")
    check(problem, d0)
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
    eta_of = scheme.step_rule(step_size)

    def step(state, theta):
        shared, own, problem, k = theta
        params, problem, eta = settings(shared, own, problem, k, eta_of)
        return scheme.update(params, state, problem._replace(previous=scheme.depth(state)), eta)

    def run(state, shared, problem, start, stop):
        """Steps start..stop-1: the state, and the iterates if wanted."""

        def body(state, one):
            k, own = one
            state = step(state, (shared, own, problem, k))
            return state, scheme.depth(state) if return_history else None

        if mode == "remat":
            body = jax.checkpoint(body, prevent_cse=False)
        own = jax.tree.map(lambda x: x[start:stop], per_iteration)
        return lax.scan(body, state, (jnp.arange(start, stop), own), length=stop - start, unroll=unroll)

    passing = {"backprop": K, "remat": K, "truncated": min(last, K), "implicit": 0}[mode]  # steps that pass gradients
    constant = K - passing
    theta = (shared, jax.tree.map(lambda x: x[-1], per_iteration), problem, jnp.int32(max(K - 1, 0)))  # the last step's
    state = scheme.init(d0, problem)
    iterates: list[Any] = [scheme.depth(state)[None]]
    taken: Array | int = K
    if constant:
        frozen, weights, fixed = lax.stop_gradient((state, shared, problem))
        if tolerance is None:
            state, found = run(frozen, weights, fixed, 0, constant)
        else:
            stack = lax.stop_gradient(per_iteration)
            at = lambda k: jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, keepdims=False), stack)  # noqa: E731
            one = lambda state, k: step(state, (weights, at(k), fixed, k))  # noqa: E731
            state, found, taken = _until(one, scheme.depth, frozen, constant, tolerance, bool(return_history))
            taken = taken + passing
        iterates.append(found)
        state = lax.stop_gradient(state)
        if mode == "implicit":
            state = attach_implicit(step, state, theta)
    if passing:
        state, found = run(state, shared, problem, constant, K)
        iterates.append(found)
    depth = scheme.depth(state)
    if not return_history:
        return depth, None
    history = jnp.concatenate(iterates)  # [K+1,B,H,W]
    if mode == "implicit" and K:  # the answer carries the gradient, the way there does not
        history = jnp.concatenate([history[:1], lax.stop_gradient(history[1:-1]), depth[None]])
    if return_history != "trace":
        return depth, history[1:]
    settings_at = lambda k, own: settings(shared, own, problem, k, eta_of)  # noqa: E731
    trace = make_trace(settings_at, scheme.regularizer, problem, per_iteration, history, taken)
    if K and (mode == "implicit" or tolerance is not None):
        trace = trace._replace(contraction=contraction(step, state, theta))
    return depth, trace


def _until(
    step: Callable[[Any, Array], Any], depth_of: Callable[[Any], Array], state: Any, most: int, tolerance: float,
    keep: bool,
) -> tuple[Any, Array | None, Array]:
    """Steps until none moves a pixel by more than `tolerance`: the state, the iterates [most,...], the steps taken.

    Iterates beyond the last step repeat it; without `keep` they are None.
    """
    depth = depth_of(state)

    def unfinished(carry):
        _, _, k, moved = carry
        return (k < most) & (moved > tolerance)

    def body(carry):
        state, iterates, k, _ = carry
        before = depth_of(state)
        state = step(state, k)
        depth = depth_of(state)
        if keep:
            iterates = lax.dynamic_update_index_in_dim(iterates, depth, k, 0)
        return state, iterates, k + 1, jnp.abs(depth - before).max()

    iterates = jnp.zeros((most, *depth.shape), depth.dtype) if keep else None
    start = (state, iterates, jnp.int32(0), jnp.array(jnp.inf, depth.dtype))
    state, iterates, taken, _ = lax.while_loop(unfinished, body, start)
    if iterates is not None:
        done = (jnp.arange(most) < taken).reshape(-1, *[1] * depth.ndim)
        iterates = jnp.where(done, iterates, depth_of(state)[None])
    return state, iterates, taken
