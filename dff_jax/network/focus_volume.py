"""Focal stack -> focus volume F (1-3): encoder, top-down path, 3-D decoder, mean of four score maps.

After DFV (Yang, Huang and Zhou, CVPR 2022), whose four cost maps are averaged here instead of supervised one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax.classical import box_mean, luminance, modified_laplacian
from dff_jax.config import Proximal
from dff_jax.network.encoder import ENCODERS
from dff_jax.network.inputs import side_by_side
from dff_jax.network.layers import Conv3d, ConvNormAct, Norm, channels, resize, torch_default
from dff_jax.types import Array

LEVELS = 4  # of the pyramid pooling
MEASURE_WINDOWS = (3, 9, 21)
MEASURE_FLOOR = 2e-3  # of the modified Laplacian, about the level of sensor noise in 8-bit photographs
# The gain at which the soft-argmax of the prior alone is as accurate as a Gaussian peak; the scores get the same, so
# that they can soon overrule the prior where it only sees noise
MEASURE_GAIN = 4.0
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize(frames: Array, input_range: str) -> Array:
    """Frames [...,3] in [0,1] as the encoder wants them: [-1,1], or ImageNet mean and standard deviation."""
    if input_range == "symmetric":
        return 2 * frames - 1
    mean, std = (jnp.asarray(v).reshape((1,) * (frames.ndim - 1) + (3,)) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (frames - mean) / std


def pool_bins(*lengths: int) -> list[int]:
    """DFV's pyramid: four bin counts, linspace(1, min(lengths) // 2, 4) rounded down."""
    most = min(lengths) // 2
    return [int(1 + i * (most - 1) / 3 + 1e-6) for i in range(LEVELS)]


def average_pool(x: Array, *window: int) -> Array:
    """Averages over windows side by side, over the axes before the channels; an incomplete window is left out."""
    return nn.avg_pool(x, window, strides=window)


