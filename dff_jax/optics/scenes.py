"""Procedural worlds after FlyingThings3D: objects that fly in front of a background, at many disparities.

A world is a pure function of a PRNG key: jit it, vmap it, render it on the accelerator. Surfaces are slanted or
curved, some structures are a few pixels thin, and textures (`textures`) are 1/f noise, dead leaves (cells), stripes,
checks, gradients and near-textureless paint. Ground truth lies partly outside the range of the focus settings.

Every object draws its random numbers in a few large blocks (`Draws`), because each separate draw costs compile time.
With `textures="natural"` and so on (`WorldConfig`) worlds become as varied as photographs: rooms and folds, many
apertures, any focus settings, blur from half a pixel to twenty.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from dff_jax.config import WorldConfig
from dff_jax.optics.render import MOST_VIEWS, Aperture, add_sensor_noise, render_stack
from dff_jax.optics.textures import Draws, between, draw, log_between, pick, texture, turned
from dff_jax.types import Array

LAYER_STEP = 0.65  # pixels of blur radius between two layers, where `num_layers` allows it


class World(NamedTuple):
    """A scene without a lens."""

    rgb: Array  # [H,W,3] display-coded (sRGB), in [0,1]
    depth: Array  # [H,W] disparity


class RenderedStack(NamedTuple):
    """A rendered focal stack and its ground truth."""

    frames: Array  # [Z,H,W,3] in [0,1]
    focus: Array  # [Z] disparity, ascending
    depth: Array  # [H,W] disparity
    all_in_focus: Array  # [H,W,3]


# Shapes: signed distances in pixels, positive inside; u, v are the object's rotated coordinates in pixels; they use
# uniform[8:10] -------------------------------------------------------------------------------------------------


def _ellipse(d: Draws, u: Array, v: Array, size: Array) -> Array:
    aspect = between(d.uniform[8], 0.4, 1.0)
    return (size - jnp.hypot(u, v / aspect)) * aspect


def _rectangle(d: Draws, u: Array, v: Array, size: Array) -> Array:
    return jnp.minimum(size - jnp.abs(u), size * between(d.uniform[8], 0.4, 1.0) - jnp.abs(v))


def _star(d: Draws, u: Array, v: Array, size: Array) -> Array:
    lobes = jnp.floor(between(d.uniform[8], 3.0, 8.0))
    wobble = 1 + between(d.uniform[9], 0.1, 0.4) * jnp.cos(lobes * jnp.arctan2(v, u))
    return 0.8 * (size * wobble - jnp.hypot(u, v))


def _bar(d: Draws, u: Array, v: Array, size: Array) -> Array:
    """A thin, long bar: 1.5 to 5 pixels wide."""
    return jnp.minimum(3 * size - jnp.abs(u), 0.5 * log_between(d.uniform[8], 1.5, 5.0) - jnp.abs(v))


def _ring(d: Draws, u: Array, v: Array, size: Array) -> Array:
    """A ring 2 to 8 pixels thick."""
    return 0.5 * log_between(d.uniform[8], 2.0, 8.0) - jnp.abs(jnp.hypot(u, v) - size)


def _everywhere(d: Draws, u: Array, v: Array, size: Array) -> Array:
    return jnp.full_like(u, 1e6)


_SHAPES = (_ellipse, _rectangle, _star, _bar, _ring, _everywhere)
_SHAPE_SHARE = (0.28, 0.28, 0.2, 0.14, 0.1)
_BACKGROUND = len(_SHAPES) - 1


def _surface(d: Draws, q: Array, u: Array, v: Array, size: Array, natural: Array | bool) -> Array:
    """Disparity [H,W] of a slanted plane, or (a third) of a sphere cap or bowl on one, around q; uniform[10:12].

    A quarter of natural ones is folded, like boxes, books and cloth; uniform[17:20].
    """
    slant = jnp.clip(0.12 * d.normal[6:8], -0.35, 0.35)
    plane = q + slant[0] * u + slant[1] * v
    cap = jnp.sqrt(jnp.clip(1 - (u**2 + v**2) / (1.6 * size) ** 2, 0.0, 1.0))
    surface = plane + jnp.where(d.uniform[10] < 0.35, between(d.uniform[11], -14.0, 18.0), 0.0) * cap
    if not natural:
        return surface
    period, height = log_between(d.uniform[18], 10.0, 80.0), between(d.uniform[19], -8.0, 8.0)
    fold = jnp.abs(((u + 0.3 * v) / period) % 2.0 - 1.0)
    return surface + jnp.where(d.uniform[17] < 0.25, height, 0.0) * fold


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
        d = draw(key, h, w)
        cx, cy = between(d.uniform[12], -0.05, 1.05) * w, between(d.uniform[13], -0.05, 1.05) * h
        angle = between(d.uniform[14], 0.0, 2 * math.pi)
        # printed faces are large, as those of boxes, books and screens
        size = log_between(d.uniform[15], 0.05, 0.32 if config.textures != "printed" else 0.6) * min(h, w)
        u, v = turned(x - cx, y - cy, angle)
        shape = jnp.where(is_background, _BACKGROUND, pick(d.uniform[16], _SHAPE_SHARE))
        inside = lax.switch(shape, _SHAPES, d, u, v, size)
        flat = jnp.where(is_background, 0.6 * scale, scale)  # a background is slanted less
        natural = config.textures != "flying"
        surface = _surface(d, q, flat * u, flat * v, flat * size, natural)
        if natural:  # half of the backgrounds are floors, walls and ceilings that run through much of the range
            steep = between(d.uniform[8], -0.9, 0.9) * (high - low) / max(h, w)
            surface = surface + jnp.where(is_background & (d.uniform[23] < 0.5), steep, 0.0) * v
        surface = jnp.clip(surface, low, high)
        in_front = surface > world.depth
        cover = jnp.where(in_front, jnp.clip(inside + 0.5, 0.0, 1.0), 0.0)[..., None]
        return World(
            rgb=cover * texture(d, u, v, config.textures) + (1 - cover) * world.rgb,
            depth=jnp.where(in_front & (inside > 0), surface, world.depth),
        ), None

    n = config.num_objects
    centres = random.uniform(k_centres, (n + 1,))
    background = between(centres[:1], low + 0.02 * (high - low), low + 0.4 * (high - low))
    flying = jnp.sort(between(centres[1:], low, high))  # painted from far to near
    nothing = World(jnp.zeros((h, w, 3)), jnp.full((h, w), -jnp.inf))
    items = (random.split(k_objects, n + 1), jnp.concatenate([background, flying]), jnp.arange(n + 1) == 0)
    world, _ = lax.scan(add_object, nothing, items)

    tilt = random.normal(k_light, (2,))
    light = 1 + 0.15 * jnp.tanh(tilt[0] * (x / w - 0.5) + tilt[1] * (y / h - 0.5))
    return World(jnp.clip(world.rgb * light[..., None], 0.0, 1.0), world.depth)


class Lens(NamedTuple):
    """The lens, sensor and focus settings by which a world is rendered."""

    focus: Array  # [Z] disparity, ascending
    blur_per_disparity: Array  # []
    aperture: Aperture | None
    noise: Array  # [] standard deviation, of full scale
    squeeze: Array  # [2] the world's disparities become squeeze[0] + squeeze[1] * disparity


def draw_lens(key: Array, config: WorldConfig) -> Lens:
    """A random lens for a world of `config`."""
    low, high = config.depth_range
    blur, sigma = random.uniform(key, (2,))
    noise = between(sigma, *config.noise)
    k_settings, k_rest = random.split(random.fold_in(key, 1))
    u = random.uniform(k_rest, (8,))
    focus, squeeze = jnp.linspace(*config.focus_range, config.num_frames), jnp.array([0.0, 1.0])
    if config.settings == "varied":
        focus = _varied_settings(k_settings, config)
        share = jnp.where(u[0] < 0.5, 1.0, between(u[1], 0.3, 1.0))  # half of the scenes are shallower
        squeeze = jnp.stack([(1 - share) * between(u[2], low, high), share])
    if config.blur_radius is None:
        blur_per_disparity = between(blur, *config.blur_per_disparity)
    else:
        blur_per_disparity = log_between(blur, *config.blur_radius) / (focus[-1] - focus[0])
    aperture = None
    if config.apertures == "varied":
        v = random.uniform(random.fold_in(k_rest, 1), (2,))
        aperture = Aperture(
            blades=jnp.where(u[3] < 0.5, 0.0, jnp.floor(between(u[4], 5.0, 9.99))), rotation=2 * math.pi * u[5],
            softness=jnp.where(u[6] < 0.5, 0.0, between(2 * u[6] - 1, 0.0, 1.2)), rim=between(u[7], -0.7, 0.7),
            views=jnp.where(v[0] < 0.12, jnp.floor(between(v[1], 5.0, MOST_VIEWS + 0.99)), 0.0),
        )  # fmt: skip
    return Lens(focus, blur_per_disparity, aperture, noise, squeeze)


def _varied_settings(key: Array, config: WorldConfig) -> Array:
    """Focus settings [Z] over most of the depths: uniform, or denser towards one end, or irregular."""
    low, high = config.depth_range
    k_range, k_steps = random.split(key)
    u = random.uniform(k_range, (6,))
    first = low + between(u[0], -0.02, 0.2) * (high - low)
    last = high - between(u[1], -0.02, 0.2) * (high - low)
    t = jnp.linspace(0.0, 1.0, config.num_frames)
    bent = t ** log_between(u[2], 0.5, 2.0)
    steps = jnp.diff(jnp.where(u[3] < 0.4, bent, t))
    uneven = jnp.where(u[4] < 0.4, between(u[5], 0.1, 0.5), 0.0)
    steps = steps * jnp.exp(uneven * random.normal(k_steps, steps.shape))
    t = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps) / steps.sum()])
    return first + (last - first) * t


@partial(jax.jit, static_argnames="config")
def make_stack(key: Array, config: WorldConfig) -> RenderedStack:
    """A random world rendered with a random lens: noisy frames, focus settings and ground truth.

    Jitted with `config` static; vmap over keys for a batch.
    """
    k_world, k_lens, k_noise = random.split(key, 3)
    world, lens = make_world(k_world, config), draw_lens(k_lens, config)
    depth = world.depth if config.settings == "uniform" else lens.squeeze[0] + lens.squeeze[1] * world.depth
    frames = render_stack(
        world.rgb, depth, lens.focus, blur_per_q=lens.blur_per_disparity, max_radius=config.max_blur_radius,
        num_layers=config.num_layers, aperture=lens.aperture,
        layer_step=None if config.blur_radius is None else LAYER_STEP,
    )  # fmt: skip
    frames = add_sensor_noise(k_noise, frames, lens.noise)
    return RenderedStack(frames, lens.focus, depth, world.rgb)
