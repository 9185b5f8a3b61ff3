"""The yardstick: sum-modified-Laplacian, aggregation, Gaussian peak."""

from __future__ import annotations

from dff_jax.classical import box_mean, luminance, sum_modified_laplacian
from dff_jax.estimators.peaks import Sharpness, peak_estimator
from dff_jax.types import Array, Estimator


def sml(window: int = 5, aggregation: int = 9) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    Args:
      window: side of the sum-modified-Laplacian's window, pixels, odd (Nayar and Nakagawa 1994).
      aggregation: side of the box that averages the focus volume, pixels, odd.
    """

    def sharpness(frames: Array, focus: Array, _: None) -> Sharpness:
        measure = box_mean(sum_modified_laplacian(luminance(frames), window), aggregation)
        return Sharpness(measure, measure)

    return peak_estimator(sharpness)
