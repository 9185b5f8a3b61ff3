"""How gradients pass through an unroll: which modes there are, and implicit differentiation of a fixed point.

At a fixed point s* = T(s*, theta) of one step T, whatever led there, the implicit function theorem gives

    d loss / d theta = (dT/dtheta)^T v,    v = J^T v + d loss / d s*,    J = dT/ds at s*

v is summed as a Neumann series, v = g + J^T g + (J^T)^2 g + ..., which converges where the spectral radius of J is
below one. Nothing makes a U-Net such a contraction: look at the trace's residual and contraction before you trust it.
Jacobian-free (Fung et al. 2022) keeps the first term only; it equals back-propagation through the last step.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array

MODES = "auto, backprop, remat, truncated(n), jacobian_free, implicit"
ADJOINT_ITERATIONS = 300
ADJOINT_TOLERANCE = 1e-7  # of |v|, at which the Neumann series ends
POWER_ITERATIONS = 30

Step = Callable[[Any, Any], Any]  # (state, theta) -> state


def parse_mode(gradient: str) -> tuple[str, int]:
    """(mode, n): "truncated(3)" -> ("truncated", 3); jacobian_free is truncated at 1; n is 0 for the others.

    Raises:
      ValueError: no such mode.
    """
    if gradient == "jacobian_free":
        return "truncated", 1
    if match := re.fullmatch(r"truncated\(([1-9]\d*)\)", gradient):
        return "truncated", int(match[1])
    if gradient in ("auto", "backprop", "remat", "implicit"):
        return gradient, 0
    raise ValueError(f"gradient: {gradient!r} is unknown; choose one of {MODES}, n of 1 or more")


def attach_implicit(step: Step, state: Any, theta: Any) -> Any:
    """`state`, with the gradient with respect to theta of the fixed point that it is taken for.

    Where the Neumann series diverges its first term is used (Jacobian-free). No gradient goes to the start.

    Args:
      step: T(state, theta) -> state; may close over arrays, which get their gradients too.
      state: the fixed point; only its floating-point leaves take part.
      theta: any pytree.
    """
    step, captured = jax.closure_convert(step, state, theta)

    @jax.custom_vjp
    def attached(state, theta, captured):
        return state

    def forward(state, theta, captured):
        return state, (state, theta, captured)

    def backward(saved, cotangent):
        state, theta, captured = saved
        values, rebuild = _floats(state)
        wanted, _ = _floats(cotangent)
        _, pull_state = jax.vjp(lambda x: _floats(step(rebuild(x), theta, *captured))[0], values)
        v = _neumann(lambda x: pull_state(x)[0], wanted)
        _, pull_theta = jax.vjp(lambda t, c: _floats(step(state, t, *c))[0], theta, captured)
        return (jax.tree.map(_zero_cotangent, state), *pull_theta(v))

    attached.defvjp(forward, backward)
    return attached(state, theta, captured)


def contraction(step: Step, state: Any, theta: Any) -> Array:
    """Estimate of the spectral radius of dT/dstate at `state`, by power iteration, []: below 1, T contracts there.

    Of its transpose, which has the same one: convolutions on CPU (`network.convolutions`) know no forward mode.
    """
    values, rebuild = _floats(lax.stop_gradient(state))
    theta = lax.stop_gradient(theta)
    once = lambda x: _floats(step(rebuild(x), theta))[0]  # noqa: E731
    _, pull = jax.vjp(once, values)
    keys = jax.random.split(jax.random.key(0), len(values))
    start = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, values, strict=True)]

    def body(_, carry):
        direction, _ = carry
        scale = jnp.maximum(_norm(direction), jnp.finfo(direction[0].dtype).tiny)
        moved = pull([x / scale for x in direction])[0]
        return moved, _norm(moved)

    return lax.fori_loop(0, POWER_ITERATIONS, body, (start, jnp.zeros_like(_norm(start))))[1]


def _neumann(apply: Callable[[list[Array]], list[Array]], g: list[Array]) -> list[Array]:
    """sum_j A^j g for a linear A; g itself where the series diverges."""
    size = _norm(g)

    def unfinished(carry):
        _, term, n = carry
        return (_norm(term) > ADJOINT_TOLERANCE * size) & (n < ADJOINT_ITERATIONS)

    def body(carry):
        v, term, n = carry
        term = apply(term)
        return [a + b for a, b in zip(v, term, strict=True)], term, n + 1

    v, term, _ = lax.while_loop(unfinished, body, (g, g, jnp.int32(0)))
    converged = _norm(term) <= size
    return [jnp.where(converged, a, b) for a, b in zip(v, g, strict=True)]


def _norm(values: list[Array]) -> Array:
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in values))


def _floats(tree: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The floating-point leaves of a tree, and a function that puts others in their places."""
    leaves, structure = jax.tree.flatten(tree)
    mine = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]

    def rebuild(values: list[Array]) -> Any:
        new = list(leaves)
        for i, x in zip(mine, values, strict=True):
            new[i] = x
        return jax.tree.unflatten(structure, new)

    return [leaves[i] for i in mine], rebuild


def _zero_cotangent(x: Array) -> Any:
    return jnp.zeros_like(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else None
