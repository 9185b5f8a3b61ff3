"""Camera faults and imperfect alignment, drawn at random once for each stack.

In the order of the light: misaligned frames, vignetting and varying exposure, a soft sensor; then (`compress`, after
the noise) JPEG. All are pure functions of a key, which can be mapped over stacks.
"""

from __future__ import annotations

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.ndimage import map_coordinates

from dff_jax.config import CameraConfig
from dff_jax.optics.render import linear_to_srgb, srgb_to_linear
from dff_jax.types import Array

_BLOCK = 8
# ITU-T T.81, Annex K: the tables that encoders scale by quality
_LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], np.float32)  # fmt: skip
_CHROMINANCE = np.full((8, 8), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_CELL = (np.arange(_BLOCK)[:, None] * (2 * np.arange(_BLOCK)[None] + 1) * math.pi / 16).astype(np.float32)
_DCT = np.cos(_CELL) * np.where(np.arange(_BLOCK) == 0, math.sqrt(1 / 8), 0.5)[:, None].astype(np.float32)


def apply_camera_faults(key: Array, frames: Array, config: CameraConfig) -> Array:
    """Frames [Z,H,W,3] in [0,1] with the faults of a real camera, except noise and compression; the truth stays."""
    k_share, k_move, k_light, k_soft = random.split(key, 4)
    hit = random.uniform(k_share) < config.share

    def faulty(seen: Array) -> Array:
        if config.shift or config.breathing:
            seen = _move(k_move, seen, config.shift, config.breathing)
        if config.vignetting or config.exposure:
            seen = _light(k_light, seen, config.vignetting, config.exposure)
        if config.softness:
            seen = _soften(seen, config.softness * random.uniform(k_soft))
        return seen

    return lax.cond(hit, faulty, lambda frames: frames, frames)  # under lax.map the others cost nothing


def _move(key: Array, frames: Array, shift: float, breathing: float) -> Array:
    """Each frame shifted and magnified about the centre, by amounts drawn for the stack, most of them small."""
    z, h, w, _ = frames.shape
    k_much, k_sign, k_frames = random.split(key, 3)
    much = random.uniform(k_much, (2,)) ** 2
    wander = jnp.clip(random.normal(k_frames, (z, 2)) / 2, -1.0, 1.0) * much[0] * shift
    scale = 1 + jnp.linspace(-0.5, 0.5, z) * much[1] * breathing * random.rademacher(k_sign, (), frames.dtype)
    y, x = jnp.mgrid[:h, :w].astype(frames.dtype)

    def one(item: tuple[Array, Array, Array]) -> Array:
        frame, by, factor = item
        at = (y - (h - 1) / 2) * factor + (h - 1) / 2 + by[0], (x - (w - 1) / 2) * factor + (w - 1) / 2 + by[1]
        return jnp.stack([map_coordinates(frame[..., c], at, order=1, mode="nearest") for c in range(3)], -1)

    return lax.map(one, (frames, wander, scale))


def _light(key: Array, frames: Array, vignetting: float, exposure: float) -> Array:
    """Vignetting, as by the cos^4 law, and an exposure that varies from frame to frame."""
    z, h, w, _ = frames.shape
    k_loss, k_much, k_frames = random.split(key, 3)
    y, x = jnp.linspace(-1, 1, h)[:, None], jnp.linspace(-1, 1, w)[None]
    falloff = 1 - vignetting * random.uniform(k_loss) * (x**2 + y**2) / 2
    gain = jnp.exp(exposure * random.uniform(k_much) * jnp.clip(random.normal(k_frames, (z,)) / 2, -1.0, 1.0))
    light = srgb_to_linear(frames) * falloff[None, ..., None] * gain[:, None, None, None]
    return linear_to_srgb(jnp.clip(light, 0.0, 1.0))


def _soften(frames: Array, sigma: Array) -> Array:
    """A Gaussian of `sigma` <= 1 pixels, cut at two pixels."""
    weights = jnp.exp(-0.5 * (jnp.arange(-2.0, 3.0) / jnp.maximum(sigma, 1e-2)) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2):
        size = frames.shape[axis]
        pad = [(0, 0)] * 4
        pad[axis] = (2, 2)
        wide = jnp.pad(frames, pad, mode="edge")
        taps = (weights[i] * lax.slice_in_dim(wide, i, i + size, axis=axis) for i in range(5))
        frames = sum(taps, jnp.zeros_like(frames))
    return frames


def compress(key: Array, frames: Array, quality: tuple[int, int]) -> Array:
    """Half of all stacks after JPEG compression of a random quality, [Z,H,W,3] in [0,1]; colour has half resolution."""
    k_half, k_quality = random.split(key)
    chosen = random.uniform(k_quality, minval=quality[0], maxval=quality[1])
    return lax.cond(random.bernoulli(k_half), partial(jpeg, quality=chosen), lambda frames: frames, frames)


def jpeg(frames: Array, quality: Array | float) -> Array:
    """Frames [...,H,W,3] in [0,1] after compression at `quality`, 1 to 100, libjpeg's scale: blocks of 8 x 8 cosines,
    rounded to multiples of the standard tables' steps (ITU-T T.81)."""
    *_, h, w, _ = frames.shape
    unit = 2 * _BLOCK
    pad = [(0, 0)] * (frames.ndim - 3) + [(0, -h % unit), (0, -w % unit), (0, 0)]
    ycc = jnp.einsum("...c,dc->...d", jnp.pad(frames, pad, mode="edge") * 255, _TO_YCC)
    factor = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)
    luma = _quantised(ycc[..., 0] - 128, _LUMINANCE, factor) + 128
    chroma = jnp.moveaxis(ycc[..., 1:], -1, 0)
    *lead, high, wide = chroma.shape
    halved = chroma.reshape(*lead, high // 2, 2, wide // 2, 2).mean((-3, -1))
    halved = _quantised(halved, _CHROMINANCE, factor)
    chroma = jnp.repeat(jnp.repeat(halved, 2, -2), 2, -1)
    back = jnp.stack([luma, chroma[0], chroma[1]], -1)
    rgb = jnp.einsum("...c,dc->...d", back, np.linalg.inv(_TO_YCC).astype(np.float32))
    return jnp.clip(rgb / 255, 0.0, 1.0)[..., :h, :w, :]


def _quantised(plane: Array, table: np.ndarray, factor: Array) -> Array:
    """[...,h,w] with the cosines of its 8 x 8 blocks rounded to multiples of factor * table, at least 1."""
    *lead, h, w = plane.shape
    blocks = plane.reshape(*lead, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK)
    steps = jnp.maximum(jnp.floor(table * factor + 0.5), 1.0)
    steps = steps[:, None, :].reshape((1,) * (blocks.ndim - 3) + (_BLOCK, 1, _BLOCK))
    cosines = jnp.einsum("...aibj,ui,vj->...aubv", blocks, _DCT, _DCT)
    cosines = jnp.round(cosines / steps) * steps
    return jnp.einsum("...aubv,ui,vj->...aibj", cosines, _DCT, _DCT).reshape(plane.shape)
