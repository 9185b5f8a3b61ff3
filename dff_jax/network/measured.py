"""What can be measured without learning, for the network to build on: the candidates of `classical`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.classical import REACH, candidate_weights, excess_prominence, propose
from dff_jax.types import Array

# Of the prominence of a good peak. `classical` takes the picture's own; a network sees crops and tiles, too, and should
# find the same in each.
TYPICAL = 0.8


class Measured(NamedTuple):
    """M candidates."""

    depth: Array  # [B,H,W,M] in t
    weights: Array  # [B,H,W,M] >= 0, at most 1 together
    sharpness: Array  # [B,H,W,M] in [0,1): of the peak


def measure(frames: Array, t: Array) -> Measured:
    """Frames [B,Z,H,W,3] in [0,1] at t [B,Z] -> what focus measures say. Sends no gradient back."""
    _, found = propose(frames, t)
    reach = jnp.full((frames.shape[0], 1, 1), REACH, found.depth.dtype)
    weights = candidate_weights(found, reach, jnp.full(found.depth.shape[-1:], TYPICAL**2, found.depth.dtype))
    excess = excess_prominence(found)
    return jax.lax.stop_gradient(Measured(found.depth, weights, excess / (excess + TYPICAL)))
