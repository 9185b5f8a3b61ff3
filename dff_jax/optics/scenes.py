"""Procedural worlds in the image of FlyingThings3D: objects that fly before a background, at many disparities.

A world is a pure function of a PRNG key: jit it, vmap it, render it on the accelerator. Surfaces are slanted or
curved, some structures are a few pixels thin, and textures are 1/f noise, dead leaves (cells), stripes, checks,
gradients and near-textureless paint. Ground truth lies partly outside the range of the focus settings.

Every object draws its random numbers in a few large blocks (`Draws`), because each separate draw costs compile time.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from dff_jax.config import WorldConfig
from dff_jax.optics.render import add_sensor_noise, render_stack
from dff_jax.types import Array


class World(NamedTuple):
    """A scene without a lens."""

    rgb: Array  # [H,W,3] display-coded (sRGB), in [0,1]
    depth: Array  # [H,W] disparity


class RenderedStack(NamedTuple):
    """A photographed scene."""

    frames: Array  # [Z,H,W,3] in [0,1]
    focus: Array  # [Z] disparity, ascending
    depth: Array  # [H,W] disparity
    all_in_focus: Array  # [H,W,3]


class Draws(NamedTuple):
    """One object's random numbers."""

    uniform: Array  # [24] in [0,1)
    normal: Array  # [16]
    cells: Array  # [48,8] in [0,1)
    field: Array  # [3,H,W] standard normal


_CELLS = 48


def _draw(key: Array, height: int, width: int) -> Draws:
    k1, k2 = random.split(key)
    uniform = random.uniform(k1, (24 + _CELLS * 8,))
    normal = random.normal(k2, (16 + 3 * height * width,))
    return Draws(uniform[:24], normal[:16], uniform[24:].reshape(_CELLS, 8), normal[16:].reshape(3, height, width))


def _between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u


def _log_between(u: Array, low: float, high: float) -> Array:
    return jnp.exp(_between(u, math.log(low), math.log(high)))


def _pick(u: Array, shares: tuple[float, ...]) -> Array:
    """The index that a uniform number falls on when [0,1) is divided in these shares."""
    edges = jnp.cumsum(jnp.array(shares))[:-1]
    return (u >= edges).sum()


def _paint(u: Array, n: Array) -> Array:
    """A random colour of medium saturation, [1,1,3], from one uniform and three normal numbers."""
    return jnp.clip(_between(u, 0.1, 0.9) + 0.25 * n, 0.02, 0.98)[None, None]


# Textures: (draws, x, y) -> [H,W,3]; x and y are the object's own pixel coordinates [H,W]; they use uniform[0:6] and
# normal[0:6] ---------------------------------------------------------------------------------------------------


def _noise_texture(d: Draws, x: Array, y: Array) -> Array:
    """1/f^p noise, p from 0.6 (fine) to 1.8 (cloudy), around a base colour."""
    h, w = x.shape
    frequency = jnp.hypot(jnp.fft.fftfreq(h)[:, None], jnp.fft.rfftfreq(w)[None, :])
    slope = _between(d.uniform[0], 0.6, 1.8)
    shaped = jnp.fft.rfft2(d.field) * ((frequency + 1 / max(h, w)) ** -slope)[None]
    field = jnp.fft.irfft2(shaped, s=(h, w))
    field = field / (field.std((1, 2), keepdims=True) + 1e-6)
    grey = jnp.moveaxis(0.7 * field[:1] + 0.3 * field, 0, -1)
    return _paint(d.uniform[1], d.normal[:3]) + _between(d.uniform[2], 0.06, 0.2) * grey


def _cells_texture(d: Draws, x: Array, y: Array) -> Array:
    """Dead leaves seen from above: flat patches of random colour, from some pixels to a third of the image wide."""
    h, w = x.shape
    reach = _between(d.uniform[0], 0.4, 1.2)
    centres = d.cells[:, :2] * jnp.array([[h, w]]) * reach
    sizes = _log_between(d.cells[:, 2], 0.4, 2.5)

    def nearest(carry, point):
        best, index = carry
        i, (cy, cx), size = point
        distance = jnp.hypot(x - cx, y - cy) / size
        closer = distance < best
        return (jnp.where(closer, distance, best), jnp.where(closer, i, index)), None

    start = (jnp.full((h, w), jnp.inf), jnp.zeros((h, w), jnp.int32))
    (_, index), _ = lax.scan(nearest, start, (jnp.arange(_CELLS), centres, sizes))
    palette = jnp.clip(_between(d.cells[:, 3:4], 0.1, 0.9) + 0.8 * (d.cells[:, 4:7] - 0.5), 0.02, 0.98)
    return palette[index]


