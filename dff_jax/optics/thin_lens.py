"""The thin lens. f focal length, N_f f-number, s focus distance, d object distance (metres, both > f).

CoC(d; s) = A |d - s|/d * f/(s - f) with aperture A = f/N_f, the diameter of the blur disc on the sensor. It is linear
in inverse depth: CoC = A f s/(s - f) * |1/s - 1/d|. So in diopters, and in disparity, the blur radius in pixels is
`blur_per_q * |q - q_z|` with one constant, which is what the renderer and the network work with.
"""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.types import Array


def circle_of_confusion(distance: Array, focus_distance: Array, focal_length: float, f_number: float) -> Array:
    """Diameter of the blur disc on the sensor, in metres; all lengths in metres, shapes broadcast.

    Zero for an object in focus, and linear in |1/distance - 1/focus_distance|.
    """
    aperture = focal_length / f_number
    return aperture * jnp.abs(distance - focus_distance) / distance * focal_length / (focus_distance - focal_length)


def blur_per_diopter(focus_distance: float, focal_length: float, f_number: float, pixel_pitch: float) -> float:
    """Blur radius in pixels per diopter of defocus: half of A f s/(s - f) over the pixel pitch (all in metres)."""
    aperture = focal_length / f_number
    return 0.5 * aperture * focal_length * focus_distance / (focus_distance - focal_length) / pixel_pitch


def blur_radius(q: Array, focus_q: Array, blur_per_q: Array | float) -> Array:
    """Blur radius in pixels of points at q seen at focus setting focus_q (disparity or diopters); broadcasts."""
    return blur_per_q * jnp.abs(q - focus_q)
