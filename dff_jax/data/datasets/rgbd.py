"""The family `rgbd`: your own images with depth maps, rendered: `dff-jax prepare rgbd/room --source DIR`.

Which files make a scene: see `dff_jax.data.files.rgbd`. `DIR/train`, `DIR/val` and `DIR/test` are splits; without
them all scenes are to train. To photograph them anew each time instead, train with `data.source=rgbd`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.data.datasets.base import Dataset, Facts, Inventory, one_unit, split_folders
from dff_jax.data.files.images import image_size
from dff_jax.data.files.reading import collecting
from dff_jax.data.files.rgbd import SceneFiles, find_scenes, read_scene
from dff_jax.errors import InputError
from dff_jax.focus_axis import from_q, to_q
from dff_jax.optics.render import add_sensor_noise, render_stack
from dff_jax.optics.rgbd import fill_holes, lens_limits
from dff_jax.types import FocalStack

END_RADIUS = 5.0  # pixels, if no `blur_per_q` is given: the blur of one end of the range when the other is in focus
CHUNK_PIXELS = 2**24  # rendered at once, so that memory stays bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rgbd(Dataset):
    """Your own images with depth maps, photographed by a thin lens. The options are the lens and what the maps hold."""

    in_process: ClassVar[bool] = True
    frames: int = 15
    focus_range: tuple[float, float] | None = None  # in the unit of the scenes; must be given
    blur_per_q: float | None = None  # pixels of blur radius per px of disparity, or per diopter; None: see END_RADIUS
    noise: float = 0.004  # standard deviation, of full scale
    seed: int = 0  # of the noise
    scale: float | None = None  # stored value * scale = depth; None: see `data.rgbd.list_scenes`
    unit: str | None = None  # of the depth maps; None: by their names

    def survey(self, source: Path) -> Inventory:
        focus_range = _check(self)
        found = Inventory()
        scenes: list[tuple[str, SceneFiles]] = []
        for split, root in split_folders(source, "train", found.notes):
            inside, problems = find_scenes(root, scale=self.scale, unit=self.unit)
            found.problems += problems
            scenes += [(split, scene) for scene in inside]
        unit = one_unit({scene.unit: scene.depth for _, scene in reversed(scenes)}, "disparity", found.problems)
        settings, blur = _lens(self, focus_range, unit)
        for split, scene in scenes:
            with collecting(found.problems):
                read = functools.partial(render_scene, scene, settings, blur, self.noise, self.seed)
                found.add(f"{split}/{scene.name}", (self.frames, *image_size(scene.rgb)), read, all_in_focus=True)
        scaled = ", ".join(f"{scene.name}: {scene.scale:.4g}" for _, scene in scenes if scene.scale != 1.0)
        if scaled and self.scale is None:
            found.notes.append(f"stored values are scaled to {unit} ({scaled})")
        found.notes.append(f"blur radius: {blur:.4g} pixels per {'diopter' if unit == 'metre' else unit}")
        found.facts = self.facts._replace(unit=unit, focus_range=(min(settings), max(settings)))
        return found


def render_scene(
    files: SceneFiles, settings: tuple[float, ...], blur_per_q: float, noise: float, seed: int
) -> FocalStack:
    """Photographs one scene. The same arguments give the same frames on the same machine, whatever else is rendered.

    Args:
      settings: focus, in the scene's unit, such that q ascends.
      blur_per_q: pixels of blur radius per unit of q.
      noise: standard deviation, of full scale.

    Returns:
      frames [Z,H,W,3] uint8, depth and mask as the file has them; what lies in holes is invented, but not called truth.
      The all-in-focus picture is the scene's own.

    Raises:
      InputError: as `data.rgbd.read_scene`.
    """
    scene = read_scene(files)
    depth = to_q(fill_holes(scene.depth, scene.mask), scene.unit).astype(np.float32)
    focus = np.asarray(settings, np.float64)
    q = to_q(focus, scene.unit).astype(np.float32)
    max_radius, num_layers = lens_limits(depth, q, blur_per_q)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(files.name.encode()))
    rgb = jnp.asarray(scene.rgb, jnp.float32) / 255
    count = min(len(q), max(1, CHUNK_PIXELS // depth.size))
    frames = []
    for start in range(0, len(q), count):
        some = q[start : start + count]
        padded = np.concatenate([some, np.full(count - len(some), some[-1], np.float32)])  # one shape to compile
        sharp = render_stack(
            rgb, jnp.asarray(depth), jnp.asarray(padded), blur_per_q=blur_per_q, max_radius=max_radius,
            num_layers=num_layers,
        )  # fmt: skip
        made = add_sensor_noise(jax.random.fold_in(key, start), sharp, noise)
        frames.append(np.asarray(jnp.round(made * 255).astype(jnp.uint8))[: len(some)])
    return FocalStack(np.concatenate(frames), focus, scene.unit, scene.depth, scene.mask, files.name, scene.rgb)


def _check(config: Rgbd) -> tuple[float, float]:
    """The focus range; raises InputError for options that cannot be."""
    if config.focus_range is None:
        raise InputError("--focus-range: needed, the first and last focus setting in the unit of the depth maps")
    if config.frames < 2:
        raise InputError(f"--frames: a focal stack needs at least 2, got {config.frames}")
    low, high = config.focus_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--focus-range: needs low < high, got {low:g} {high:g}")
    if not (math.isfinite(config.noise) and config.noise >= 0):
        raise InputError(f"--noise: must be at least 0, got {config.noise}")
    if config.blur_per_q is not None and not (math.isfinite(config.blur_per_q) and config.blur_per_q > 0):
        raise InputError(f"--blur-per-q: must be greater than 0, got {config.blur_per_q}")
    return config.focus_range


def _lens(config: Rgbd, focus_range: tuple[float, float], unit: str) -> tuple[tuple[float, ...], float]:
    """Focus settings in `unit`, evenly spaced in q, ascending; and the blur radius per unit of q."""
    if unit in ("metre", "diopter") and focus_range[0] <= 0:
        raise InputError(f"--focus-range: settings in {unit} must be greater than 0, got {focus_range[0]:g}")
    low, high = sorted(float(to_q(value, unit)) for value in focus_range)
    settings = from_q(np.linspace(low, high, config.frames), unit)
    return tuple(map(float, settings)), config.blur_per_q or END_RADIUS / (high - low)


DATASETS = [
    Rgbd(
        name="rgbd/NAME",
        description="your own images with depth maps, rendered",
        facts=Facts(
            unit="disparity",
            focus_range=None,
            order="rendered far to near",
            truth="as the depth maps have it: none where they are 0 or not finite",
            licence="that of your images",
            citation="",
            where="your own folder of images with depth maps",
        ),
    )
]