def _waves(d: Draws, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Two phases [H,W] of a rotated grid of 4 to 40 pixels, and its sharpness."""
    angle, period = _between(d.uniform[0], 0.0, math.pi), _log_between(d.uniform[1], 4.0, 40.0)
    u = (x * jnp.cos(angle) + y * jnp.sin(angle)) * (2 * math.pi / period)
    v = (y * jnp.cos(angle) - x * jnp.sin(angle)) * (2 * math.pi / period)
    return u, v, _log_between(d.uniform[2], 1.0, 8.0)


def _two_colours(d: Draws, mix: Array) -> Array:
    a, b = _paint(d.uniform[3], d.normal[:3]), _paint(d.uniform[4], d.normal[3:6])
    return a + (b - a) * mix[..., None]


def _stripes_texture(d: Draws, x: Array, y: Array) -> Array:
    u, _, sharp = _waves(d, x, y)
    return _two_colours(d, 0.5 + 0.5 * jnp.tanh(sharp * jnp.sin(u)))


def _checks_texture(d: Draws, x: Array, y: Array) -> Array:
    u, v, sharp = _waves(d, x, y)
    return _two_colours(d, 0.5 + 0.5 * jnp.tanh(sharp * jnp.sin(u) * jnp.sin(v)))


def _gradient_texture(d: Draws, x: Array, y: Array) -> Array:
    """A smooth ramp between two colours with faint grain."""
    angle = _between(d.uniform[0], 0.0, 2 * math.pi)
    ramp = (x * jnp.cos(angle) + y * jnp.sin(angle)) / max(x.shape)
    return _two_colours(d, jnp.clip(0.5 + ramp, 0.0, 1.0)) + 0.015 * d.field[0, ..., None]


def _plain_texture(d: Draws, x: Array, y: Array) -> Array:
    """Near-textureless paint: one colour, contrast of half a percent."""
    return _paint(d.uniform[0], d.normal[:3]) + 0.005 * d.field[0, ..., None]


_TEXTURES = (
    _noise_texture, _cells_texture, _stripes_texture, _checks_texture, _gradient_texture, _plain_texture,
)  # fmt: skip
_TEXTURE_SHARE = (0.34, 0.22, 0.12, 0.12, 0.1, 0.1)


def _texture(d: Draws, x: Array, y: Array) -> Array:
    """A texture of a random family; uses uniform[0:8]."""
    kind = _pick(d.uniform[6], _TEXTURE_SHARE)
    base = lax.switch(kind, _TEXTURES, d, x, y)
    grain = _between(d.uniform[7], 0.0, 0.03) * (kind < 4)  # fine grain on all but the smooth families
    return base + grain * d.field[1, ..., None]


# Shapes: signed distances in pixels, positive inside; u, v are the object's rotated coordinates in pixels; they use
# uniform[8:10] -------------------------------------------------------------------------------------------------


def _ellipse(d: Draws, u: Array, v: Array, size: Array) -> Array:
    aspect = _between(d.uniform[8], 0.4, 1.0)
    return (size - jnp.hypot(u, v / aspect)) * aspect


def _rectangle(d: Draws, u: Array, v: Array, size: Array) -> Array:
    return jnp.minimum(size - jnp.abs(u), size * _between(d.uniform[8], 0.4, 1.0) - jnp.abs(v))


def _star(d: Draws, u: Array, v: Array, size: Array) -> Array:
    lobes = jnp.floor(_between(d.uniform[8], 3.0, 8.0))
    wobble = 1 + _between(d.uniform[9], 0.1, 0.4) * jnp.cos(lobes * jnp.arctan2(v, u))
    return 0.8 * (size * wobble - jnp.hypot(u, v))


def _bar(d: Draws, u: Array, v: Array, size: Array) -> Array:
    """A thin, long bar: 1.5 to 5 pixels wide."""
    return jnp.minimum(3 * size - jnp.abs(u), 0.5 * _log_between(d.uniform[8], 1.5, 5.0) - jnp.abs(v))


def _ring(d: Draws, u: Array, v: Array, size: Array) -> Array:
    """A ring 2 to 8 pixels thick."""
    return 0.5 * _log_between(d.uniform[8], 2.0, 8.0) - jnp.abs(jnp.hypot(u, v) - size)


def _everywhere(d: Draws, u: Array, v: Array, size: Array) -> Array:
    return jnp.full_like(u, 1e6)


_SHAPES = (_ellipse, _rectangle, _star, _bar, _ring, _everywhere)
_SHAPE_SHARE = (0.28, 0.28, 0.2, 0.14, 0.1)
_BACKGROUND = len(_SHAPES) - 1


def _surface(d: Draws, q: Array, u: Array, v: Array, size: Array) -> Array:
    """Disparity [H,W] of a slanted plane, or (a third) of a sphere cap or bowl on one, around q; uniform[10:12]."""
    slant = jnp.clip(0.12 * d.normal[6:8], -0.35, 0.35)
    plane = q + slant[0] * u + slant[1] * v
    cap = jnp.sqrt(jnp.clip(1 - (u**2 + v**2) / (1.6 * size) ** 2, 0.0, 1.0))
    return plane + jnp.where(d.uniform[10] < 0.35, _between(d.uniform[11], -14.0, 18.0), 0.0) * cap


@partial(jax.jit, static_argnames="config")
def make_world(key: Array, config: WorldConfig) -> World:
    """A random world of config.height x config.width pixels; the same key gives the same world."""
    h, w = config.height, config.width
    low, high = config.depth_range
    scale = 192.0 / max(h, w)  # so that slants and caps span the same disparities at any size
    y, x = jnp.mgrid[:h, :w].astype(jnp.float32)
    k_centres, k_objects, k_light = random.split(key, 3)

    def add_object(world: World, item: tuple[Array, Array, Array]) -> tuple[World, None]:
        key, q, is_background = item
        d = _draw(key, h, w)
        cx, cy = _between(d.uniform[12], -0.05, 1.05) * w, _between(d.uniform[13], -0.05, 1.05) * h
        angle = _between(d.uniform[14], 0.0, 2 * math.pi)
        size = _log_between(d.uniform[15], 0.05, 0.32) * min(h, w)
        u = (x - cx) * jnp.cos(angle) + (y - cy) * jnp.sin(angle)
        v = (y - cy) * jnp.cos(angle) - (x - cx) * jnp.sin(angle)
        shape = jnp.where(is_background, _BACKGROUND, _pick(d.uniform[16], _SHAPE_SHARE))
        inside = lax.switch(shape, _SHAPES, d, u, v, size)
        flat = jnp.where(is_background, 0.6 * scale, scale)  # a background is slanted less
        surface = jnp.clip(_surface(d, q, flat * u, flat * v, flat * size), low, high)
        in_front = surface > world.depth
        cover = jnp.where(in_front, jnp.clip(inside + 0.5, 0.0, 1.0), 0.0)[..., None]
        return World(
            rgb=cover * _texture(d, u, v) + (1 - cover) * world.rgb,
            depth=jnp.where(in_front & (inside > 0), surface, world.depth),
        ), None

    n = config.num_objects
    centres = random.uniform(k_centres, (n + 1,))
    background = _between(centres[:1], low + 0.02 * (high - low), low + 0.4 * (high - low))
    flying = jnp.sort(_between(centres[1:], low, high))  # painted from far to near
    nothing = World(jnp.zeros((h, w, 3)), jnp.full((h, w), -jnp.inf))
    items = (random.split(k_objects, n + 1), jnp.concatenate([background, flying]), jnp.arange(n + 1) == 0)
    world, _ = lax.scan(add_object, nothing, items)

    tilt = random.normal(k_light, (2,))
    light = 1 + 0.15 * jnp.tanh(tilt[0] * (x / w - 0.5) + tilt[1] * (y / h - 0.5))
    return World(jnp.clip(world.rgb * light[..., None], 0.0, 1.0), world.depth)


@partial(jax.jit, static_argnames="config")
def make_stack(key: Array, config: WorldConfig) -> RenderedStack:
    """A random world photographed by a random lens: noisy frames, focus settings and ground truth.

    Jitted with `config` static; vmap over keys for a batch.
    """
    k_world, k_lens, k_noise = random.split(key, 3)
    world = make_world(k_world, config)
    focus = jnp.linspace(*config.focus_range, config.num_frames)
    blur, sigma = random.uniform(k_lens, (2,))
    frames = render_stack(
        world.rgb, world.depth, focus, blur_per_q=_between(blur, *config.blur_per_disparity),
        max_radius=config.max_blur_radius, num_layers=config.num_layers,
    )  # fmt: skip
    frames = add_sensor_noise(k_noise, frames, _between(sigma, *config.noise))
    return RenderedStack(frames, focus, world.depth, world.rgb)
