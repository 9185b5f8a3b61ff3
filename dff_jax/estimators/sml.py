"""The yardstick: sum-modified-Laplacian, aggregation, Gaussian peak."""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.classical import (
    box_mean,
    gaussian_peak,
    luminance,
    peak_confidence,
    sharp_composite,
    sum_modified_laplacian,
)
from dff_jax.types import Array, Estimator, History, Prediction, Variables


def sml(window: int = 5, aggregation: int = 9) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    Args:
      window: side of the sum-modified-Laplacian's window, pixels, odd (Nayar and Nakagawa 1994).
      aggregation: side of the box that averages the focus volume, pixels, odd.
    """

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        return {"params": {}, "batch_stats": {}}

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, dict]:
        measure = box_mean(sum_modified_laplacian(luminance(frames), window), aggregation)
        depth = gaussian_peak(measure, focus)
        history = History(
            expected=depth,
            candidates=depth[..., None],
            weights=jnp.ones_like(depth)[..., None],
            iterates=depth[:, None],
            refined=jnp.zeros((depth.shape[0], 0, *depth.shape[1:]), depth.dtype),
        )
        return Prediction(
            depth=depth,
            confidence=peak_confidence(measure),
            disagreement=jnp.zeros_like(depth),
            all_in_focus=sharp_composite(frames, depth, focus),
            history=history,
        ), {}

    return Estimator(init, apply)
