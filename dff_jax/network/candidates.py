"""Depth candidates D_i = Dbar + psi_i(F) (6, 7), or one of each scale, measured ones, and the weights W_i^2 (14)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.layers import ACTIVATIONS, Conv, channels, he_fan_in, torch_default
from dff_jax.network.measured import Measured
from dff_jax.types import Array

# Weights start small (S about 1 with three candidates, below 2 with measured ones), so that eta S < 1 and what the
# prox adds outlives the next data step; softmax weights do not feel it.
WEIGHT_BIAS = -1.0
# Of measured candidates: what brings a distance from Dbar to unit scale, and the first weight of one without a peak
DISTANCE_SCALE, LEAST_WEIGHT = 8.0, 1e-3


def normalize_weights(logits: Array, kind: str) -> Array:
    """W_i^2 >= 0 from logits [...,N].

    softmax: W_i^2 sums to 1 (the paper's reading of 14), so S carries nothing. softmax_squared: (14) read as W_i.
    sigmoid, softplus: each candidate on its own, so that S is a true confidence.
    """
    if kind == "softmax":
        return jax.nn.softmax(logits, -1)
    if kind == "softmax_squared":
        return jax.nn.softmax(logits, -1) ** 2
    return jax.nn.sigmoid(logits) if kind == "sigmoid" else jax.nn.softplus(logits)


class Head(nn.Module):
    """conv3, conv3 (32 channels each, activated) and a last convolution: [B,H,W,c] -> [B,H,W,features]."""

    features: int
    last_kernel: int
    hidden: int
    activation: str
    last_init: Callable = torch_default
    last_bias: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = ACTIVATIONS[self.activation]
        x = act(Conv(self.hidden, kernel_init=he_fan_in)(x))
        x = act(Conv(self.hidden, kernel_init=he_fan_in)(x))
        bias = nn.initializers.constant(self.last_bias)
        return Conv(self.features, self.last_kernel, kernel_init=self.last_init, bias_init=bias)(x)


class Candidates(nn.Module):
    """Features [B,H,W,c] (F, and the guide) and Dbar [B,H,W] -> D_i and W_i^2, both [B,H,W,N], or [B,H,W,N+M].

    With candidate_source="per_scale" the N candidates are given, `per_scale` [B,H,W,N], and there are no heads psi_i.
    The M `measured` ones follow, with the weights they bring, which attention multiplies.
    """

    config: Proximal

    @nn.compact
    def __call__(
        self, features: Array, expected: Array, per_scale: Array | None = None, measured: Measured | None = None
    ) -> tuple[Array, Array]:
        c = self.config
        hidden, own, more = channels(32, c.head_width), c.num_candidates, 0
        if measured is not None:
            distance = jnp.tanh(DISTANCE_SCALE * (measured.depth - expected[..., None]))
            features = jnp.concatenate([features, distance, measured.sharpness], -1)
            more = measured.depth.shape[-1]
        attention = Head(own + more, 1, hidden, c.activation, last_bias=WEIGHT_BIAS, name="attention")
        features = features.astype(c.dtype)
        logits = attention(features).astype(jnp.float32)
        if measured is not None:  # exp(logit) = weight where the head says nothing yet
            brought = jnp.log(measured.weights + LEAST_WEIGHT) - WEIGHT_BIAS
            logits = jnp.concatenate([logits[..., :own], logits[..., own:] + brought], -1)
        further = [] if measured is None else [measured.depth]
        weights = normalize_weights(logits, c.weight_norm)

        def joined(depths: Array) -> tuple[Array, Array]:
            return jnp.concatenate([depths, *further], -1), weights

        if per_scale is not None:
            return joined(per_scale)
        # in the unit coordinate a candidate starts near Dbar; in dataset units it has far to go
        last = torch_default if c.coordinate == "raw" else nn.initializers.variance_scaling(0.01, "fan_in", "uniform")
        residuals = [
            Head(1, 3, hidden, c.activation, last, name=f"residual{i}")(features) for i in range(c.num_candidates)
        ]
        return joined(expected[..., None] + jnp.concatenate(residuals, -1).astype(jnp.float32))
