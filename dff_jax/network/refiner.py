"""The depth refiner F_ref (15): what to add to the unroll's answer."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from dff_jax.config import ModelConfig
from dff_jax.network.layers import ACTIVATIONS, Conv, channels, he_fan_in, torch_default
from dff_jax.types import Array


class Refiner(nn.Module):
    """cat(Dhat(t), F, ...) [B,H,W,c] -> correction [B,H,W]: three activated 3x3 convolutions of 32, then one of 1."""

    config: ModelConfig

    @nn.compact
    def __call__(self, depth: Array, features: Array) -> Array:
        c = self.config
        x = jnp.concatenate([depth[..., None], features], -1).astype(c.dtype)
        for _ in range(3):
            x = ACTIVATIONS[c.activation](Conv(channels(32, c.head_width), kernel_init=he_fan_in)(x))
        last = nn.initializers.zeros if c.prox_output == "residual" else torch_default
        return Conv(1, kernel_init=last, name="output")(x)[..., 0].astype(jnp.float32)
