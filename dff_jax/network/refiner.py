"""The depth refiner F_ref (15): what to add to the unroll's answer."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.layers import ACTIVATIONS, Conv, channels, he_fan_in, torch_default
from dff_jax.types import Array

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
        x = jnp.concatenate([depth[..., None], features], -1).astype(c.dtype)
        for _ in range(3):
            x = ACTIVATIONS[c.activation](Conv(channels(32, c.head_width), kernel_init=he_fan_in)(x))
        last = nn.initializers.zeros if c.prox_output == "residual" else torch_default
        return Conv(1, kernel_init=last, name="output")(x)[..., 0].astype(jnp.float32)
