"""Textures of procedural objects, each a pure function of the object's random numbers and pixel coordinates.

Three sets: `flying`, after FlyingThings3D; `natural`, which adds what photographs are full of: details of
all sizes (dead leaves whose sizes follow a power law have the edges and the 1/f spectrum of natural images: Lee,
Mumford and Huang, IJCV 2001), grain that runs in one direction, print on plain paper, and weak contrast; `printed` adds
labels: writing, bar codes and dots on faces that show nothing else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax, random

from dff_jax.types import Array


class Draws(NamedTuple):
    """One object's random numbers."""

    uniform: Array  # [24] in [0,1)
    normal: Array  # [16]
    cells: Array  # [48,8] in [0,1)
    field: Array  # [3,H,W] standard normal


_CELLS = 48


def draw(key: Array, height: int, width: int) -> Draws:
    k1, k2 = random.split(key)
    uniform = random.uniform(k1, (24 + _CELLS * 8,))
    normal = random.normal(k2, (16 + 3 * height * width,))
    return Draws(uniform[:24], normal[:16], uniform[24:].reshape(_CELLS, 8), normal[16:].reshape(3, height, width))


def between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u


def log_between(u: Array, low: float, high: float) -> Array:
    return jnp.exp(between(u, math.log(low), math.log(high)))


def pick(u: Array, shares: tuple[float, ...]) -> Array:
    """The index that a uniform number falls on when [0,1) is divided in these shares."""
    edges = jnp.cumsum(jnp.array(shares))[:-1]
    return (u >= edges).sum()


