"""Layered, occlusion-aware thin-lens rendering: sharp RGB + depth -> focal stack.

The scene is cut into L layers, equally spaced in q (disparity or diopters). From back to front, in linear light,
    B <- K_l * (alpha_l J_l) + (1 - K_l * alpha_l) B
where K_l is the aperture's image at the layer's blur radius. A pixel between two layers is opaque in the
farther and fractionally covered by the nearer one, so the sum of the two is the pixel itself and the result is
differentiable in depth. Behind a nearer surface a layer's colour and depth are continued from the surroundings that
it can see, so blurred edges reveal a plausible background instead of a black or repeated one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from scipy.fft import next_fast_len

from dff_jax.optics.thin_lens import blur_radius
from dff_jax.types import Array

FFT_ABOVE = 4  # pixels of blur radius beyond which the FFT is quicker; measured on CPU


def srgb_to_linear(rgb: Array) -> Array:
    """Display-coded RGB in [0,1] to linear light (IEC 61966-2-1); any shape."""
    return jnp.where(rgb <= 0.04045, rgb / 12.92, ((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Array) -> Array:
    """Linear light in [0,1] to display-coded RGB; any shape."""
    curve = 1.055 * jnp.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(light <= 0.0031308, 12.92 * light, curve)


MOST_VIEWS = 9  # as the benchmarks' light fields have; more would be cut off


class Aperture(NamedTuple):
    """The shape of a lens's blur, each a number or []."""

    blades: Array | float = 0.0  # of the diaphragm: a polygon of so many sides; 0: a circle
    rotation: Array | float = 0.0  # of the polygon, radians
    softness: Array | float = 0.0  # width of the edge, as a share of the radius, beside the pixel's own
    rim: Array | float = 0.0  # brightness of the edge above the centre's: > 0 a ring, < 0 a bell
    # 2 to MOST_VIEWS: views x views points on a square of twice the radius, as in a refocused light field, in place of
    # the shapes above; 0: none
    views: Array | float = 0.0


def blur_kernels(radii: Array, max_radius: int, aperture: Aperture | None = None) -> Array:
    """Anti-aliased images of a point for blur radii [...] in pixels, each summing to 1: [2R+1, 2R+1, ...].

    `aperture` None is a circle, whose radius of half a pixel or less is the identity; radii above `max_radius` R are
    cut to R. A polygon has the circle's area.
    """
    y, x = jnp.mgrid[-max_radius : max_radius + 1, -max_radius : max_radius + 1].astype(jnp.float32)
    distance = jnp.hypot(x, y)
    if aperture is not None:
        sides = jnp.maximum(jnp.asarray(aperture.blades, jnp.float32), 3.0)
        half = math.pi / sides
        angle = (jnp.arctan2(y, x) - aperture.rotation) % (2 * half) - half
        # the apothem of a polygon of area pi is sqrt(half / tan(half))
        polygon = distance * jnp.cos(angle) / jnp.sqrt(half / jnp.tan(half))
        distance = jnp.where(jnp.asarray(aperture.blades) >= 3, polygon, distance)
    distance = distance.reshape(x.shape + (1,) * radii.ndim)
    radii = jnp.minimum(radii, max_radius)[None, None]
    if aperture is None:
        coverage = jnp.clip(radii + 0.5 - distance, 0.0, 1.0)
    else:
        width = 1.0 + aperture.softness * jnp.maximum(radii - 0.5, 0.0)
        coverage = jnp.clip(0.5 + (radii - distance) / width, 0.0, 1.0)
        inside = jnp.minimum(distance / jnp.maximum(radii, 1e-3), 1.0)
        coverage = coverage * (1 + aperture.rim * (2 * inside**2 - 1) * jnp.clip(radii - 0.5, 0.0, 1.0))
        if not isinstance(aperture.views, (int, float)) or aperture.views:
            coverage = jnp.where(jnp.asarray(aperture.views) >= 2, _points(radii, max_radius, aperture.views), coverage)
    return coverage / coverage.sum((0, 1), keepdims=True)


def _points(radii: Array, max_radius: int, views: Array | float) -> Array:
    """[2R+1,2R+1,...]: `views` x `views` points, evenly over the square of half side `radii` [...] pixels."""
    x = jnp.arange(-max_radius, max_radius + 1.0).reshape((-1, 1) + (1,) * (radii.ndim - 2))
    number = jnp.arange(MOST_VIEWS, dtype=jnp.float32).reshape((1, -1) + (1,) * (radii.ndim - 2))
    at = radii * (2 * number / (jnp.asarray(views) - 1) - 1)
    line = jnp.where(number < views, jnp.maximum(1 - jnp.abs(x - at), 0.0), 0.0).sum(1)
    return line[:, None] * line[None]


