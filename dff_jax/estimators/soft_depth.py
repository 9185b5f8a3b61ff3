"""What the compared networks have in common: depth as the mean of the focus settings, weighted by a network.

So they cannot answer outside [s_1, s_Z], and an affine change of the focus axis changes the answer by the same map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer

from dff_jax.focus_axis import short_of_infinity
from dff_jax.types import Array, Estimator, Prediction, Variables, confidence_of_error


def mean_depth(weights: Array, focus: Array) -> Array:
    """sum_z w_z s_z: weights [B,Z,H,W] that sum to 1 over Z, focus [B,Z] -> [B,H,W]."""
    return jnp.einsum("bzhw,bz->bhw", weights, focus)


def share(values: Array) -> Array:
    """Positive values [B,Z,H,W] divided by their sum over Z."""
    return values / values.sum(1, keepdims=True)


def spread(weights: Array, focus: Array, depth: Array) -> Array:
    """sqrt(sum_z w_z (s_z - depth)^2), [B,H,W]: DFV's uncertainty map."""
    return jnp.sqrt(jnp.sum(weights * jnp.square(focus[:, :, None, None] - depth[:, None]), 1))


def answer(frames: Array, focus: Array, weights: list[Array], in_metres: bool = False) -> Prediction:
    """A Prediction from what a network gives.

    Args:
      frames: [B,Z,H,W,3] in [0,1].
      focus: [B,Z] in q, or -q (`in_order`).
      weights: of each scale, the answer's first: [B,Z,H',W'] that sum to 1 over Z, H' >= H and W' >= W (padded).
      in_metres: the mean is one of metres, of 1/q; a setting at infinity counts as `short_of_infinity` has it.
    """
    height, width = frames.shape[2:4]
    weights = [w[:, :, :height, :width] for w in weights]
    if in_metres:
        diopters = short_of_infinity(jnp.abs(focus), jnp.abs(focus), "metre")
        sign = jnp.where(focus[:, :1, None] < 0, -1.0, 1.0)  # -q begins at -q_max
        depths = jnp.stack([sign / mean_depth(w, 1 / diopters) for w in weights], -1)
    else:
        depths = jnp.stack([mean_depth(w, focus) for w in weights], -1)
    depth = depths[..., 0]
    error = spread(weights[0], focus, depth) / (focus[:, -1] - focus[:, 0])[:, None, None]
    return Prediction(
        depth=depth,
        confidence=confidence_of_error(error),
        disagreement=jnp.zeros_like(depth),
        all_in_focus=(weights[0][..., None] * frames).sum(1),
        scales=depths,
    )


def in_order(estimator: Estimator, frame_order: str) -> Estimator:
    """The estimator with its network shown the frames in this order of q, "ascending" or "descending".

    In the coordinate -q descending frames ascend, and the answer -q is the same one.
    """
    if frame_order == "ascending":
        return estimator

    def apply(variables: Any, frames: Array, focus: Array, **options: Any) -> tuple[Prediction, Any]:
        seen, batch_stats = estimator.apply(variables, frames[:, ::-1], -focus[:, ::-1], **options)
        scales = None if seen.scales is None else -seen.scales
        return seen._replace(depth=-seen.depth, scales=scales), batch_stats

    return estimator._replace(apply=apply)


def initializer(
    net: nn.Module, num_frames: int = 1, side: int = 32
) -> Callable[[Array, Array, Array], Variables]:
    """`Estimator.init` of a network (frames, train) whose parameters depend neither on Z nor on the size.

    Args:
      num_frames, side: the smallest that it takes.
    """

    def make_variables(key: Array) -> Variables:
        made = net.init(key, jnp.zeros((1, num_frames, side, side, 3), jnp.float32), False)
        return {"params": made["params"], "batch_stats": made["batch_stats"]}

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        if isinstance(key, Tracer):
            return make_variables(key)
        # hundreds of random tensors take a minute to optimise and no time to run
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(make_variables, compiler_options=options)(key)

    return init


def run(net: nn.Module, variables: Variables, frames: Array, train: bool) -> tuple[Any, Any]:
    """What a network (frames, train) gives, and the batch statistics: updated when training, else the given ones."""
    if not train:
        return net.apply(variables, frames, False), variables["batch_stats"]
    found, changed = net.apply(variables, frames, True, mutable=["batch_stats"])
    return found, changed["batch_stats"]
