"""The training objective (26), over valid pixels, as sums and counts that add over devices and processes.

`mse_final` is the paper's: the mean squared error of the refined depth. `sequence` weighs the error of every stage,
Dbar, D(0)..D(K), Dhat(1)..Dhat(T), by gamma^(n-1-i), normalised to one, so that the last stage weighs most.
`multi_scale` is the loss of the compared networks: errors of the depths at several scales (`Prediction.scales`, the
answer first), each with its weight, not normalised.

Beside depth or in its place (`loss.image`, `loss.smoothness`) the data's all-in-focus picture can teach: AiFDNet's
losses A_FS and DA_FS (Wang et al., ICCV 2021). These are means over all pixels, with ground truth or without.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from dff_jax import focus_axis
from dff_jax.classical import sharp_composite
from dff_jax.config import LossConfig
from dff_jax.data.parts import Wanted
from dff_jax.errors import ConfigError
from dff_jax.types import Array, Batch, Prediction, error_of_confidence

LOG_SCALE = 0.1  # the error at which the gradient of log_l1 is half as large as that of a small error
EDGE_SHARPNESS, SLOPE_EPSILON = 150.0, 1e-6  # of AiFDNet's smoothness
CHARBONNIER_EPSILON = 1e-3  # in the unit of the error: a thousandth of the focus range in coordinate `unit`


class Sums(NamedTuple):
    """Sums over the pixels of a batch. Divide once, after adding over all devices."""

    loss: Array  # [] of the penalised, weighted errors, over the pixels of `loss_mask`
    errors: dict[str, Array]  # [] each: of |error| in q over the valid pixels, by the name under which it is logged
    images: dict[str, Array] = {}  # [] each, over all pixels: `image` and `smoothness`, where they have a weight

    def mean_loss(self, config: LossConfig, count: Array, pixels: Array) -> Array:
        """The loss []: `count` [] pixels of `loss_mask`, and `pixels` [] in all."""
        loss = self.loss / count
        for name, total in self.images.items():
            loss += getattr(config, name) * total / pixels
        return loss


def wanted(config: LossConfig) -> Wanted:
    """What the loss needs of its batches."""
    return Wanted(depth=config.depth > 0, all_in_focus=config.image > 0 or config.smoothness > 0)


def objective(prediction: Prediction, batch: Batch, config: LossConfig, coordinate: str) -> Sums:
    """The loss and what is logged beside it.

    Args:
      prediction: depth [B,H,W] in q. The stages of its `history` enter the sequence and the log; without one the
        answer is the only stage.
      batch: ground truth [B,H,W] in q and its mask.
      config: which loss; `mse_final` ignores `penalty`, as (26) is squared by definition.
      coordinate: "unit" divides errors by each stack's focus range, so that the loss does not depend on the unit;
        "raw" leaves them in q.

    Returns:
      Sums. `errors` has `mae` (the answer), and with a history `mae_Dbar`, `mae_D0`, `mae_DK`, `mae_refined` (T > 0)
      and `update`, the mean over k of |D(k) - D(k-1)| (K > 0). It shows first that a proximal network no longer does
      anything.
    """
    span = focus_axis.span(batch.focus)[:, None, None]
    counts = loss_mask(batch, config)

    def error(depth, mask=batch.mask):
        # Masked before the penalty, so that an invalid pixel sends no gradient, whatever was predicted there.
        return jnp.where(mask, depth - batch.depth, 0.0)

    def total(values, mask=batch.mask):
        return jnp.sum(jnp.where(mask, values, 0.0))

    penalty = "mse" if config.kind == "mse_final" else config.penalty
    scale = span if coordinate == "unit" else 1.0
    loss = jnp.float32(0.0)
    for weight, depth in weighted_depths(prediction, config) if config.depth else ():
        loss += config.depth * weight * total(penalize(error(depth, counts) / scale, penalty), counts)
    if config.uncertainty:
        expected = error_of_confidence(prediction.confidence)
        seen = jnp.abs(lax.stop_gradient(error(prediction.depth, counts))) / span
        # negative log likelihood of a Laplace distribution, whose scale is the mean absolute error
        loss += config.depth * config.uncertainty * total(seen / expected + jnp.log(expected), counts)

    logged = {"mae": prediction.depth}
    history = prediction.history
    if history is not None:
        logged |= {"mae_Dbar": history.expected, "mae_D0": history.iterates[:, 0], "mae_DK": history.iterates[:, -1]}
        if history.refined.shape[1]:
            logged["mae_refined"] = history.refined[:, -1]
    errors = {name: total(jnp.abs(error(depth))) for name, depth in logged.items()}
    if history is not None and history.iterates.shape[1] > 1:
        errors["update"] = total(jnp.mean(jnp.abs(jnp.diff(history.iterates, axis=1)), axis=1))
    images: dict[str, Array] = {}
    if config.image:
        images["image"] = image_error(prediction, batch)
    if config.smoothness:
        assert batch.all_in_focus is not None
        images["smoothness"] = smoothness(prediction.depth / scale, batch.all_in_focus)
    return Sums(loss, errors, images)


def image_error(prediction: Prediction, batch: Batch) -> Array:
    """Sum [] over all pixels of the error of the all-in-focus image, the mean over its channels of |I - I_gt|.

    The image of a method is the frames weighted by its attention, and teaches that alone. Where candidates and an
    unroll follow, the frames read at the answer (between two frames linearly) are a second image, and the error is the
    mean of both.
    """
    assert batch.all_in_focus is not None
    images = [prediction.all_in_focus]
    if prediction.history is not None:
        images.append(sharp_composite(batch.frames, prediction.depth, batch.focus))
    errors = [jnp.sum(jnp.mean(jnp.abs(image - batch.all_in_focus), -1)) for image in images]
    return sum(errors[1:], errors[0]) / len(errors)


def smoothness(depth: Array, picture: Array) -> Array:
    """AiFDNet's term: B H W times half the sum over both axes of mean(exp(-mean_c (150 dI)^2) sqrt(dd^2 + 1e-6)).

    Args:
      depth: [B,H,W]; dd are its forward differences.
      picture: [B,H,W,3] in [0,1]; dI are its forward differences.
    """
    total = jnp.float32(0.0)
    for axis in (1, 2):
        flat = jnp.exp(-jnp.mean(jnp.square(EDGE_SHARPNESS * jnp.diff(picture, axis=axis)), -1))
        slopes = jnp.sqrt(jnp.square(jnp.diff(depth, axis=axis)) + SLOPE_EPSILON)
        total += 0.5 * depth.size * jnp.mean(flat * slopes)
    return total


def loss_mask(batch: Batch, config: LossConfig) -> Array:
    """The pixels [B,H,W] over which the loss is a mean."""
    if config.region == "valid":
        return batch.mask
    low, high = batch.focus[:, 0, None, None], batch.focus[:, -1, None, None]
    return batch.mask & (batch.depth >= low) & (batch.depth <= high)


def weighted_depths(prediction: Prediction, config: LossConfig) -> list[tuple[float, Array]]:
    """The depths [B,H,W] that enter the loss, each with its weight.

    Raises:
      ConfigError: `multi_scale` with another number of weights than the network has scales.
    """
    if config.kind == "mse_final":
        return [(1.0, prediction.depth)]
    if config.kind == "sequence":
        depths = stages(prediction)
        return list(zip(stage_weights(len(depths), config.gamma), depths, strict=True))
    depths = [prediction.depth]
    if prediction.scales is not None:
        depths = list(jnp.moveaxis(prediction.scales, -1, 0))
    if len(depths) != len(config.scale_weights):
        raise ConfigError(f"loss.scale_weights: this network has {len(depths)} scales, not {len(config.scale_weights)}")
    return list(zip(config.scale_weights, depths, strict=True))


def stages(prediction: Prediction) -> list[Array]:
    """The depths [B,H,W] of the sequence loss, in order: Dbar, D(0)..D(K), Dhat(1)..Dhat(T)."""
    history = prediction.history
    if history is None:
        return [prediction.depth]
    maps = jnp.concatenate([history.expected[:, None], history.iterates, history.refined], 1)
    return list(jnp.moveaxis(maps, 1, 0))


def stage_weights(num_stages: int, gamma: float) -> list[float]:
    """gamma^(n-1-i) for i = 0..n-1, normalised to sum to one; defined for any n >= 1."""
    weights = [gamma ** (num_stages - 1 - i) for i in range(num_stages)]
    return [w / sum(weights) for w in weights]


def penalize(error: Array, penalty: str) -> Array:
    """Squared, absolute, smooth absolute (PyTorch's, beta 1) or Charbonnier error, or c log(1 + Charbonnier / c),
    elementwise; each is 0 at 0."""
    if penalty == "mse":
        return jnp.square(error)
    if penalty == "l1":
        return jnp.abs(error)
    if penalty == "smooth_l1":
        size = jnp.abs(error)
        return jnp.where(size < 1, 0.5 * jnp.square(error), size - 0.5)
    charbonnier = jnp.sqrt(jnp.square(error) + CHARBONNIER_EPSILON**2) - CHARBONNIER_EPSILON
    return LOG_SCALE * jnp.log1p(charbonnier / LOG_SCALE) if penalty == "log_l1" else charbonnier
