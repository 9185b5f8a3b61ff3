"""The dataset `procedural`: fixed splits of procedural worlds, rendered here.

Record i of a split is world `stack_key(seed, split, i)`, so splits share no world, and the same machine makes
the same records again. What decides the content is metadata.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.config import WorldConfig, to_dict
from dff_jax.data.datasets.base import SPLITS, Dataset, Facts, Inventory
from dff_jax.data.live import stack_key
from dff_jax.optics.scenes import make_stack
from dff_jax.types import FocalStack

RENDERER_VERSION = 1
"""Raise it when the images change: data of another version is then made anew."""

_LATER = {name: getattr(WorldConfig, name) for name in ("textures", "blur_radius", "apertures", "settings")}
"""Fields that came after the first data was made, which they leave as it was at these values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Procedural(Dataset):
    """How many worlds of which kind. Depth is dense, and partly outside the focus range."""

    needs_source: ClassVar[bool] = False
    in_process: ClassVar[bool] = True
    facts: Facts = Facts(
        unit="disparity",
        focus_range=None,
        order="far to near",
        truth="disparity in pixels, dense, not limited to the focus range",
        licence="Apache-2.0",
        citation="",
        where="made here, needs no files",
    )
    world: WorldConfig
    sizes: tuple[int, int, int]  # stacks in train, validation, test
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return {}

    @property
    def fingerprint(self) -> dict[str, str]:
        world = {k: v for k, v in to_dict(self.world).items() if k not in _LATER or v != _LATER[k]}
        return {
            "world": json.dumps(world, indent=2),
            "sizes": " ".join(map(str, self.sizes)),
            "seed": str(self.seed),
            "renderer_version": str(RENDERER_VERSION),
        }

    def survey(self, source: Path) -> Inventory:
        found = Inventory()
        found.facts = self.facts._replace(focus_range=self.world.focus_range)
        shape = (self.world.num_frames, self.world.height, self.world.width)
        for split, size in zip(SPLITS, self.sizes, strict=True):
            for index in range(size):
                read = partial(render_world, self.world, self.seed, split, index)
                found.add(f"{split}/{index:05d}", shape, read, all_in_focus=True)
        return found


def render_world(world: WorldConfig, seed: int, split: str, index: int) -> FocalStack:
    """World `index` of a split, frames and all-in-focus picture uint8."""
    frames, focus, depth, sharp = jax.device_get(_photograph(stack_key(seed, split, index), world))
    mask = np.ones(depth.shape, bool)
    return FocalStack(frames, focus.astype(np.float64), "disparity", depth, mask, all_in_focus=sharp)


@partial(jax.jit, static_argnames="world")
def _photograph(key: jax.Array, world: WorldConfig) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    stack = make_stack(key, world)
    frames, sharp = (jnp.round(image * 255).astype(jnp.uint8) for image in (stack.frames, stack.all_in_focus))
    return frames, stack.focus, stack.depth, sharp


# The one table of sizes: stacks in train, validation, test; pixels and frames are the world's.
DATASETS = [
    Procedural(
        name="procedural/quickstart", sizes=(160, 12, 24), world=WorldConfig(height=192, width=192),
        description="192 x 192, 15 frames; made in about a minute on two cores.",
    ),
    Procedural(
        name="procedural/five_frames", sizes=(480, 12, 48), world=WorldConfig(height=192, width=192, num_frames=5),
        description="192 x 192, 5 frames: the comparison of networks on a small budget.",
    ),
    Procedural(
        name="procedural/standard", sizes=(1000, 50, 100), world=WorldConfig(height=256, width=256),
        description="256 x 256, 15 frames, as many stacks as FlyingThings3D's focal stacks.",
    ),
    Procedural(
        name="procedural/tiny", sizes=(2, 1, 2),
        world=WorldConfig(height=48, width=48, num_frames=5, num_objects=3, num_layers=8),
        description="48 x 48, 5 frames; to try a program, not to learn from.",
    ),
]  # fmt: skip
