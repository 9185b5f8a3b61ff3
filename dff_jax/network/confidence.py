"""The error to expect of the answer, learned beside it: it sees what the method saw and sends no gradient back."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.candidates import Head
from dff_jax.network.layers import channels
from dff_jax.types import Array

LEAST, MOST = 1e-3, 1.0  # shares of the focus range
_START = -3.0  # before the sigmoid: a twentieth of the range


class ExpectedError(nn.Module):
    """Features [B,H,W,c] and doubts [B,H,W,n] of order one -> expected |error|, a share of the focus range, [B,H,W]."""

    config: Proximal

    @nn.compact
    def __call__(self, features: Array, doubts: Array) -> Array:
        c = self.config
        x = jnp.concatenate([features, doubts], -1).astype(c.dtype)
        head = Head(1, 1, channels(32, c.head_width), c.activation, nn.initializers.zeros, _START, name="head")
        return LEAST + (MOST - LEAST) * jax.nn.sigmoid(head(x)[..., 0].astype(jnp.float32))
