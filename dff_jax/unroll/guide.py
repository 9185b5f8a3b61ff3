"""The guide image that edge-aware proxes follow: where the scene has an edge, depth may have one too."""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.types import Array
from dff_jax.unroll.differences import forward, squared_length
from dff_jax.unroll.problem import Problem


def guide_of(problem: Problem) -> Array:
    """`problem.guide`, [...,H,W] or [...,H,W,c].

    Raises:
      ValueError: the problem has no guide.
    """
    if problem.guide is None:
        raise ValueError(
            "problem.guide: this prox needs a guide image there, an array [B,H,W] or [B,H,W,c]; "
            "or give the prox its own guide=function of the problem"
        )
    return problem.guide


def as_channels(guide: Array, problem: Problem) -> Array:
    """The guide with a channel axis, [...,H,W,c]; a grey one gets c = 1.

    Raises:
      ValueError: the guide is not an image of the candidates' size.
    """
    shape = problem.candidates.shape[:-1]
    if guide.ndim == len(shape):
        guide = guide[..., None]
    if guide.shape[:-1] != shape:
        raise ValueError(f"guide: has shape {guide.shape}, but the depth {shape}; it must be [...,H,W] or [...,H,W,c]")
    return guide


def edge_weight(guide: Array, sharpness: float) -> Array:
    """exp(-sharpness |grad guide|), [...,H,W,c] -> [...,H,W] in (0, 1]; |.| over both directions and all channels."""
    steps = forward(jnp.moveaxis(guide, -1, 0))  # of [c,...,H,W]
    return jnp.exp(-sharpness * length(squared_length(steps).sum(0)))


def length(squared: Array) -> Array:
    """sqrt, whose derivative at 0 is 0 here and not infinite (the subgradient of a norm)."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
