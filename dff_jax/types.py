"""What flows through the system. Shapes: B stacks, Z frames, H x W pixels, N candidates, K iterations, T refiner steps.

q is the focus coordinate in which blur is linear (disparity, diopters or a bare index, see `focus_axis`);
every depth-like map below is in the unit of q and has no channel axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Variables = dict[str, Any]  # {"params": pytree, "batch_stats": pytree}, perhaps "global_statistics"


class FocalStack(NamedTuple):
    """One focal stack on the host, as photographed: any order, any unit."""

    frames: np.ndarray  # [Z,H,W,3] uint8, uint16, or float32 in [0,1]; RGB
    focus: np.ndarray  # [Z] float64, in `unit`, one per frame
    unit: str  # "disparity", "diopter", "metre" or "index"
    depth: np.ndarray | None = None  # [H,W] float32 ground truth, in `unit`
    mask: np.ndarray | None = None  # [H,W] bool, where `depth` holds
    name: str = ""
    all_in_focus: np.ndarray | None = None  # [H,W,3], as `frames`: the data's own picture that is sharp everywhere


class Batch(NamedTuple):
    """A batch on the device. Frames are sorted so that q ascends (far to near for disparity and diopters)."""

    frames: Array  # [B,Z,H,W,3] float32 in [0,1], RGB as displayed (sRGB)
    focus: Array  # [B,Z] float32, q, strictly ascending
    depth: Array  # [B,H,W] float32 ground truth in q; 0 where `mask` is False
    mask: Array  # [B,H,W] bool; all False marks a stack that only fills up the batch, or has no ground truth
    all_in_focus: Array | None = None  # [B,H,W,3] float32 in [0,1], the data's own sharp picture; None: not there


class LoadedBatch(NamedTuple):
    """What a loader yields: the arrays (numpy or device) and what to call each stack in a message."""

    batch: Batch
    names: tuple[str, ...]  # [B]; "" for a stack that only fills up the batch


class History(NamedTuple):
    """The stages on the way to the answer, in q: rows of an evaluation, and terms of the sequence loss.

    A method that looks for one peak has N = 1, K = 0 and T = 0.
    """

    expected: Array  # [B,H,W] Dbar, the soft-argmax (5)
    candidates: Array  # [B,H,W,N] D_i (6)
    weights: Array  # [B,H,W,N] W_i^2 (14)
    iterates: Array  # [B,K+1,H,W] D(0)..D(K) (12, 13)
    refined: Array  # [B,T,H,W] Dhat(1)..Dhat(T) (16); T may be 0
    trace: Any = None  # unroll.Trace, in the working coordinate; None for a method without an unroll


CONFIDENCE_SCALE = 0.1
"""Expected error of the depth, as a share of the focus range, at which confidence falls to 1/e."""


def confidence_of_error(error: Array) -> Array:
    """Confidence in (0,1] from an expected error, a share of the focus range."""
    return jnp.exp(-error / CONFIDENCE_SCALE)


def error_of_confidence(confidence: Array) -> Array:
    """The expected error, a share of the focus range, that a confidence in (0,1] stands for."""
    return -CONFIDENCE_SCALE * jnp.log(confidence)


class Prediction(NamedTuple):
    """An estimator's answer."""

    depth: Array  # [B,H,W] in q
    confidence: Array  # [B,H,W] in [0,1]
    disagreement: Array  # [B,H,W] V = 1/2 (sum W_i^2 D_i^2 - b^2/S) in q^2, >= 0
    all_in_focus: Array  # [B,H,W,3] in [0,1]
    history: History | None = None  # of a method with candidates
    scales: Array | None = None  # [B,H,W,n] depths in q of a network trained at several scales, the answer first


class Estimator(NamedTuple):
    """A method of depth from focus: two pure functions. `estimators.build(config)` makes one.

    init(key, frames, focus) -> variables
        frames [B,Z,H,W,3], focus [B,Z]: used for their shapes only.
    apply(variables, frames, focus, *, train=False, num_iterations=None) -> (Prediction, batch_stats)
        Any H x W (padded and cropped back inside). `train` and `num_iterations` are static under jit;
        `num_iterations=None` means the configured K. batch_stats is the updated collection when training and
        the given one otherwise ({} for a method without).
    global_statistics(frames, focus) -> [B,H,W,n]
        The maps whose means over the whole image a method needs; None: it needs none. With these means [n] as
        variables["global_statistics"], `apply` gives for a tile what it gives for the whole image.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Prediction, Any]]
    global_statistics: Callable[[Array, Array], Array] | None = None
