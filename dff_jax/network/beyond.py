"""A candidate beyond the ends of the focus settings.

Where a surface lies beyond the last setting no frame shows it sharp, and every peak of a focus curve is drawn to that
end. How far away it is shows in how sharpness falls from the end inwards: least where the curve is still near its
summit, most on its flank.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.classical import enlarge, luminance, modified_laplacian
from dff_jax.classical.candidates import SCALES, scale_guides, scale_means
from dff_jax.config import ModelConfig
from dff_jax.focus_axis import to_unit_coordinate
from dff_jax.network.candidates import WEIGHT_BIAS, Head
from dff_jax.network.focus_volume import MEASURE_FLOOR
from dff_jax.network.layers import channels, torch_default
from dff_jax.network.refiner import GAP_SCALE
from dff_jax.types import Array

STEPS = (0, 1, 2, 4)  # frames from the end, at which sharpness is read
REACH = 0.1  # of t, by a softplus of 1
DECAY = 20.0  # the weight falls by e for each 1 / DECAY of t that Dbar lies from the end
FARTHEST = 0.25  # of the smallest positive setting
MIDDLE = 0.2  # of t: so near to the middle the candidate is drawn to Dbar, as it changes sides there


def falls(frames: Array, guide: Array, t: Array) -> Array:
    """How the logarithm of sharpness falls from either end inwards, and over which distances.

    Args:
      frames: [B,Z,H,W,3] in [0,1].
      guide: [B,H,W,3] picture of the scene.
      t: [B,Z] ascending from 0 to 1.

    Returns:
      [2,B,H,W,n]: of the first setting and of the last, the fall from each of the `STEPS` to the next at each scale of
      `classical`, then the distances. Sends no gradient back.
    """
    last, (height, width) = frames.shape[1] - 1, frames.shape[2:4]
    places = np.minimum(STEPS, last)
    order = np.concatenate([places, last - places])
    means = scale_means(modified_laplacian(luminance(frames)[:, order]), scale_guides(luminance(guide)))
    logs = [enlarge(jnp.log(x + MEASURE_FLOOR), scale) for x, scale in zip(means, SCALES, strict=True)]
    log = jnp.stack([x[..., :height, :width] for x in logs], 2)  # [B,2 steps,scale,H,W]
    log = log.reshape(log.shape[0], 2, len(STEPS), *log.shape[2:])
    fall = log[:, :, :-1] - log[:, :, 1:]  # [B,2,step,scale,H,W]
    fall = jnp.moveaxis(fall.reshape(*fall.shape[:2], -1, height, width), (1, 2), (0, -1))
    gaps = jnp.abs(jnp.diff(t[:, order].reshape(-1, 2, len(STEPS)), axis=-1))  # [B,2,step]
    gaps = jnp.broadcast_to(GAP_SCALE * jnp.moveaxis(gaps, 1, 0)[:, :, None, None], (*fall.shape[:-1], gaps.shape[-1]))
    return jax.lax.stop_gradient(jnp.concatenate([fall, gaps], -1))


def least(focus: Array) -> Array:
    """The least t [B,1,1] of such a candidate: where all settings q [B,Z] are positive, a quarter of the smallest.

    Inverse distances: beyond four times the farthest setting blur says little more than that, and 0 is infinity.
    """
    first = focus[:, 0, None, None]
    return jnp.where(first > 0, to_unit_coordinate(FARTHEST * first, focus), -jnp.inf)


class Beyond(nn.Module):
    """F over planes (and the guide) [B,H,W,c], Dbar [B,H,W] in t and `falls` -> depth beyond the nearer end, and the
    logit of its weight, both [B,H,W]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, features: Array, expected: Array, falls: Array) -> tuple[Array, Array]:
        c = self.config
        at_last = (expected > 0.5)[..., None]
        planes, rest = features[..., : c.num_planes], features[..., c.num_planes :]
        planes = jnp.where(at_last, planes, planes[..., ::-1])  # either end is looked at as if it were the last
        inwards = jnp.minimum(expected, 1 - expected)
        seen = [planes, rest, jnp.where(at_last, falls[1], falls[0]), jnp.tanh(DECAY * inwards)[..., None]]
        hidden = channels(32, c.head_width)
        head = Head(2, 3, hidden, c.activation, torch_default, WEIGHT_BIAS, name="head")
        out = head(jnp.concatenate(seen, -1).astype(c.dtype)).astype(jnp.float32)
        away = REACH * jax.nn.softplus(out[..., 0])
        end = jnp.where(at_last[..., 0], 1 + away, -away)
        share = jnp.clip((0.5 - inwards) / MIDDLE, 0.0, 1.0)
        return expected + share * (end - expected), out[..., 1] - DECAY * inwards
