"""A recurrent prox: what it learned of a pixel in one iteration it still knows in the next."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.layers import ACTIVATIONS, Conv, he_fan_in, torch_default
from dff_jax.types import Array


class RecurrentUpdate(nn.Module):
    """x [B,H,W,c], h [B,H,W,n] -> correction or depth [B,H,W], new h: a convolutional GRU, after RAFT (Teed and Deng,
    ECCV 2020, eqs. 4-7), with a 3x3 encoder before and a 3x3 head behind it:

        u, r = sigmoid(conv(h, x));  h' = tanh(conv(r h, x));  h <- (1 - u) h + u h'
    """

    config: Proximal

    @nn.compact
    def __call__(self, x: Array, hidden: Array) -> tuple[Array, Array]:
        c, n = self.config, hidden.shape[-1]
        act = ACTIVATIONS[c.activation]
        x = act(Conv(n, kernel_init=he_fan_in, name="encode")(x))
        gates = jax.nn.sigmoid(Conv(2 * n, name="gates")(jnp.concatenate([hidden, x], -1)))
        update, reset = gates[..., :n], gates[..., n:]
        proposed = jnp.tanh(Conv(n, name="propose")(jnp.concatenate([reset * hidden, x], -1)))
        hidden = (1 - update) * hidden + update * proposed
        y = act(Conv(n, kernel_init=he_fan_in, name="head")(hidden))
        last = nn.initializers.zeros if c.prox_output == "residual" else torch_default
        return Conv(1, kernel_init=last, name="output")(y)[..., 0], hidden
