"""`depth_function`: a method with its weights as one pure function of arrays.

For `jit`, `vmap`, `grad` and `jax.export`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer

from dff_jax.errors import InputError
from dff_jax.estimators.weights import PRETRAINED, LoadedEstimator, check_frames, load_estimator
from dff_jax.prediction.tiled import scaled
from dff_jax.types import Array, History, Prediction
from dff_jax.unroll import Trace

for one in (Prediction, History, Trace):  # so that a program that returns them can be written to a file
    export.register_namedtuple_serialization(one, serialized_name=f"dff_jax.{one.__name__}")


def depth_function(
    weights: str | Path = PRETRAINED, *, iterations: int | None = None
) -> Callable[[Array, Array], Prediction]:
    """A pure function `(frames, focus) -> Prediction` with the weights inside.

    `frames` is [B,Z,H,W,3], float in [0,1], uint8 or uint16; `focus` is [B,Z] in q (disparity, diopters or an index;
    `focus_axis.to_q` turns other units to q), in any order. The answer is in q, too. Where the network ends in a
    weighted median, the gradient is that of the depth before it, as the median itself passes none.

    Args:
      weights: "pretrained", a method without weights such as "classical", a .safetensors file or a run folder.
      iterations: K of the unroll; None: as trained.

    Raises:
      InputError: unusable weights. The function raises it for arrays of other shapes or types, for a number of frames
        that the network cannot take and, outside of `jit`, for repeated settings.
    """
    loaded = load_estimator(weights)

    def depth_of(frames: Array, focus: Array) -> Prediction:
        frames, focus = _checked(loaded, frames, focus)
        order = jnp.argsort(focus, 1)
        frames = jnp.take_along_axis(frames, order[..., None, None, None], 1)
        focus = jnp.take_along_axis(focus, order, 1)
        return loaded.estimator.apply(loaded.variables, frames, focus, num_iterations=iterations)[0]

    return depth_of


def _checked(loaded: LoadedEstimator, frames: Array, focus: Array) -> tuple[Array, Array]:
    """Frames [B,Z,H,W,3] as floats in [0,1] and settings [B,Z] as floats.

    Raises:
      InputError: as `depth_function` tells.
    """
    frames = jnp.asarray(frames)
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise InputError(f"frames: shape {frames.shape}; must be [B,Z,H,W,3]")
    if jnp.shape(focus) != frames.shape[:2]:
        raise InputError(f"focus: shape {jnp.shape(focus)}; must be [B,Z], {frames.shape[:2]} for these frames")
    check_frames(loaded, frames.shape[1])
    if not isinstance(focus, Tracer):
        ascending = np.sort(np.asarray(focus), 1)
        if not np.isfinite(ascending).all() or (np.diff(ascending, axis=1) <= 0).any():
            raise InputError("focus: settings that repeat or are not finite; give each frame one of its own")
    if frames.dtype not in (jnp.uint8, jnp.uint16) and not jnp.issubdtype(frames.dtype, jnp.floating):
        raise InputError(f"frames: of type {frames.dtype}; give uint8, uint16, or float in [0, 1]")
    return scaled(frames).astype(jnp.float32), jnp.asarray(focus, jnp.float32)
