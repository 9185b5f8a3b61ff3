"""Depth from focus with no training: focus measures, peak interpolation, candidates with their weights."""

from dff_jax.classical.aggregation import enlarge, guided_mean
from dff_jax.classical.candidates import (
    REACH,
    Candidates,
    candidate_weights,
    excess_prominence,
    measure_candidates,
    propose,
    squared_excess,
)
from dff_jax.classical.focus_measures import (
    disc_ring_difference,
    gradient_magnitude,
    luminance,
    modified_laplacian,
    ring_difference,
    sum_modified_laplacian,
)
from dff_jax.classical.peak import (
    Peak,
    gaussian_peak,
    nearest_composite,
    peak_confidence,
    sharp_composite,
    symmetric_peak,
)
from dff_jax.classical.weighted_median import weighted_median
from dff_jax.ops.windows import box_mean

__all__ = [
    "REACH",
    "Candidates",
    "Peak",
    "box_mean",
    "candidate_weights",
    "disc_ring_difference",
    "enlarge",
    "excess_prominence",
    "gaussian_peak",
    "gradient_magnitude",
    "guided_mean",
    "luminance",
    "measure_candidates",
    "modified_laplacian",
    "nearest_composite",
    "peak_confidence",
    "propose",
    "ring_difference",
    "sharp_composite",
    "squared_excess",
    "sum_modified_laplacian",
    "symmetric_peak",
    "weighted_median",
]
