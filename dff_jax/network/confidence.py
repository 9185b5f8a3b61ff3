"""Confidence: the error to expect of the answer, from how far planes and candidates lie apart, or learned beside it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.candidates import Head
from dff_jax.network.inputs import side_by_side
from dff_jax.network.layers import apply, channels
from dff_jax.network.planes import VolumeFeatures
from dff_jax.types import Array, confidence_of_error
from dff_jax.unroll import Problem, disagreement
from dff_jax.unroll.problem import EPS

LEAST, MOST = 1e-3, 1.0  # of a learned expected error, shares of the focus range
DISAGREEMENT_SCALE = 10.0  # brings distances in the unit coordinate to about one
_START = -3.0  # before the sigmoid: a twentieth of the range


def candidate_std(problem: Problem) -> Array:
    """The candidates' weighted standard deviation sqrt(2 V / S), [B,H,W]."""
    return jnp.sqrt(_candidate_variance(problem) + 1e-8)


def _candidate_variance(problem: Problem) -> Array:
    return 2 * disagreement(problem) / jnp.maximum(problem.S, EPS)


def disagreement_scaled(problem: Problem) -> Array:
    """`candidate_std` in (0,1), [B,H,W]."""
    return jnp.tanh(DISAGREEMENT_SCALE * candidate_std(problem))


class ExpectedError(nn.Module):
    """Features [B,H,W,c] and [B,H,W,n], of order one -> expected |error|, a share of the focus range, [B,H,W]."""

    config: Proximal

    @nn.compact
    def __call__(self, features: Array, errors: Array) -> Array:
        c = self.config
        x = side_by_side("expected_error", features=features, errors=errors).astype(c.dtype)
        head = Head(1, 1, channels(32, c.head_width), c.activation, nn.initializers.zeros, _START, name="head")
        return LEAST + (MOST - LEAST) * jax.nn.sigmoid(head(x)[..., 0].astype(jnp.float32))


def error_features(seen: VolumeFeatures, problem: Problem, answer: Array) -> tuple[Array, Array]:
    """What the expected error is learned from: F, and how much the method disagrees with itself. Without gradient.

    Returns:
      [B,H,W,c] and [B,H,W,5]: spread over planes, spread of the candidates, |answer - Dbar|, S and the answer.
    """
    S = problem.S
    distances = jnp.sqrt(seen.spread + 1e-8), candidate_std(problem), jnp.abs(answer - seen.expected)
    scaled = [jnp.tanh(DISAGREEMENT_SCALE * distance) for distance in distances]
    return jax.lax.stop_gradient((seen.features, jnp.stack([*scaled, S / (1 + S), answer], -1)))


def confidence(
    config: Proximal, params: dict, seen: VolumeFeatures, problem: Problem, answer: Array, span: Array | float
) -> Array:
    """exp(-expected error / CONFIDENCE_SCALE), [B,H,W] in (0,1].

    By `config.uncertainty` the error is sqrt(variance over planes + variance of the candidates), as a share of the
    focus range, or learned by `ExpectedError`.

    Args:
      params: the estimator's; "expected_error" of a learned one.
      answer: [B,H,W] in the working coordinate.
      span: [B,1,1] width of the focus range in the working coordinate.
    """
    if config.uncertainty == "learned":
        features = error_features(seen, problem, answer)
        error = apply(ExpectedError(config), params["expected_error"], *features)
    else:
        error = jnp.sqrt(seen.spread + _candidate_variance(problem) / span**2 + 1e-12)
    return confidence_of_error(error)
