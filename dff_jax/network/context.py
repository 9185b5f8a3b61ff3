"""What the unroll reads pixel by pixel from the features, once before its first iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.candidates import Head
from dff_jax.network.layers import Conv, channels
from dff_jax.types import Array
from dff_jax.unroll import inverse_softplus, raw_step


class PixelContext(NamedTuple):
    """None: this config has none."""

    step_size: Array | None  # [B,H,W], eta is its softplus
    regularization: Array | None  # [B,H,W], lambda is its softplus
    hidden: Array | None  # [B,H,W,n] in (-1,1), with which a recurrent prox starts


def has_context(config: Proximal) -> bool:
    """Whether `ContextHeads` has anything to predict; without, it has no parameters either."""
    return config.prox == "gru" or "per_pixel" in (config.step_size, config.regularization)


class ContextHeads(nn.Module):
    """Features [B,H,W,c] -> PixelContext. Step sizes and lambdas start at the config's values in every pixel."""

    config: Proximal

    @nn.compact
    def __call__(self, features: Array) -> PixelContext:
        c = self.config
        inner, features = channels(32, c.head_width), features.astype(c.dtype)

        def map_of(name: str, kind: str, raw_of: Callable[[float], float], value: float) -> Array | None:
            if kind != "per_pixel":
                return None
            head = Head(1, 1, inner, c.activation, nn.initializers.zeros, raw_of(value), name=name)
            return head(features)[..., 0].astype(jnp.float32)

        step_size = map_of("step_size", c.step_size, raw_step, c.step_size_init)
        regularization = map_of("regularization", c.regularization, inverse_softplus, c.regularization_init)
        hidden = jnp.tanh(Conv(inner, name="hidden")(features).astype(jnp.float32)) if c.prox == "gru" else None
        return PixelContext(step_size, regularization, hidden)
