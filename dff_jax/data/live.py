"""Endless fresh worlds, rendered on the accelerator: batch n is a pure function of (seed, n). No files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dff_jax.config import CameraConfig, DataConfig, WorldConfig
from dff_jax.data.augment import apply_colour, draw_focus, draw_frame_count, make_colour, refocus
from dff_jax.data.parts import Share
from dff_jax.errors import ConfigError
from dff_jax.optics.camera import apply_camera_faults, compress
from dff_jax.optics.scenes import make_stack
from dff_jax.types import Array, Batch, FocalStack, LoadedBatch

HELD_OUT = {"validation": 16, "test": 32}
"""Stacks in the fixed sets; the same for every training seed, so that scores compare."""
_HELD_OUT_SEED = 0
_PURPOSES = ("train", "validation", "test")
PERFECT = CameraConfig()


def stack_key(seed: int, purpose: str, index: int | Array) -> Array:
    """The PRNG key of one world; different for every seed, purpose ("train", "validation" or "test") and index."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose)), index)


def _photograph(key: Array, world: WorldConfig) -> tuple[Array, Array, Array, Array]:
    """Frames of 8 bits, as float32 [Z,H,W,3] in [0,1]; focus [Z]; depth [H,W]; the sharp picture [H,W,3] of 8 bits."""
    stack = make_stack(key, world)
    return to_8_bits(stack.frames), stack.focus, stack.depth, to_8_bits(stack.all_in_focus)


def to_8_bits(images: Array) -> Array:
    """Values in [0,1] rounded to multiples of 1/255."""
    return jnp.round(images * 255) / 255


def augment_frames(
    keys: Sequence[Array], frames: Array, colour: float, noise: float, camera: CameraConfig = PERFECT
) -> Array:
    """Frames [Z,H,W,3] recoloured and made noisier as by `augment.augment`, and with the faults of a real camera.

    `keys` are three.
    """
    k_colour, k_sigma, k_noise = keys
    k_camera, k_jpeg = jax.random.split(jax.random.fold_in(k_noise, 1))
    frames = recolour(k_colour, frames, colour)
    if camera != PERFECT:
        frames = apply_camera_faults(k_camera, frames, camera)
    if noise:
        sigma = jax.random.uniform(k_sigma, maxval=noise)
        frames = (frames + sigma * jax.random.normal(k_noise, frames.shape)).clip(0.0, 1.0)
    if camera.jpeg is not None:
        frames = compress(k_jpeg, frames, camera.jpeg)
    return frames


def recolour(key: Array, images: Array, colour: float) -> Array:
    """Images [...,3] through the random curve of `key`, as by `augment.augment`; strength 0: as they are."""
    if not colour:
        return images
    change = make_colour(jax.random.uniform(key, (6,), minval=-1.0), colour, jnp)
    return apply_colour(images, change.gain.reshape((1,) * (images.ndim - 1) + (3,)), change)


def map_stacks(one: Callable[..., Batch], *arrays: chex.ArrayTree) -> Batch:
    """`one` for each stack of [B,...]: in turn on a CPU, where vmap would compute every branch of every random
    choice for nothing; all at once elsewhere."""
    if jax.default_backend() == "cpu":
        return lax.map(lambda own: one(*own), arrays)
    return jax.vmap(one)(*arrays)


@partial(jax.jit, static_argnames=("world", "colour", "noise", "camera", "all_in_focus"))
def make_batch(
    keys: Array,
    world: WorldConfig,
    colour: float = 0.0,
    noise: float = 0.0,
    camera: CameraConfig = PERFECT,
    all_in_focus: bool = False,
) -> Batch:
    """A batch [B] of fresh stacks, one for each key [B]; `world` gives the size. Pure and jitted.

    With `all_in_focus` it has the sharp pictures too, recoloured as the frames, without noise and camera faults.
    """

    def one(key: Array) -> Batch:
        k_world, *others = jax.random.split(key, 4)
        frames, focus, depth, sharp = _photograph(k_world, world)
        frames = augment_frames(others, frames, colour, noise, camera)
        picture = recolour(others[0], sharp, colour) if all_in_focus else None
        return Batch(frames, focus, depth, jnp.ones(depth.shape, bool), picture)

    return map_stacks(one, keys)


refocus_batch = jax.jit(partial(refocus, xp=jnp))
"""`augment.refocus` on the device."""


class LivePart:
    """Procedural worlds as a part of what is trained on, rendered in `finish`; see `parts.Part`.

    Stack i of the global batch n has the same content however many processes share the batch.
    """

    reads = False

    def __init__(self, data: DataConfig, share: Share, all_in_focus: bool = False):
        height, width = data.crop
        if min(data.crop) < 32:
            raise ConfigError(f"data.crop: procedural_live needs at least 32 pixels a side, got {data.crop}")
        self._world = dataclasses.replace(data.world, height=height, width=width)
        self._data, self._share, self._all_in_focus = data, share, all_in_focus

    def prepare(self, number: int) -> int:
        return number

    def finish(self, prepared: int) -> LoadedBatch:
        data, share, world = self._data, self._share, self._world
        count = draw_frame_count(data.frames, share.batch_generator(prepared))
        if count is not None:
            world = dataclasses.replace(world, num_frames=count)
        numbers = share.stacks(prepared)
        keys = jax.vmap(partial(stack_key, share.seed, "train"))(jnp.array([n % 2**32 for n in numbers], jnp.uint32))
        batch = make_batch(keys, world, data.colour, data.noise, data.camera, self._all_in_focus)
        if data.reverse or data.focus_jitter:
            draws = [draw_focus(world.num_frames, share.generator(n), data.reverse, data.focus_jitter) for n in numbers]
            batch = refocus_batch(batch, *(np.stack(x) for x in zip(*draws, strict=True)))
        first = share.process_index * share.batch_size
        return LoadedBatch(batch, tuple(f"live/{share.seed}/{prepared}/{first + i}" for i in range(share.batch_size)))


def held_out_stack(split: str, index: int, world: WorldConfig) -> FocalStack:
    """Stack `index` of the fixed "validation" or "test" set, on the host; training never draws it."""
    frames, focus, depth, sharp = jax.device_get(_photograph(stack_key(_HELD_OUT_SEED, split, index), world))
    frames, sharp = (np.round(image * 255).astype(np.uint8) for image in (frames, sharp))
    return FocalStack(
        frames=frames, focus=focus.astype(np.float64), unit="disparity", depth=depth,
        mask=np.ones(depth.shape, bool), name=f"live/{split}/{index}", all_in_focus=sharp,
    )  # fmt: skip
