"""Quadratic smoothness (Tikhonov), solved exactly.

    R(D) = 1/2 sum_x |grad D(x)|^2,   grad by forward differences
    prox:  (1/eta + A^T lambda A) D = z / eta,   A = grad

Where eta lambda is one number a stack, A^T A is diagonal in the cosine basis (DCT-II, as the border is Neumann) with
eigenvalues 4 sin^2(pi i / 2H) + 4 sin^2(pi j / 2W); otherwise conjugate gradients with a Jacobi preconditioner.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.fft import dctn, idctn
from jax.scipy.sparse.linalg import cg

from dff_jax.types import Array
from dff_jax.unroll.differences import NORM_SQUARED, adjoint, forward, squared_length
from dff_jax.unroll.prox import Dual, Prox

SMALLEST = 1e-12  # of eta, where it is a map: 1/eta is the system's diagonal


def tikhonov(tolerance: float = 1e-6, iterations: int = 500) -> Prox:
    """The prox of 1/2 |grad D|^2: smooths everywhere, edges included; a constant image stays.

    Differentiable in z, eta and lambda (the solver's adjoint is a second solve, nothing is unrolled).

    Args:
      tolerance, iterations: of the conjugate gradients, for eta or lambda as maps [...,H,W]: they stop when a stack's
        residual has fallen by that factor, after that many steps at the latest. The DCT needs neither.
    """

    def apply(params, z, problem, eta, memory):
        eta, bound = jnp.asarray(eta, z.dtype), jnp.asarray(problem.regularization, z.dtype)
        if _one_number(eta) and _one_number(bound):
            return _cosine_solve(z, eta * bound), memory
        size = z.shape[-2:]
        flat = [jnp.broadcast_to(x, z.shape).reshape(-1, *size) for x in (z, eta, bound)]
        solve = jax.vmap(lambda z, eta, bound: _conjugate_gradients(z, eta, bound, tolerance, iterations))
        return solve(*flat).reshape(z.shape), memory

    def dual_prox(p, sigma, problem):
        bound = jnp.asarray(problem.regularization, p[0].dtype)
        shrink = bound / (bound + sigma)  # G*(p) = |p|^2 / (2 lambda)
        return shrink * p[0], shrink * p[1]

    def regularizer(depth, problem):
        return 0.5 * squared_length(forward(depth))

    return Prox(apply, regularizer=regularizer, dual=Dual(forward, adjoint, dual_prox, NORM_SQUARED))


def _one_number(x: Array) -> bool:
    """Whether x holds one number a stack: a scalar or [...,1,1]."""
    return x.ndim == 0 or x.shape[-2:] == (1, 1)


def _cosine_solve(z: Array, tau: Array) -> Array:
    """(I + tau A^T A)^-1 z for tau a scalar or [...,1,1]."""
    height, width = z.shape[-2:]
    down = 4 * jnp.sin(jnp.pi * jnp.arange(height, dtype=z.dtype) / (2 * height)) ** 2
    right = 4 * jnp.sin(jnp.pi * jnp.arange(width, dtype=z.dtype) / (2 * width)) ** 2
    eigenvalues = (down[:, None] + right[None, :]).reshape(*[1] * (z.ndim - 2), height, width)
    spectrum = dctn(z, axes=(-2, -1), norm="ortho")
    return idctn(spectrum / (1 + tau * eigenvalues), axes=(-2, -1), norm="ortho")


def _conjugate_gradients(z: Array, eta: Array, bound: Array, tolerance: float, iterations: int) -> Array:
    """The prox of one stack, all [H,W]: solves for the change D - z, which is 0 where eta or lambda is."""
    inverse = 1 / jnp.maximum(eta, SMALLEST)

    def smooth(d):
        down, right = forward(d)
        return adjoint((bound * down, bound * right))

    # the diagonal of A^T lambda A: lambda(x) for each difference that starts at x, and that of where one ends starts
    down, right = bound.at[-1, :].set(0), bound.at[:, -1].set(0)
    diagonal = inverse + down + right + jnp.roll(down, 1, 0) + jnp.roll(right, 1, 1)  # what rolls in is 0
    change, _ = cg(
        lambda d: inverse * d + smooth(d), -smooth(z), tol=tolerance, maxiter=iterations, M=lambda d: d / diagonal
    )
    return z + change
