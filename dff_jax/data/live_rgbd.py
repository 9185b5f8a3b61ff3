"""RGB-D scenes photographed on the accelerator: another crop, lens, focus range and noise each time.

The host reads, fills holes, crops and draws what is random about the lens; the device renders. A crop is taken with a
margin as wide as the largest blur, so that what lies just outside shines in.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.config import CameraConfig, DataConfig, LensConfig
from dff_jax.data.augment import check_crop, draw_focus, draw_frame_count, draw_view
from dff_jax.data.files.depth_maps import LOOKED_AT, outside_note
from dff_jax.data.files.images import image_size
from dff_jax.data.files.rgbd import SceneFiles, read_scene
from dff_jax.data.live import PERFECT, augment_frames, map_stacks, recolour, refocus_batch, to_8_bits
from dff_jax.data.parts import EpochOrder, Share
from dff_jax.errors import InputError
from dff_jax.focus_axis import to_q
from dff_jax.optics.render import add_sensor_noise, render_stack
from dff_jax.optics.rgbd import fill_holes
from dff_jax.runtime.progress import say
from dff_jax.types import Batch, FocalStack, LoadedBatch

_CACHE_BYTES = 2**29  # of decoded scenes, kept so that a small set is read only once
_LEAST_SHARE = 0.3  # of the scene's depths that a drawn focus range spans at least: a flat crop needs one too
_HELD_OUT_SEED = 0


class SharpScene(NamedTuple):
    """A scene ready to photograph."""

    rgb: np.ndarray  # [H,W,3] uint8
    q: np.ndarray  # [H,W] float32, finite everywhere
    mask: np.ndarray  # [H,W] bool: where q is measured
    span: tuple[float, float]  # where nearly all measured q lie
    name: str


class Views(NamedTuple):
    """Crops of scenes and the lens for each: all that the device needs. M = margin."""

    rgb: np.ndarray  # [B,H+2M,W+2M,3] uint8
    q: np.ndarray  # [B,H+2M,W+2M] float32
    mask: np.ndarray  # [B,H,W] bool
    focus: np.ndarray  # [B,Z] float32, q, ascending
    blur_per_q: np.ndarray  # [B] float32
    noise: np.ndarray  # [B] float32, standard deviation
    seed: np.ndarray  # [B] uint32, of what the device draws
    turn: np.ndarray  # [B] bool, see `live.refocus_batch`
    shares: np.ndarray  # [B,Z] float32, see there


class SceneCache:
    """Scenes by number, read and filled when asked for; keeps as many as fit. For several threads at once."""

    def __init__(self, files: Sequence[SceneFiles]):
        self.files = files
        self._found: dict[int, SharpScene] = {}
        self._room, self._lock = _CACHE_BYTES, threading.Lock()

    def __getstate__(self) -> dict:
        return {"files": self.files}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["files"])

    def __getitem__(self, index: int) -> SharpScene:
        if index in self._found:
            return self._found[index]
        scene = read_scene(self.files[index])
        q = to_q(fill_holes(scene.depth, scene.mask), scene.unit).astype(np.float32)
        low, high = np.quantile(q[scene.mask], (0.02, 0.98))
        sharp = SharpScene(scene.rgb, q, scene.mask, (float(low), float(high)), scene.name)
        size = sharp.rgb.nbytes + q.nbytes + sharp.mask.nbytes
        with self._lock:
            if index not in self._found and size <= self._room:
                self._found[index], self._room = sharp, self._room - size
        return sharp


def draw_focus_range(
    values: np.ndarray, scene: SharpScene, lens: LensConfig, rng: np.random.Generator
) -> tuple[float, float]:
    """The first and last focus setting in q, for a crop that shows `values` [n]: around most of them."""
    if lens.focus_range is not None:
        return lens.focus_range
    low, high = np.quantile(values, (0.02, 0.98)) if values.size else scene.span
    whole = scene.span[1] - scene.span[0]
    least = max(_LEAST_SHARE * whole, 1e-2 * max(abs(scene.span[0]), abs(scene.span[1])), 1e-6)
    span = max(high - low, least) * rng.uniform(0.8, 1.3)
    centre = (low + high) / 2 + rng.uniform(-0.1, 0.1) * span
    first, last = centre - span / 2, centre + span / 2
    if scene.q.min() >= 0 > first:  # no lens focuses beyond infinity
        first, last = 0.0, last - first
    return float(first), float(last)


def take_view(scene: SharpScene, data: DataConfig, count: int | None, rng: np.random.Generator) -> Views:
    """A random crop of a scene and a random lens, as Views without the axis B.

    Raises:
      ConfigError: the scene is smaller than `data.crop`.
    """
    lens, margin = data.lens, data.lens.max_blur_radius
    view = draw_view(scene.q, scene.mask, data.crop, data.flips, rng, f"scene {scene.name!r}")
    mask = view.take(scene.mask)
    first, last = draw_focus_range(view.take(scene.q)[mask], scene, lens, rng)
    focus = np.linspace(first, last, count or lens.num_frames, dtype=np.float32)
    blur_per_q = rng.uniform(*lens.blur_radius) / (last - first)
    noise, seed = rng.uniform(*lens.noise), rng.integers(2**32)
    turn, shares = draw_focus(len(focus), rng, data.reverse, data.focus_jitter)
    return Views(
        rgb=view.take(scene.rgb, margin=margin),
        q=view.take(scene.q, margin=margin),
        mask=mask,
        focus=focus,
        blur_per_q=np.asarray(blur_per_q, np.float32),
        noise=np.asarray(noise, np.float32),
        seed=np.asarray(seed, np.uint32),
        turn=turn,
        shares=shares,
    )


@partial(jax.jit, static_argnames=("margin", "num_layers", "colour", "noise", "camera", "all_in_focus"))
def photograph_batch(
    views: Views,
    margin: int,
    num_layers: int,
    colour: float = 0.0,
    noise: float = 0.0,
    camera: CameraConfig = PERFECT,
    all_in_focus: bool = False,
) -> Batch:
    """The batch that `views` show, 8-bit frames as in a file, then recoloured and made noisier. Pure and jitted.

    `margin` is the largest blur radius too. With `all_in_focus` it has the scenes' own pictures, recoloured alike.
    """
    inside = (slice(margin, -margin), slice(margin, -margin))

    def one(view: Views) -> Batch:
        rgb, q, mask, focus, blur_per_q, sigma, seed, *_ = (jnp.asarray(field) for field in view)
        k_noise, *others = jax.random.split(jax.random.key(seed), 4)
        rgb = rgb.astype(jnp.float32) / 255
        frames = render_stack(rgb, q, focus, blur_per_q=blur_per_q, max_radius=margin, num_layers=num_layers)
        frames = add_sensor_noise(k_noise, frames, sigma)
        frames = to_8_bits(frames[:, *inside])
        depth = jnp.where(mask, q[inside], 0.0)
        picture = recolour(others[0], rgb[inside], colour) if all_in_focus else None
        return Batch(augment_frames(others, frames, colour, noise, camera), focus, depth, mask, picture)

    return map_stacks(one, views)


def check_scenes(data: DataConfig, files: Sequence[SceneFiles]) -> None:
    """Raises ConfigError for a scene smaller than `data.crop`; says if depth lies outside a fixed focus range."""
    for file in files:
        check_crop(data.crop, image_size(file.rgb), f"scene {file.name!r}")
    focus_range = data.lens.focus_range
    looked_at = {*np.linspace(0, len(files) - 1, min(len(files), LOOKED_AT)).astype(int).tolist()}
    for i in sorted(looked_at) if focus_range else ():
        scene = read_scene(files[i])
        q, unit = to_q(scene.depth[scene.mask], scene.unit), scene.unit.replace("metre", "diopter")
        if note := outside_note(str(files[i].depth), q, focus_range or (), unit):
            return say(f"note: {note}")


class RgbdPart:
    """RGB-D scenes as a part of what is trained on, photographed in `finish`; see `parts.Part`."""

    reads = True

    def __init__(self, data: DataConfig, files: Sequence[SceneFiles], share: Share, all_in_focus: bool = False):
        check_scenes(data, files)
        self._all_in_focus = all_in_focus
        self._data, self._scenes, self._share = data, SceneCache(files), share
        self._order = EpochOrder(len(files), share.seed)

    def prepare(self, number: int) -> tuple[Views, tuple[str, ...]]:
        data, share = self._data, self._share
        count = draw_frame_count(data.frames, share.batch_generator(number))
        views, names = [], []
        for n in share.stacks(number):
            scene = self._scenes[self._order[n]]
            views.append(take_view(scene, data, count, share.generator(n)))
            names.append(scene.name)
        return Views(*map(np.stack, zip(*views, strict=True))), tuple(names)

    def finish(self, prepared: tuple[Views, tuple[str, ...]]) -> LoadedBatch:
        views, names = prepared
        data = self._data
        lens = data.lens
        batch = photograph_batch(
            views, lens.max_blur_radius, lens.num_layers, data.colour, data.noise, data.camera, self._all_in_focus
        )
        if data.reverse or data.focus_jitter:
            batch = refocus_batch(batch, views.turn, views.shares)
        return LoadedBatch(batch, names)


def held_out_stacks(data: DataConfig, files: Sequence[SceneFiles]) -> tuple[str, Callable[[int], FocalStack]]:
    """Scenes photographed by one lens for good, for each scene its own: the same for every training seed.

    Returns:
      The unit, and what photographs scene i as a stack of 8-bit frames of `data.crop`.

    Raises:
      InputError: scenes of several units, which one table cannot hold.
    """
    units = {file.unit: file.depth for file in files}
    if len(units) > 1:
        found = ", ".join(f"{unit} in {path}" for unit, path in units.items())
        raise InputError(f"{data.dataset}: depth in several units ({found}); evaluate them apart")
    check_scenes(data, files)
    unit = next(iter(units)).replace("metre", "diopter")
    data = dataclasses.replace(data, mixture=(), flips=False, frames=None, reverse=False, focus_jitter=0.0)
    scenes = SceneCache(files)

    def read(index: int) -> FocalStack:
        scene = scenes[index]
        view = take_view(scene, data, None, np.random.default_rng([_HELD_OUT_SEED, index]))
        views, lens = Views(*(x[None] for x in view)), data.lens
        batch = photograph_batch(views, lens.max_blur_radius, lens.num_layers, all_in_focus=True)
        frames, focus, depth, mask, sharp = (x[0] for x in jax.device_get(batch))
        frames, sharp = (np.round(image * 255).astype(np.uint8) for image in (frames, sharp))
        return FocalStack(frames, focus.astype(np.float64), unit, depth, mask, scene.name, sharp)

    return unit, read
