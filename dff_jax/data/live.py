"""Endless fresh worlds, rendered on the accelerator: batch n is a pure function of (seed, n). No files."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dff_jax.config import DataConfig, WorldConfig
from dff_jax.data.augment import apply_colour, make_colour
from dff_jax.errors import ConfigError
from dff_jax.optics.scenes import make_stack
from dff_jax.types import Array, Batch, FocalStack, LoadedBatch

HELD_OUT = {"validation": 16, "test": 32}
"""Stacks in the fixed sets; the same for every training seed, so that scores compare."""
_HELD_OUT_SEED = 0
_PURPOSES = ("train", "validation", "test")


def _key(seed: int, purpose: str, index: int | Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose)), index)


def _photograph(key: Array, world: WorldConfig) -> tuple[Array, Array, Array]:
    """Frames of 8 bits, as float32 [Z,H,W,3] in [0,1]; focus [Z]; depth [H,W]."""
    stack = make_stack(key, world)
    return jnp.round(stack.frames * 255) / 255, stack.focus, stack.depth


@partial(jax.jit, static_argnames=("world", "colour", "noise"))
def make_batch(keys: Array, world: WorldConfig, colour: float = 0.0, noise: float = 0.0) -> Batch:
    """A batch [B] of fresh stacks, one for each key [B], coloured and made noisier as `augment.augment` does.

    Pure and jitted; `world` gives the size. One after another on a CPU, where vmap would compute every
    branch of every random choice for nothing; all at once elsewhere.
    """

    def one(key: Array) -> Batch:
        k_world, k_colour, k_sigma, k_noise = jax.random.split(key, 4)
        frames, focus, depth = _photograph(k_world, world)
        if colour:
            change = make_colour(jax.random.uniform(k_colour, (6,), minval=-1.0), colour, jnp)
            frames = apply_colour(frames, change.gain.reshape(1, 1, 1, 3), change)
        if noise:
            sigma = jax.random.uniform(k_sigma, maxval=noise)
            frames = (frames + sigma * jax.random.normal(k_noise, frames.shape)).clip(0.0, 1.0)
        return Batch(frames, focus, depth, jnp.ones(depth.shape, bool))

    return lax.map(one, keys) if jax.default_backend() == "cpu" else jax.vmap(one)(keys)


class LiveLoader:
    """Iterator of LoadedBatch on the device; its state is the number of the next batch.

    Stack i of the global batch n has the same content however many processes share the batch.
    """

    def __init__(self, data: DataConfig, seed: int, process_index: int = 0, process_count: int = 1):
        height, width = data.crop
        if min(data.crop) < 32:
            raise ConfigError(f"data.crop: procedural_live needs at least 32 pixels a side, got {data.crop}")
        self._world = dataclasses.replace(data.world, height=height, width=width)
        self._data, self._seed, self._next = data, seed, 0
        self._first = process_index * data.batch_size
        self._global_batch = process_count * data.batch_size

    def __iter__(self) -> LiveLoader:
        return self

    def __next__(self) -> LoadedBatch:
        n, data = self._next, self._data
        numbers = range(self._first, self._first + data.batch_size)
        indices = jnp.array([n * self._global_batch + i for i in numbers], jnp.uint32)
        keys = jax.vmap(partial(_key, self._seed, "train"))(indices)
        batch = make_batch(keys, self._world, data.colour, data.noise)
        self._next = n + 1
        return LoadedBatch(batch, tuple(f"live/{self._seed}/{n}/{i}" for i in numbers))

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        self._next = int(state["next_index"])

    def close(self) -> None:
        """Nothing to release."""


def held_out_stack(split: str, index: int, world: WorldConfig) -> FocalStack:
    """Stack `index` of the fixed "validation" or "test" set, on the host; training never draws it."""
    frames, focus, depth = jax.device_get(_photograph(_key(_HELD_OUT_SEED, split, index), world))
    return FocalStack(
        frames=np.round(frames * 255).astype(np.uint8), focus=focus.astype(np.float64), unit="disparity",
        depth=depth, mask=np.ones(depth.shape, bool), name=f"live/{split}/{index}",
    )  # fmt: skip
