"""The depth refiner F_ref (15) and its T steps (16): Dhat(t+1) = Dhat(t) + F_ref(cat(Dhat(t), F))."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.focus_axis import to_unit_coordinate
from dff_jax.network.inputs import side_by_side
from dff_jax.network.layers import ACTIVATIONS, Conv, apply, channels, he_fan_in, torch_default
from dff_jax.types import Array
from dff_jax.unroll import Problem

GAP_SCALE = 4.0  # brings the distance of two settings to about one where they are few


def between_settings(depth: Array, t: Array) -> Array:
    """Where depth [B,H,W] lies between the settings t [B,Z] around it: [B,H,W,3].

    With g the distance of the two settings and x in [0,1] the place between them: g sin(2 pi x), g cos(2 pi x) and g,
    scaled; beyond the ends x is 0.
    """
    gaps = jnp.diff(t)[:, :, None, None]
    x = (depth[:, None] - t[:, :-1, None, None]) / gaps  # [B,Z-1,H,W]
    phase = 2 * math.pi * jnp.clip(x, 0.0, 1.0).sum(1)
    z, last = jnp.arange(gaps.shape[1])[None, :, None, None], gaps.shape[1] - 1
    here = ((x >= 0) | (z == 0)) & ((x < 1) | (z == last))
    gap = GAP_SCALE * jnp.where(here, gaps, 0.0).sum(1)
    return jnp.stack([gap * jnp.sin(phase), gap * jnp.cos(phase), gap], -1)


class Refiner(nn.Module):
    """cat(Dhat(t), F, ...) [B,H,W,c] -> correction [B,H,W]: three activated 3x3 convolutions of 32, then one of 1."""

    config: Proximal

    @nn.compact
    def __call__(self, depth: Array, features: Array) -> Array:
        c = self.config
        x = side_by_side("refiner", depth=depth[..., None], features=features).astype(c.dtype)
        for _ in range(3):
            x = ACTIVATIONS[c.activation](Conv(channels(32, c.head_width), kernel_init=he_fan_in)(x))
        last = nn.initializers.zeros if c.prox_output == "residual" else torch_default
        return Conv(1, kernel_init=last, name="output")(x)[..., 0].astype(jnp.float32)


def refiner_features(config: Proximal, depth: Array, problem: Problem, focus: Array) -> Array:
    """What F_ref sees beside the depth, [B,H,W,c]: F, and by `config.refiner_inputs` the candidates and the settings.

    Args:
      depth: [B,H,W] in the working coordinate.
      problem: its context has `features`.
      focus: [B,Z] in q.
    """
    candidates = None if config.refiner_inputs == "depth_volume" else problem.candidates  # measured ones come last
    settings = None
    if config.refiner_inputs == "with_settings":
        settings = between_settings(depth, to_unit_coordinate(focus, focus))
    return side_by_side("refiner", features=problem.context.features, candidates=candidates, settings=settings)


def refine(config: Proximal, params: dict, depth: Array, problem: Problem, focus: Array) -> Array:
    """Dhat(1)..Dhat(T) from Dhat(0) = depth, [B,T,H,W] (15, 16); `params` are the estimator's."""
    refined = []
    for _ in range(config.refiner_steps):
        features = refiner_features(config, depth, problem, focus)
        depth = depth + apply(Refiner(config), params["refiner"], depth, features)
        refined.append(depth)
    return jnp.stack(refined, 1) if refined else depth[:, None][:, :0]
