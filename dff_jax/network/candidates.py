"""Depth candidates D_i = Dbar + psi_i(F) (6, 7), or one of each scale, measured ones, and their weights W_i^2 (14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax import classical
from dff_jax.config import Proximal
from dff_jax.focus_axis import to_unit_coordinate
from dff_jax.network.inputs import side_by_side
from dff_jax.network.layers import ACTIVATIONS, Conv, apply, channels, he_fan_in, torch_default
from dff_jax.network.planes import VolumeFeatures
from dff_jax.types import Array

# Weights start small (S about 1 with three candidates, below 2 with measured ones), so that eta S < 1 and what the
# prox adds outlives the next data step; softmax weights do not feel it.
WEIGHT_BIAS = -1.0
# Of measured candidates: what brings a distance from Dbar to unit scale, and the first weight of one without a peak
DISTANCE_SCALE, LEAST_WEIGHT = 8.0, 1e-3
# Prominence of a typical peak. `classical` estimates it for each image; a network uses a constant, so that crops and
# tiles agree.
TYPICAL = 0.8


class Measured(NamedTuple):
    """M candidates that need no learning, those of `classical`."""

    depth: Array  # [B,H,W,M] in t
    weights: Array  # [B,H,W,M] >= 0, at most 1 together
    sharpness: Array  # [B,H,W,M] in [0,1): of the peak


def measure(frames: Array, t: Array) -> Measured:
    """Frames [B,Z,H,W,3] in [0,1] at t [B,Z] -> what focus measures say. Sends no gradient back."""
    _, found = classical.propose(frames, t)
    reach = jnp.full((frames.shape[0], 1, 1), classical.REACH, found.depth.dtype)
    typical = jnp.full(found.depth.shape[-1:], TYPICAL**2, found.depth.dtype)
    weights = classical.candidate_weights(found, reach, typical)
    excess = classical.excess_prominence(found)
    return jax.lax.stop_gradient(Measured(found.depth, weights, excess / (excess + TYPICAL)))


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
    """What the volume says and M measured candidates -> D_i and W_i^2, both [B,H,W,N], or [B,H,W,N+M].

    With candidate_source="per_scale" the N candidates are `seen.per_scale`, and there are no heads psi_i. The weights
    of the measured ones are multiplied by attention.
    """

    config: Proximal

    @nn.compact
    def __call__(self, seen: VolumeFeatures, measured: Measured | None) -> tuple[Array, Array]:
        c = self.config
        hidden, own, more = channels(32, c.head_width), c.num_candidates, 0
        features = seen.features
        if measured is not None:
            distance = jnp.tanh(DISTANCE_SCALE * (measured.depth - seen.expected[..., None]))
            features = side_by_side("heads", features=features, distance=distance, sharpness=measured.sharpness)
            more = measured.depth.shape[-1]
        attention = Head(own + more, 1, hidden, c.activation, last_bias=WEIGHT_BIAS, name="attention")
        features = features.astype(c.dtype)
        logits = attention(features).astype(jnp.float32)
        if measured is not None:  # exp(logit) = weight where the head says nothing yet
            brought = jnp.log(measured.weights + LEAST_WEIGHT) - WEIGHT_BIAS
            logits = jnp.concatenate([logits[..., :own], logits[..., own:] + brought], -1)
        candidates = seen.per_scale
        if candidates is None:
            # in the unit coordinate a candidate starts near Dbar; in dataset units it has far to go
            near = nn.initializers.variance_scaling(0.01, "fan_in", "uniform")
            last = torch_default if c.coordinate == "raw" else near
            residuals = [Head(1, 3, hidden, c.activation, last, name=f"residual{i}")(features) for i in range(own)]
            candidates = seen.expected[..., None] + jnp.concatenate(residuals, -1).astype(jnp.float32)
        if measured is not None:
            candidates = jnp.concatenate([candidates, measured.depth], -1)
        return candidates, normalize_weights(logits, c.weight_norm)


def measured_candidates(config: Proximal, frames: Array, focus: Array) -> Measured | None:
    """`measure` where the config asks for it."""
    return measure(frames, to_unit_coordinate(focus, focus)) if config.measured_candidates else None


def propose(
    config: Proximal, params: Mapping[str, Any], seen: VolumeFeatures, frames: Array, focus: Array
) -> tuple[Array, Array]:
    """Candidates D_i (6, 7) in the working coordinate and weights W_i^2 (14), both [B,H,W,N].

    Args:
      params: of `Candidates`.
      frames, focus: [B,Z,H,W,3] and [B,Z], for measured candidates.
    """
    measured = measured_candidates(config, frames, focus)
    return apply(Candidates(config), params, seen, measured)
