"""RFVR-like: depth from a focus volume regularised as a whole, guided by the frames and by the volume itself.

    E(u) = sum_i c_i (u_i - f_i)^2 + lambda sum_{(i,j) in N6} phi_mu(g_i - g_j) psi_nu(u_i - u_j)
    phi_mu(x) = exp(-mu x^2),   psi_nu(x) = (1 - exp(-nu x^2)) / nu

over the volume's voxels i and pairs of neighbours along Z, H and W: f is the measured focus volume, c how much it is
trusted, g the frames (static guidance). psi_nu stops growing where |u_i - u_j| passes about 1 / sqrt(nu), so that edges
of the volume cost no more however high they are (dynamic guidance). E is not convex; majorise-minimise with

    psi_nu(x) <= psi_nu(x_k) + phi_nu(x_k) (x^2 - x_k^2)
    (C + lambda L_k) u_{k+1} = C f,   L_k the graph Laplacian of weights phi_mu(g_i - g_j) phi_nu(u_i^k - u_j^k)

This is the static/dynamic filter of Ham, Cho and Ponce (Robust guided image filtering using nonconvex potentials,
PAMI 40, 2018) in three dimensions. It is our own reading of what public abstracts say of RFVR (Ali and Mahmood, Robust
focus volume regularization in shape from focus, IEEE TIP 30, 2021): neither its text nor its code was to be had, so
nothing here, numbers least of all, is to be taken for RFVR.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg

from dff_jax.classical import gaussian_peak, luminance, sum_modified_laplacian
from dff_jax.estimators.peaks import Sharpness, peak_estimator
from dff_jax.types import Array, Estimator

TOLERANCE = 1e-6  # of the conjugate gradients' residual, about what float32 resolves
WINDOW = 5  # of the measure, pixels: what lies further off is for the regularisation to bring in
ALONG_FOCUS = 0.02  # of lambda: neighbours in focus differ even on one surface, and smoothing them flattens the peak
LEAST_TRUST = 1e-3  # of c, so that every linear system has one answer


def rfvr_like(
    strength: float = 1.0, mu: float = 1000.0, nu: float = 4.0, num_steps: int = 3, solver_iterations: int = 10
) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    f is the sum-modified-Laplacian m with each pixel's curve brought to [0,1], as only then one nu fits weak texture
    and strong; how strong it was goes into c = (p / (p + p_typical))^2 with p = max m - mean m and p_typical its root
    mean square over the image. g is each frame's luminance.

    Args:
      strength: lambda, of neighbours within a frame.
      mu: of the static guidance: differences of luminance beyond 1 / sqrt(mu) are edges.
      nu: of the dynamic guidance: differences of u beyond 1 / sqrt(nu) are edges.
      num_steps: of majorise-minimise.
      solver_iterations: of the conjugate gradients in each.
    """

    def global_statistics(frames: Array, focus: Array) -> Array:
        measure = sum_modified_laplacian(luminance(frames), WINDOW)
        return ((measure.max(1) - measure.mean(1)) ** 2)[..., None]

    def regularized(stack: tuple[Array, Array, Array], mean_square: Array | None) -> tuple[Array, Array]:
        """Of image and measure [Z,H,W] and focus [Z]: u, and how high each pixel's measured curve rises [1,H,W]."""
        image, measure, focus = stack
        top, low = measure.max(0, keepdims=True), measure.min(0, keepdims=True)
        prominence = top - measure.mean(0, keepdims=True)
        square = (prominence**2).mean() if mean_square is None else mean_square[0]
        typical = jnp.maximum(jnp.sqrt(square), 1e-9)
        f = (measure - low) / jnp.maximum(top - low, 1e-9)
        c = (prominence / (prominence + typical)) ** 2 + LEAST_TRUST
        along_focus, along_rows, along_columns = guided_similarity(image, focus, strength, mu)
        problem = VolumeProblem(f, c, (ALONG_FOCUS * along_focus, along_rows, along_columns), nu)
        return jnp.maximum(regularize_volume(problem, num_steps, solver_iterations), 0.0), top - low

    def sharpness(frames: Array, focus: Array, mean_square: Array | None) -> Sharpness:
        image = luminance(frames)
        measure = sum_modified_laplacian(image, WINDOW)
        # one stack after the other: a solver holds some twenty volumes
        volume, height = lax.map(partial(regularized, mean_square=mean_square), (image, measure, focus))
        # what comes from neighbours counts less
        return Sharpness(volume, volume * height, gaussian_peak(measure, focus))

    return peak_estimator(sharpness, global_statistics)


