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
    peak_confidence,
    sharp_composite,
)
from dff_jax.types import Array, Estimator, History, Prediction, Variables


def rdf(radius: int = 5, epsilon: float = 1e-3) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    Args:
      radius: of the guided filter's windows, pixels.
      epsilon: variance of the guide below which a window counts as one surface.
    """

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        return {"params": {}, "batch_stats": {}}

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, dict]:
        channels = jnp.moveaxis(frames, -1, 0)
        measure = jnp.sqrt(sum(disc_ring_difference(channel) ** 2 for channel in channels))
        first = gaussian_peak(box_mean(measure, 9), focus)
        guide = luminance(sharp_composite(frames, first, focus))
        measure = guided_mean(measure, guide, radius, epsilon)
        depth = gaussian_peak(measure, focus)
        history = History(
            expected=first,
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
