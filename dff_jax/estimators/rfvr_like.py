"""RFVR-like: depth from a focus volume regularised as a whole, `classical.volume_regularization`.

Our own reading of public abstracts, never to be taken for RFVR, whose text and code were not to be had.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax

from dff_jax import extent
from dff_jax.classical import gaussian_peak, luminance, sum_modified_laplacian
from dff_jax.classical.volume_regularization import VolumeProblem, guided_similarity, regularize_volume
from dff_jax.estimators.peaks import Sharpness, peak_estimator
from dff_jax.types import Array, Estimator

WINDOW = 5  # of the measure, pixels: what lies further off is for the regularisation to bring in
ALONG_FOCUS = 0.02  # of lambda: neighbours in focus differ even on one surface, and smoothing them flattens the peak
LEAST_TRUST = 1e-3  # of c, so that every linear system has one answer


def rfvr_like(
    strength: float = 1.0, mu: float = 1000.0, nu: float = 4.0, num_steps: int = 3, solver_iterations: int = 10
) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    f is the sum-modified-Laplacian m with each pixel's curve brought to [0,1], as only then one nu fits weak texture
    and strong; how strong it was goes into c = (p / (p + p_typical))^2 with p = max m - mean m and p_typical its root
    mean square over the picture. g is each frame's luminance.

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
        square = extent.mean(prominence**2).mean() if mean_square is None else mean_square[0]
        typical = jnp.maximum(jnp.sqrt(square), 1e-9)
        f = (measure - low) / jnp.maximum(top - low, 1e-9)
        c = (prominence / (prominence + typical)) ** 2 + LEAST_TRUST
        along_focus, *within = guided_similarity(image, focus, strength, mu)
        problem = VolumeProblem(f, c, (ALONG_FOCUS * along_focus, *within), nu)
        return jnp.maximum(regularize_volume(problem, num_steps, solver_iterations), 0.0), top - low

    def sharpness(frames: Array, focus: Array, mean_square: Array | None) -> Sharpness:
        image = extent.fill(luminance(frames))
        measure = sum_modified_laplacian(image, WINDOW)
        # one stack after the other: a solver holds some twenty volumes
        volume, height = lax.map(partial(regularized, mean_square=mean_square), (image, measure, focus))
        # what was brought in from neighbours counts less
        return Sharpness(volume, volume * height, gaussian_peak(measure, focus))

    return peak_estimator(sharpness, global_statistics)
