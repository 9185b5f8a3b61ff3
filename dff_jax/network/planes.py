"""The distribution over planes and its mean Dbar (4, 5), and what else the later steps read from the focus volume."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.focus_axis import to_unit_coordinate
from dff_jax.network.focus_volume import Scores
from dff_jax.network.inputs import side_by_side
from dff_jax.types import Array

VOLUME_SCALE = 0.1  # brings F to about one, for the networks at full resolution


class VolumeFeatures(NamedTuple):
    """What the focus volume says (1-5), in the working coordinate."""

    features: Array  # [B,H,W,c] F over its planes (and the guide)
    expected: Array  # [B,H,W] Dbar
    per_scale: Array | None  # [B,H,W,N] soft-argmax of each of the N finest score maps
    spread: Array  # [B,H,W] variance of the distribution over planes, in t^2
    all_in_focus: Array  # [B,H,W,3] soft all-in-focus image


def soft_argmax(logits: Array, planes: Array) -> Array:
    """sum_z P_z plane_z with P the softmax over planes (4, 5): logits [B,Z,H,W], planes [B,Z] -> [B,H,W]."""
    return _mean(jax.nn.softmax(logits, axis=1), planes)


def read_planes(config: Proximal, scores: Scores, frames: Array, focus: Array) -> VolumeFeatures:
    """P = softmax_z F (4), Dbar = sum_z P_z plane_z (5), and with the same P the variance and the all-in-focus image.

    Args:
      scores: of `focus_volume`.
      frames: [B,Z,H,W,3] in [0,1].
      focus: [B,Z] in q.
    """
    t = to_unit_coordinate(focus, focus)
    if config.planes == "index":
        planes = jnp.broadcast_to(jnp.arange(1.0, focus.shape[1] + 1), focus.shape)
    else:
        planes = t if config.coordinate == "unit" else focus
    P = jax.nn.softmax(scores.volume, axis=1)
    spread = jnp.einsum("bzhw,bzhw->bhw", P, (t[..., None, None] - _mean(P, t)[:, None]) ** 2)
    all_in_focus = (P[..., None] * frames).sum(1)  # a product of matrices is slower
    per_scale = None
    if config.candidate_source == "per_scale":
        per_scale = jnp.stack([soft_argmax(one, planes) for one in scores.scales[: config.num_candidates]], -1)
    if config.num_planes is None:
        features = jnp.moveaxis(scores.volume, 1, -1)
    else:
        features = VOLUME_SCALE * resample_planes(scores.volume, t, config.num_planes)
    features = side_by_side(
        "features", planes=features, guide=2 * all_in_focus - 1 if config.guide == "all_in_focus" else None
    )
    return VolumeFeatures(features, _mean(P, planes), per_scale, spread, all_in_focus)


def resample_planes(volume: Array, t: Array, num_planes: int) -> Array:
    """F over the real frames -> F over C planes uniform in t, by linear interpolation along the focus axis.

    Args:
      volume: [B,Z,H,W].
      t: [B,Z] unit coordinate of the frames, ascending from 0 to 1.
      num_planes: C.

    Returns:
      [B,H,W,C]. With Z = C and uniform spacing this is the identity.
    """
    planes = jnp.linspace(0.0, 1.0, num_planes)[None, None]  # [1,1,C]
    t = t[..., None]  # [B,Z,1]
    left = jnp.concatenate([t[:, :1] - 1, t[:, :-1]], 1)
    right = jnp.concatenate([t[:, 1:], t[:, -1:] + 1], 1)
    shares = jnp.clip(jnp.minimum((planes - left) / (t - left), (right - planes) / (right - t)), 0.0, 1.0)
    return jnp.einsum("bzhw,bzc->bhwc", volume, shares)


def _mean(P: Array, values: Array) -> Array:
    return jnp.einsum("bzhw,bz->bhw", P, values)