def pyramid_level(x: Array, level: int, transform: Callable[[Array], Array]) -> Array:
    """One level of the pyramid: `transform` of x averaged over bins, enlarged back (linearly, half-pixel centres).

    Args:
      x: [n,H,W,c] or [n,Z,H,W,c].
      level: 0 to 3, from the fewest bins to the most (`pool_bins`).
      transform: acts on each pixel alone.
    """
    lengths = x.shape[1:-1]
    bins = pool_bins(*lengths)[level]
    y = transform(average_pool(x, *(length // bins for length in lengths)))
    shape = (*x.shape[:-1], y.shape[-1])
    return y if y.shape == shape else jax.image.resize(y, shape, "linear", antialias=False)


class TopDown(nn.Module):
    """2-D top-down path over one frame's levels, and their 1x1 projections: 16@1/4, 32@1/8, 64@1/16, 128@1/32."""

    width: float
    norm: str
    pooling: str

    @nn.compact
    def __call__(self, levels: tuple[Array, ...], train: bool) -> tuple[Array, ...]:
        def block(features: int, kernel: int, name: str, upsample: bool = False, scaled: bool = True):
            features = channels(features, self.width) if scaled else features
            module = ConvNormAct(features, kernel, self.norm, upsample, name=name)
            return lambda x: module(x, train)

        x = levels[3]
        if self.pooling == "pyramid":
            total = 0.0
            for i in range(LEVELS):  # pool0 has the most bins
                branch = block(x.shape[-1], 1, f"pool{i}", scaled=False)
                total = total + pyramid_level(x, LEVELS - 1 - i, branch)
            x = nn.relu(0.5 * (x + 0.25 * total))
        volumes = [block(128, 1, "project4")(x)]
        for level, features, projected in ((3, 256, 64), (2, 128, 32), (1, 64, 16)):
            skip = levels[level - 1]
            up = block(features, 3, f"up{level}", upsample=True)(x)
            x = block(features, 3, f"merge{level}")(jnp.concatenate([skip, up], -1))
            volumes.append(block(projected, 1, f"project{level}")(x))
        return tuple(reversed(volumes))


class Residual3d(nn.Module):
    """Two 3x3x3 convolutions with a skip, over [B,Z,h,w,C]."""

    features: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = lambda y: Norm(self.norm)(y, train)  # noqa: E731
        y = nn.relu(norm(Conv3d(self.features)(x)))
        y = norm(Conv3d(self.features)(y))
        if x.shape[-1] != self.features:
            x = norm(Conv3d(self.features, 1, kernel_init=torch_default)(x))
        return nn.relu(x + y)


class DecoderBlock(nn.Module):
    """One level of the 3-D decoder: [B,Z,h,w,c] -> score [B,Z,h,w] and, unless finest, features at twice the size.

    Without `with_score` the score is None and is not computed; its parameters stay, under the same names.
    """

    features: int
    up_to: int | None
    pool: bool
    norm: str

    @nn.compact
    def __call__(self, x: Array, train: bool, with_score: bool = True) -> tuple[Array | None, Array | None]:
        norm = lambda y: Norm(self.norm)(y, train)  # noqa: E731
        for _ in range(2):
            x = Residual3d(self.features, self.norm)(x, train)
        h, w = x.shape[2:4]
        if self.pool:
            total = 0.0
            for level in range(LEVELS):
                total = total + pyramid_level(x, level, lambda pooled: norm(Conv3d(self.features, 1)(pooled)))
            x = nn.relu(0.5 * (x + 0.25 * total))
        # made whether used or not: flax numbers modules in the order in which they are made
        hidden, head = Conv3d(self.features), Conv3d(1, use_bias=True)
        head_norm, score = Norm(self.norm), None
        if with_score:
            score = head(nn.relu(head_norm(hidden(x), train)))[..., 0]
        if self.up_to is None:
            return score, None
        return score, nn.relu(norm(Conv3d(self.up_to)(resize(x, 2 * h, 2 * w))))


def frame_differences(volume: Array) -> Array:
    """[B,Z,...] minus the next frame's; the last frame stays as it is, so that Z is kept."""
    return jnp.concatenate([volume[:, :-1] - volume[:, 1:], volume[:, -1:]], 1)


def measure_logits(frames: Array) -> Array:
    """log sum-modified-Laplacian over 3, 9 and 21 pixel windows, centred over the frames: [B,Z,H,W,3].

    Sharpness as it can be measured before anything is learned; where there is no texture all frames tie near 0.
    """
    sharpness = modified_laplacian(luminance(frames))
    logs = jnp.stack([jnp.log(box_mean(sharpness, window) + MEASURE_FLOOR) for window in MEASURE_WINDOWS], -1)
    return logs - logs.mean(1, keepdims=True)


class Scores(NamedTuple):
    """How sharp each frame is at each pixel, as logits."""

    volume: Array  # [B,Z,H,W] F over the real frames
    scales: tuple[Array, ...]  # with candidate_source="per_scale" the maps whose mean F is, finest first; else none


class FocusVolume(nn.Module):
    """Frames [B,Z,H,W,3] in [0,1], H and W multiples of 32 -> Scores."""

    config: Proximal

    @nn.compact
    def __call__(self, frames: Array, train: bool) -> Scores:
        c = self.config
        b, z, h, w, _ = frames.shape
        flat = normalize(frames, c.input_range).astype(c.dtype).reshape(b * z, h, w, 3)
        levels = ENCODERS[c.encoder](c.width, c.norm, name="encoder")(flat, train)
        width = c.width * c.decoder_width
        volumes = TopDown(width, c.norm, c.pooling, name="top_down")(levels, train)
        volumes = [v.reshape(b, z, *v.shape[1:]) for v in volumes]
        if c.volume == "diff":
            volumes = [frame_differences(v) for v in volumes]
        measures = None if c.measure_prior == "none" else measure_logits(frames)

        pool = c.pooling == "pyramid"
        plan = ((128, 64, pool), (64, 32, pool), (32, 16, False), (32, None, False))
        x, all_scores, scores = None, [], []
        for level, (features, up_to, pooling) in zip((4, 3, 2, 1), plan, strict=True):
            pooled = None
            if measures is not None and c.measure_prior == "log_sml_features":
                pooled = average_pool(measures, 1, 2 ** (level + 1), 2 ** (level + 1)).astype(c.dtype)
            x = side_by_side("decoder", up=x, volume=volumes[level - 1], measures=pooled)
            block = DecoderBlock(
                channels(features, width), up_to and channels(up_to, width), pooling, c.norm,
                name=f"decoder{level}",
            )  # fmt: skip
            score, x = block(x, train)
            assert score is not None
            score = resize(score.astype(jnp.float32)[..., None], h, w)[..., 0]
            all_scores.append(score)
            if c.candidate_source == "per_scale":
                scores.insert(0, score)
        volume = sum(all_scores[1:], all_scores[0]) / 4
        if measures is not None:
            scale = self.param("measure_scale", nn.initializers.ones, (len(MEASURE_WINDOWS),))
            prior = measures @ scale
            volume = MEASURE_GAIN * (volume + prior)
            scores = [MEASURE_GAIN * (score + prior) for score in scores]
        return Scores(volume, tuple(scores))


def focus_volume(
    config: Proximal, params: Mapping[str, Any], batch_stats: Any, frames: Array, train: bool
) -> tuple[Scores, Any]:
    """F (1-3) and the batch statistics, updated when training.

    Args:
      params, batch_stats: of `FocusVolume`.
      frames: [B,Z,H,W,3] in [0,1], H and W multiples of 32.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    scores, changed = FocusVolume(config).apply(variables, frames, train, mutable=["batch_stats"])
    return scores, changed.get("batch_stats", {}) if train else batch_stats
