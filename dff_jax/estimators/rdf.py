"""Ring difference filter: measure, guided aggregation of each slice of the focus volume, peak.

Jeon, Surh, Im and Kweon, Ring difference filter for fast and noise robust depth from focus, IEEE TIP 29, 2020, from its
description: the ring's size, the guide (the frames' own composite) and the windows are ours, and no median follows.
"""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.classical import (
    box_mean,
    disc_ring_difference,
    gaussian_peak,
    guided_mean,
    luminance,
    sharp_composite,
)
from dff_jax.estimators.peaks import Sharpness, peak_estimator
from dff_jax.types import Array, Estimator


def rdf(radius: int = 5, epsilon: float = 1e-3) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    Args:
      radius: of the guided filter's windows, pixels.
      epsilon: variance of the guide below which a window counts as one surface.
    """

    def sharpness(frames: Array, focus: Array, _: None) -> Sharpness:
        channels = jnp.moveaxis(frames, -1, 0)
        measure = jnp.sqrt(sum(disc_ring_difference(channel) ** 2 for channel in channels))
        first = gaussian_peak(box_mean(measure, 9), focus)
        guide = luminance(sharp_composite(frames, first, focus))
        measure = guided_mean(measure, guide, radius, epsilon)
        return Sharpness(measure, measure, first)

    return peak_estimator(sharpness)
