"""Scene to focal stack: thin lens, layered rendering, light fields, RGB-D images, procedural worlds."""

from dff_jax.optics.light_field import refocus
from dff_jax.optics.render import add_sensor_noise, linear_to_srgb, render_stack, srgb_to_linear
from dff_jax.optics.rgbd import fill_holes, lens_limits
from dff_jax.optics.scenes import RenderedStack, World, make_stack, make_world
from dff_jax.optics.thin_lens import blur_per_diopter, blur_radius, circle_of_confusion

__all__ = [
    "RenderedStack", "World", "add_sensor_noise", "blur_per_diopter", "blur_radius", "circle_of_confusion",
    "fill_holes", "lens_limits", "linear_to_srgb", "make_stack", "make_world", "refocus", "render_stack",
    "srgb_to_linear",
]  # fmt: skip
