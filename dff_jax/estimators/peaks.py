"""What the methods have in common that look for the peak of a volume of sharpness and need no weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dff_jax.classical import gaussian_peak, peak_confidence, sharp_composite
from dff_jax.types import Array, Estimator, History, Prediction, Variables


class Sharpness(NamedTuple):
    """Of a batch of stacks; volumes are [B,Z,H,W], non-negative."""

    volume: Array  # its peak is the answer
    measured: Array  # how far its peak stands out is the confidence
    first: Array | None = None  # [B,H,W] depth in q from an earlier pass, shown as Dbar; None: the answer


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