class VolumeProblem(NamedTuple):
    """E of one stack."""

    measured: Array  # [Z,H,W] f
    reliability: Array  # [Z,H,W] or [1,H,W] c >= 0, somewhere more than 0
    similarity: tuple[Array, Array, Array]  # lambda phi_mu(g_i - g_j): [Z-1,H,W], [Z,H-1,W], [Z,H,W-1]
    nu: float  # of psi


def guided_similarity(guide: Array, focus: Array, strength: float, mu: float) -> tuple[Array, Array, Array]:
    """lambda phi_mu(g_i - g_j) between the neighbours along each axis of guide [Z,H,W], for focus [Z].

    Along the focus axis divided by the gap between the two settings, in units of the mean gap: a sum of u_q^2 dq.
    """
    gaps = jnp.diff(focus)
    along_focus, *others = (strength * jnp.exp(-mu * _differences(guide, axis) ** 2) for axis in range(3))
    across_rows, across_columns = others
    return along_focus * (gaps.mean() / gaps)[:, None, None], across_rows, across_columns


def volume_energy(problem: VolumeProblem, u: Array) -> Array:
    """E(u), a number, for u [Z,H,W]."""
    energy = (problem.reliability * (u - problem.measured) ** 2).sum()
    for axis, weight in enumerate(problem.similarity):
        energy += (weight * -jnp.expm1(-problem.nu * _differences(u, axis) ** 2)).sum() / problem.nu
    return energy


def regularize_volume(problem: VolumeProblem, num_steps: int, solver_iterations: int) -> Array:
    """u [Z,H,W] after steps of majorise-minimise from u = f.

    The linear system is solved for the change of u by conjugate gradients with a Jacobi preconditioner. Each of their
    iterations lowers the majoriser, so E never rises, however few they are; and where f is constant u stays f.
    """

    def step(u: Array, _) -> tuple[Array, None]:
        return u + _change(problem, u, solver_iterations), None

    return lax.scan(step, problem.measured, None, length=num_steps)[0]


def _change(problem: VolumeProblem, u: Array, iterations: int) -> Array:
    """(C + lambda L_k)^-1 C f - u."""
    steps = [_differences(u, axis) for axis in range(3)]
    weights = [w * jnp.exp(-problem.nu * d**2) for w, d in zip(problem.similarity, steps, strict=True)]
    diagonal = problem.reliability + sum(_ends(weight, axis, 1) for axis, weight in enumerate(weights))
    diagonal = jnp.maximum(diagonal, 1e-12)

    def laplacian(x: Array) -> Array:
        first, *others = (_ends(weight * _differences(x, axis), axis, -1) for axis, weight in enumerate(weights))
        return sum(others, first)

    residual = problem.reliability * (problem.measured - u) - laplacian(u)
    return cg(
        lambda x: problem.reliability * x + laplacian(x), residual, tol=TOLERANCE, maxiter=iterations,
        M=lambda x: x / diagonal,
    )[0]  # fmt: skip


def _differences(x: Array, axis: int) -> Array:
    """x_{i+1} - x_i along the axis, one fewer than x."""
    return lax.slice_in_dim(x, 1, None, axis=axis) - lax.slice_in_dim(x, 0, -1, axis=axis)


def _ends(edges: Array, axis: int, sign: int) -> Array:
    """Sum at each voxel of the edge that ends there and sign times the edge that starts there."""
    before, after = ([(one if a == axis else (0, 0)) for a in range(3)] for one in ((1, 0), (0, 1)))
    return jnp.pad(edges, before) + sign * jnp.pad(edges, after)