def turned(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """The coordinates along a direction, at `angle` from x, and across it."""
    return x * jnp.cos(angle) + y * jnp.sin(angle), y * jnp.cos(angle) - x * jnp.sin(angle)


def paint(u: Array, n: Array) -> Array:
    """A random colour of medium saturation, [1,1,3], from one uniform and three normal numbers."""
    return jnp.clip(between(u, 0.1, 0.9) + 0.25 * n, 0.02, 0.98)[None, None]


# Textures: (draws, x, y) -> [H,W,3]; x and y are the object's own pixel coordinates [H,W]; they use uniform[0:6] and
# normal[0:6] ---------------------------------------------------------------------------------------------------


def _frequencies(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Those of `rfft2`, in cycles per pixel: down [H,1] and across [1,W/2+1]."""
    return jnp.fft.fftfreq(shape[0])[:, None], jnp.fft.rfftfreq(shape[1])[None]


def _shaped(field: Array, frequency: Array, slope: Array) -> Array:
    """White noise [H,W] given a spectrum of 1/frequency^slope and standard deviation 1."""
    spectrum = jnp.fft.rfft2(field) * (frequency + 1 / max(field.shape)) ** -slope
    field = jnp.fft.irfft2(spectrum, s=field.shape)
    return field / (field.std() + 1e-6)


def _noise_texture(d: Draws, x: Array, y: Array) -> Array:
    """1/f^p noise, p from 0.6 (fine) to 1.8 (cloudy), around a base colour."""
    slope = between(d.uniform[0], 0.6, 1.8)
    frequency = jnp.hypot(*_frequencies(x.shape))
    field = jnp.stack([_shaped(plane, frequency, slope) for plane in d.field])
    grey = jnp.moveaxis(0.7 * field[:1] + 0.3 * field, 0, -1)
    return paint(d.uniform[1], d.normal[:3]) + between(d.uniform[2], 0.06, 0.2) * grey


def _cells_texture(d: Draws, x: Array, y: Array) -> Array:
    """Dead leaves seen from above: flat patches of random colour, from some pixels to a third of the image wide."""
    h, w = x.shape
    reach = between(d.uniform[0], 0.4, 1.2)
    centres = d.cells[:, :2] * jnp.array([[h, w]]) * reach
    sizes = log_between(d.cells[:, 2], 0.4, 2.5)

    def nearest(carry, point):
        best, index = carry
        i, (cy, cx), size = point
        distance = jnp.hypot(x - cx, y - cy) / size
        closer = distance < best
        return (jnp.where(closer, distance, best), jnp.where(closer, i, index)), None

    start = (jnp.full((h, w), jnp.inf), jnp.zeros((h, w), jnp.int32))
    (_, index), _ = lax.scan(nearest, start, (jnp.arange(_CELLS), centres, sizes))
    palette = jnp.clip(between(d.cells[:, 3:4], 0.1, 0.9) + 0.8 * (d.cells[:, 4:7] - 0.5), 0.02, 0.98)
    return palette[index]


def _waves(d: Draws, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Two phases [H,W] of a rotated grid of 4 to 40 pixels, and its sharpness."""
    angle, period = between(d.uniform[0], 0.0, math.pi), log_between(d.uniform[1], 4.0, 40.0)
    u, v = (axis * (2 * math.pi / period) for axis in turned(x, y, angle))
    return u, v, log_between(d.uniform[2], 1.0, 8.0)


def _two_colours(d: Draws, mix: Array) -> Array:
    a, b = paint(d.uniform[3], d.normal[:3]), paint(d.uniform[4], d.normal[3:6])
    return a + (b - a) * mix[..., None]


def _stripes_texture(d: Draws, x: Array, y: Array) -> Array:
    u, _, sharp = _waves(d, x, y)
    return _two_colours(d, 0.5 + 0.5 * jnp.tanh(sharp * jnp.sin(u)))


def _checks_texture(d: Draws, x: Array, y: Array) -> Array:
    u, v, sharp = _waves(d, x, y)
    return _two_colours(d, 0.5 + 0.5 * jnp.tanh(sharp * jnp.sin(u) * jnp.sin(v)))


def _gradient_texture(d: Draws, x: Array, y: Array) -> Array:
    """A smooth ramp between two colours with faint grain."""
    angle = between(d.uniform[0], 0.0, 2 * math.pi)
    ramp = turned(x, y, angle)[0] / max(x.shape)
    return _two_colours(d, jnp.clip(0.5 + ramp, 0.0, 1.0)) + 0.015 * d.field[0, ..., None]


def _plain_texture(d: Draws, x: Array, y: Array) -> Array:
    """Near-textureless paint: one colour, contrast of half a percent."""
    return paint(d.uniform[0], d.normal[:3]) + 0.005 * d.field[0, ..., None]


def _leaves_texture(d: Draws, x: Array, y: Array) -> Array:
    """Discs on discs, their radii r distributed as r^-3: small ones everywhere, a few large; repeats after a while."""
    period = log_between(d.uniform[0], 24.0, 96.0)
    least = log_between(d.uniform[1], 0.012, 0.05)
    place, u = d.cells[:, :2], d.cells[:, 2]
    radius = least / jnp.sqrt(1 - u * (1 - (least / 0.35) ** 2))
    radius = -jnp.sort(-radius)  # large ones below, so that the small ones stay in sight
    colours = paint(d.uniform[2], d.normal[:3])[0] + between(d.uniform[3], 0.1, 0.5) * (d.cells[:, 4:7] - 0.5) * 2
    px, py = (x / period) % 1.0, (y / period) % 1.0

    def lay(below: Array, leaf: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (cy, cx), r, colour = leaf
        away = jnp.hypot((px - cx + 0.5) % 1.0 - 0.5, (py - cy + 0.5) % 1.0 - 0.5)
        cover = jnp.clip((r - away) * period + 0.5, 0.0, 1.0)[..., None]
        return below + cover * (colour[None, None] - below), None

    ground = jnp.broadcast_to(paint(d.uniform[2], d.normal[:3]), (*x.shape, 3))
    leaves, _ = lax.scan(lay, ground, (place, radius, jnp.clip(colours, 0.02, 0.98)))
    return leaves


def _fibres_texture(d: Draws, x: Array, y: Array) -> Array:
    """1/f noise stretched in one direction: wood, cloth, brushed metal, grass."""
    angle, stretch = between(d.uniform[0], 0.0, math.pi), log_between(d.uniform[1], 2.0, 12.0)
    fy, fx = _frequencies(x.shape)
    along, across = turned(fx, fy, angle)
    field = _shaped(d.field[2], jnp.hypot(stretch * along, across), between(d.uniform[2], 0.8, 1.6))
    return _two_colours(d, jnp.clip(0.5 + between(d.uniform[5], 0.1, 0.35) * field, 0.0, 1.0))


def _print_texture(d: Draws, x: Array, y: Array) -> Array:
    """Plain paper with a few marks: most of it shows nothing, as walls, labels and pages do."""
    h, w = x.shape
    centres = d.cells[:, :2] * jnp.array([[h, w]]) - 0.1 * jnp.array([[h, w]])
    long, thin = log_between(d.cells[:, 2], 1.0, 12.0), log_between(d.cells[:, 3], 0.6, 3.0)
    u, v = turned(x, y, d.uniform[0] * math.pi)

    def mark(ink: Array, one: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (cy, cx), a, b = one
        inside = jnp.minimum(a - jnp.abs(u - cx), b - jnp.abs(v - cy))
        return jnp.maximum(ink, jnp.clip(inside + 0.5, 0.0, 1.0)), None

    ink, _ = lax.scan(mark, jnp.zeros((h, w)), (centres, long, thin))
    return _two_colours(d, ink) + 0.004 * d.field[0, ..., None]


def _hashed(*numbers: Array) -> Array:
    """A pseudo-random number in [0,1) for each tuple of whole numbers."""
    mixed = jnp.uint32(0x9E3779B9)
    for number in numbers:
        mixed = (mixed ^ number.astype(jnp.int32).astype(jnp.uint32)) * jnp.uint32(0x85EBCA6B)
        mixed = mixed ^ (mixed >> 15)
    mixed = mixed * jnp.uint32(0xC2B2AE35)
    return ((mixed ^ (mixed >> 16)) >> 8) / jnp.float32(2**24)


def _label_texture(d: Draws, x: Array, y: Array) -> Array:
    """A face of one colour with fields of writing, bars or dots, dark on light or light on dark; much stays empty."""
    seed = jnp.floor(d.uniform[0] * 2**20)
    height = log_between(d.uniform[1], 4.0, 24.0)  # of a line of writing, pixels
    line, across = jnp.floor(y / height), y / height - jnp.floor(y / height)
    across = (across - 0.12) / 0.76  # lines have space between them
    part = (jnp.floor(line / 4), jnp.floor(x / (height * between(d.uniform[2], 4.0, 16.0))))
    kind = _hashed(seed, *part)
    # writing: points of 5 x 4 to a letter, their edges run smoothly from one to the next
    points = x / (0.16 * height)

    def bits(vertical: Array) -> Array:
        lower, share = jnp.floor(points), points - jnp.floor(points)
        here = [_hashed(seed, line, vertical, lower + i) * (jnp.mod(lower + i, 5) < 4) for i in (0, 1)]
        return here[0] + (here[1] - here[0]) * share

    rows = jnp.clip(across, 0.0, 1.0) * 4
    upper = jnp.minimum(jnp.floor(rows), 3)
    written = bits(upper) + (bits(upper + 1) - bits(upper)) * (rows - upper)

    def edge(value: Array, pixels: Array | float) -> Array:
        return jnp.clip(value * pixels + 0.5, 0.0, 1.0)

    inside = edge(0.5 - jnp.abs(across - 0.5), height)
    writing = edge(written - 0.42, 0.3 * height) * inside
    bars = edge(_hashed(seed, *part, jnp.floor(x / jnp.maximum(1.5, 0.12 * height))) - 0.5, 1e3)
    centre = jnp.hypot(x / height - jnp.floor(x / height) - 0.5, y / height - line - 0.5)
    dots = edge(0.3 - centre, height) * (_hashed(seed, line, jnp.floor(x / height)) < 0.6)
    share = between(d.uniform[3], 0.25, 0.8)  # of the face that is empty
    printed = jnp.select(
        [kind < share, kind < share + 0.55 * (1 - share), kind < share + 0.75 * (1 - share)],
        [jnp.zeros_like(x), writing, bars], dots,
    )  # fmt: skip
    pale = between(d.uniform[4], 0.55, 0.97) + 0.05 * d.normal[:3]
    deep = between(d.uniform[5], 0.02, 0.4) + 0.06 * d.normal[3:6]
    pale, deep = jnp.where(d.normal[0] < 0.7, pale, deep), jnp.where(d.normal[0] < 0.7, deep, pale)
    return pale + (deep - pale) * printed[..., None] + 0.003 * d.field[0, ..., None]


_FLYING = (_noise_texture, _cells_texture, _stripes_texture, _checks_texture, _gradient_texture, _plain_texture)
_NATURAL = (*_FLYING, _leaves_texture, _fibres_texture, _print_texture)
_FAMILIES = {
    "flying": (_FLYING, (0.34, 0.22, 0.12, 0.12, 0.1, 0.1)),
    "natural": (_NATURAL, (0.2, 0.1, 0.05, 0.04, 0.07, 0.07, 0.25, 0.12, 0.1)),
    "printed": ((*_NATURAL, _label_texture), (0.15, 0.08, 0.03, 0.03, 0.06, 0.1, 0.2, 0.1, 0.08, 0.17)),
}


def texture(d: Draws, x: Array, y: Array, textures: str) -> Array:
    """A texture [H,W,3] of a random family of the set `textures`; uses uniform[0:8], and [20:23] but for flying."""
    families, shares = _FAMILIES[textures]
    kind = pick(d.uniform[6], shares)
    base = lax.switch(kind, families, d, x, y)
    if textures == "flying":  # fine grain on all but the smooth families
        return base + between(d.uniform[7], 0.0, 0.03) * ((kind != 4) & (kind != 5)) * d.field[1, ..., None]
    mean = base.mean((0, 1), keepdims=True)
    base = mean + log_between(d.uniform[20], 0.2, 1.4) * (base - mean)
    grey = base.mean(-1, keepdims=True)
    base = grey + d.uniform[21] * (base - grey)  # the world is less colourful than paint
    fine = _shaped(d.field[1], jnp.hypot(*_frequencies(x.shape)), between(d.uniform[22], 0.2, 1.3))
    return base + log_between(d.uniform[7], 0.003, 0.1) * ((kind != 5) & (kind < 8)) * fine[..., None]
