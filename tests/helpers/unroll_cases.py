"""Small problems and proxes that the tests of the unroll share."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import lax

from dff_jax.unroll import (
    Problem,
    admm,
    chambolle_pock,
    exact_prox,
    fista,
    hqs,
    learned_gradient,
    proximal_gradient,
    tikhonov,
)

SCHEMES = {
    "proximal_gradient": proximal_gradient,
    "fista": fista,
    "fista_restart": lambda prox: fista(prox, restart=True),
    "hqs": hqs,
    "admm": admm,
    "exact_prox": exact_prox,
    "learned_gradient": learned_gradient,
    "chambolle_pock": lambda prox: chambolle_pock(tikhonov()),  # wants a dual form
}


def make_problem(key, n=3, weights="softplus", shape=(2, 5, 6), dtype=jnp.float32, regularization=0.1):
    k1, k2 = jax.random.split(key)
    candidates = jax.random.normal(k1, (*shape, n), dtype)
    logits = jax.random.normal(k2, (*shape, n), dtype)
    normalised = jax.nn.softmax(logits, -1) if weights == "softmax" else jax.nn.softplus(logits)
    return Problem(candidates, normalised, regularization=regularization)


def convolve(params, z, problem, eta):
    """A stand-in for a learned prox, a contraction: it uses z, D(k-1), eta, lambda and its parameters."""
    y = lax.conv_general_dilated(
        z[..., None], params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pull = 0.3 * jnp.tanh(y[..., 0] + params["bias"] + 0.3 * problem.previous)
    return 0.7 * z + pull * jnp.asarray(problem.regularization + 0.5) * (1 - 0.1 * eta)


def conv_params(key, dtype=jnp.float32):
    return {"kernel": 0.3 * jax.random.normal(key, (3, 3, 1, 1), dtype), "bias": jnp.asarray(0.1, dtype)}


def laplacian(height, width):
    """grad^T grad of forward differences with Neumann borders, as a sparse matrix over row-major pixels."""

    def line(n):
        d = sp.diags([-np.ones(n), np.ones(n - 1)], [0, 1]).tolil()
        d[n - 1] = 0
        return d.tocsr()

    down = sp.kron(line(height), sp.eye(width))
    right = sp.kron(sp.eye(height), line(width))
    return (down.T @ down + right.T @ right).tocsc()
