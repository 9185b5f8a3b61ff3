"""Depth at the peak of a volume of sharpness, without weights: `sml`, `rdf`, and what `rfvr_like` shares with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dff_jax.classical import (
    box_mean,
    disc_ring_difference,
    gaussian_peak,
    guided_mean,
    luminance,
    peak_confidence,
    sharp_composite,
    sum_modified_laplacian,
)
from dff_jax.types import Array, Estimator, History, Prediction, Variables


class Sharpness(NamedTuple):
    """Of a batch of stacks; volumes are [B,Z,H,W], non-negative."""

    volume: Array  # its peak is the answer
    measured: Array  # how far its peak stands out is the confidence
    first: Array | None = None  # [B,H,W] depth in q from an earlier pass, reported as Dbar; None: the answer


def peak_estimator(
    sharpness: Callable[[Array, Array, Array | None], Sharpness],
    global_statistics: Callable[[Array, Array], Array] | None = None,
) -> Estimator:
    """An estimator without weights, for any Z, H and W.

    Args:
      sharpness: (frames [B,Z,H,W,3], focus [B,Z], means of the global statistics [n] or None) -> Sharpness.
      global_statistics: as `Estimator.global_statistics`.
    """

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        return {"params": {}, "batch_stats": {}}

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, dict]:
        volume, measured, first = sharpness(frames, focus, variables.get("global_statistics"))
        depth = gaussian_peak(volume, focus)
        history = History(
            expected=depth if first is None else first,
            candidates=depth[..., None],
            weights=jnp.ones_like(depth)[..., None],
            iterates=depth[:, None],
            refined=jnp.zeros((depth.shape[0], 0, *depth.shape[1:]), depth.dtype),
        )
        return Prediction(
            depth=depth,
            confidence=peak_confidence(measured),
            disagreement=jnp.zeros_like(depth),
            all_in_focus=sharp_composite(frames, depth, focus),
            history=history,
        ), {}

    return Estimator(init, apply, global_statistics)


def sml(window: int = 5, aggregation: int = 9) -> Estimator:
    """The baseline: sum-modified-Laplacian, aggregation, Gaussian peak; any Z, H and W.

    Args:
      window: side of the sum-modified-Laplacian's window, pixels, odd (Nayar and Nakagawa 1994).
      aggregation: side of the box that averages the focus volume, pixels, odd.
    """

    def sharpness(frames: Array, focus: Array, means: Array | None) -> Sharpness:
        measure = box_mean(sum_modified_laplacian(luminance(frames), window), aggregation)
        return Sharpness(measure, measure)

    return peak_estimator(sharpness)


def rdf(radius: int = 5, epsilon: float = 1e-3) -> Estimator:
    """Ring difference filter, guided aggregation of each slice of the focus volume, peak; any Z, H and W.

    Jeon, Surh, Im and Kweon, Ring difference filter for fast and noise robust depth from focus, IEEE TIP 29, 2020, from
    its description: the ring's size, the guide (the frames' own composite) and the windows are ours, and no median
    follows.

    Args:
      radius: of the guided filter's windows, pixels.
      epsilon: variance of the guide below which a window counts as one surface.
    """

    def sharpness(frames: Array, focus: Array, means: Array | None) -> Sharpness:
        channels = jnp.moveaxis(frames, -1, 0)
        measure = jnp.sqrt(sum(disc_ring_difference(channel) ** 2 for channel in channels))
        first = gaussian_peak(box_mean(measure, 9), focus)
        guide = luminance(sharp_composite(frames, first, focus))
        measure = guided_mean(measure, guide, radius, epsilon)
        return Sharpness(measure, measure, first)

    return peak_estimator(sharpness)
