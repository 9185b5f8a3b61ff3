"""What an RGB-D image needs before it is rendered: no holes in its depth, and a number of layers."""

from __future__ import annotations

import math

import numpy as np

from dff_jax.errors import InputError

_RADII = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LAYER_STEP = 0.5  # pixels of blur radius between two layers
_LAYER_COUNTS = (8, 16, 24, 32, 48, 64, 96, 128)


def fill_holes(depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The depth map with each hole pixel set to the nearest valid one (Euclidean), so that it can be rendered.

    Args:
      depth: [H,W]; what it holds where `mask` is False does not matter.
      mask: [H,W] bool.

    Returns:
      [H,W] float32, finite; equal to `depth` where `mask` is True.

    Raises:
      InputError: nothing is valid, or a valid value is not finite.
    """
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        raise InputError("depth: nothing valid to fill the holes from")
    depth = np.asarray(depth, np.float32)
    if not np.isfinite(depth[mask]).all():
        raise InputError("depth: a value that the mask calls valid is not finite")
    if mask.all():
        return depth
    nearest = np.asarray(distance_transform_edt(~mask, return_distances=False, return_indices=True))  # [2,H,W]
    return depth[nearest[0], nearest[1]]


def lens_limits(depth: np.ndarray, focus: np.ndarray, blur_per_q: float) -> tuple[int, int]:
    """The `max_radius` and `num_layers` that a scene needs, taken from short lists so that few shapes are compiled.

    Args:
      depth: [H,W] q, finite.
      focus: [Z] q.
      blur_per_q: pixels of blur radius per unit of q.
    """
    near, far = float(np.max(depth)), float(np.min(depth))
    radius = blur_per_q * max(near - float(np.min(focus)), float(np.max(focus)) - far, 0.0)
    layers = math.ceil(blur_per_q * (near - far) / _LAYER_STEP) + 1
    return _at_least(_RADII, radius), _at_least(_LAYER_COUNTS, layers)


def _at_least(choices: tuple[int, ...], value: float) -> int:
    return next((choice for choice in choices if choice >= value), choices[-1])