def _pool_sum(x: Array) -> Array:
    """Sums over 2x2 blocks of [H,W,c]; odd sizes are padded with zeros."""
    h, w, c = x.shape
    x = jnp.pad(x, ((0, h % 2), (0, w % 2), (0, 0)))
    return x.reshape((h + 1) // 2, 2, (w + 1) // 2, 2, c).sum((1, 3))


def continue_behind(values: Array, seen: Array, levels: int) -> tuple[Array, Array]:
    """Fills `values` [H,W,c] where `seen` [H,W,1] is 0 from what is seen nearby (push-pull over `levels` octaves).

    Returns the filled values and [H,W,1] in {0,1}: whether anything was seen within reach.
    """
    pyramid = [(values * seen, seen)]
    for _ in range(levels):
        values, seen = pyramid[-1]
        pyramid.append((_pool_sum(values), _pool_sum(seen)))
    total, weight = pyramid[-1]
    filled, reach = total / jnp.maximum(weight, 1e-6), (weight > 1e-6).astype(values.dtype)
    for total, weight in reversed(pyramid[:-1]):
        h, w = weight.shape[:2]
        coarse = jnp.repeat(jnp.repeat(filled, 2, 0), 2, 1)[:h, :w]
        reach = jnp.repeat(jnp.repeat(reach, 2, 0), 2, 1)[:h, :w]
        share = jnp.minimum(weight, 1.0)
        filled = share * total / jnp.maximum(weight, 1e-6) + (1 - share) * coarse
    return filled, reach


def _blur(channels: Array, kernels: Array, use_fft: bool) -> Array:
    """channels [c,H,W] with each of the kernels [k,k,Z] -> [c,H,W,Z]; the border is continued."""
    radius = kernels.shape[0] // 2
    padded = jnp.pad(channels, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    if not use_fft:
        return lax.conv_general_dilated(
            padded[..., None], kernels[:, :, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    shape = tuple(int(next_fast_len(n, real=True)) for n in padded.shape[1:])  # pyright: ignore[reportArgumentType]
    spectrum = jnp.fft.rfft2(padded, s=shape)[:, None]
    response = jnp.fft.rfft2(jnp.moveaxis(kernels, -1, 0), s=shape)[None]
    blurred = jnp.fft.irfft2(spectrum * response, s=shape)
    h, w = channels.shape[1:]
    return jnp.moveaxis(blurred[:, :, 2 * radius : 2 * radius + h, 2 * radius : 2 * radius + w], 1, -1)


@partial(jax.jit, static_argnames=("max_radius", "num_layers", "layer_step"))
def render_stack(
    rgb: Array, depth: Array, focus: Array, *, blur_per_q: Array | float, max_radius: int, num_layers: int,
    aperture: Aperture | None = None, layer_step: float | None = None,
) -> Array:
    """Renders a scene at several focus settings. Jitted; differentiable in rgb, depth, focus and blur_per_q.

    Args:
      rgb: [H,W,3] all-in-focus image, display-coded (sRGB), in [0,1].
      depth: [H,W] q (disparity or diopters: larger is nearer), finite everywhere.
      focus: [Z] focus settings in q.
      blur_per_q: blur radius in pixels per unit of |q - focus|.
      max_radius: largest blur radius in pixels; larger ones are cut to it.
      aperture: shape of the blur, the same everywhere; None: a circle.
      num_layers: L; choose it so that neighbouring layers differ by less than about a pixel of blur radius.
      layer_step: least distance of two layers, in pixels of blur radius; a flat scene then has fewer layers than L,
        which saves time where stacks are rendered one by one.

    Returns:
      [Z,H,W,3] frames, display-coded, in [0,1], without noise.
    """
    levels = max(1, math.ceil(math.log2(max_radius + 1)) + 1)
    use_fft = max_radius > FFT_ABOVE
    near, far = depth.max(), depth.min()
    spacing = jnp.maximum((near - far) / (num_layers - 1), 1e-5 * jnp.maximum(jnp.abs(near), jnp.abs(far)) + 1e-12)
    if layer_step is not None:
        spacing = jnp.maximum(spacing, layer_step / blur_per_q)
    layers = far + spacing * jnp.arange(num_layers, dtype=depth.dtype)
    scene = jnp.concatenate([srgb_to_linear(rgb), depth[..., None]], -1)

    def blend(carry, layer):
        light, cover = carry  # [3,H,W,Z], [1,H,W,Z]
        seen = (depth < layer + spacing).astype(scene.dtype)[..., None]
        filled, reach = continue_behind(scene, seen, levels)
        colour, q = filled[..., :3], filled[..., 3:]
        alpha = reach * jnp.clip(1.0 - (layer - q) / spacing, 0.0, 1.0)
        kernels = blur_kernels(blur_radius(layer, focus, blur_per_q), max_radius, aperture)
        planes = jnp.moveaxis(jnp.concatenate([alpha * colour, alpha], -1), -1, 0)
        blurred = _blur(planes, kernels, use_fft)
        light = blurred[:3] + (1 - blurred[3:]) * light
        cover = blurred[3:] + (1 - blurred[3:]) * cover
        return light, cover

    def add_layer(carry, layer):
        if layer_step is None:
            return blend(carry, layer), None
        return lax.cond(layer < near + spacing, blend, lambda carry, _: carry, carry, layer), None

    shape = depth.shape + focus.shape
    start = (jnp.zeros((3, *shape), scene.dtype), jnp.zeros((1, *shape), scene.dtype))
    (light, cover), _ = lax.scan(add_layer, start, layers)
    frames = jnp.transpose(light / jnp.maximum(cover, 1e-6), (3, 1, 2, 0))
    return jnp.clip(linear_to_srgb(jnp.clip(frames, 0.0, 1.0)), 0.0, 1.0)


def add_sensor_noise(key: Array, frames: Array, sigma: Array | float) -> Array:
    """Adds independent Gaussian noise of standard deviation sigma (of full scale) to frames of any shape; clips."""
    return jnp.clip(frames + sigma * jax.random.normal(key, frames.shape, frames.dtype), 0.0, 1.0)
