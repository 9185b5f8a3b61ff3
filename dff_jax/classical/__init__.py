"""Depth from focus with no training: focus measures and peak interpolation."""

from dff_jax.classical.focus_measures import box_mean, luminance, modified_laplacian, sum_modified_laplacian
from dff_jax.classical.peak import gaussian_peak, peak_confidence, sharp_composite

__all__ = [
    "box_mean",
    "gaussian_peak",
    "luminance",
    "modified_laplacian",
    "peak_confidence",
    "sharp_composite",
    "sum_modified_laplacian",
]
