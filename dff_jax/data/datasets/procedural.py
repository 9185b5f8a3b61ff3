"""tfds dataset `procedural`: fixed splits of procedural worlds, frozen to array_record without TensorFlow.

Record i of a split is world `stack_key(seed, split, i)`, so splits share no world, and the same machine makes
the same records again. What a reader needs (unit, focus range, seed, the world's configuration) is metadata.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from dff_jax.config import WorldConfig, to_dict
from dff_jax.data.datasets.writing import LocalInfo, StreamedBuilder
from dff_jax.optics.scenes import make_stack
from dff_jax.runtime.progress import track

RENDERER_VERSION = 1
"""Raise it when the images or the records' layout change: data of another version is then made anew."""

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class ProceduralConfig(tfds.core.BuilderConfig):
    """How many worlds of which kind. Your own: `Procedural(config=ProceduralConfig(...), data_dir=...)`."""

    world: WorldConfig
    sizes: tuple[int, int, int]  # stacks in train, validation, test
    seed: int = 0

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides the content; equal fingerprints mean equal data."""
        return {
            "world": _description(self.world),
            "sizes": " ".join(map(str, self.sizes)),
            "seed": str(self.seed),
            "renderer_version": str(RENDERER_VERSION),
        }


_LATER = {name: getattr(WorldConfig, name) for name in ("textures", "blur_radius", "apertures", "settings")}
"""Fields that came after the first data was made, which they leave as it was at these values."""


def _description(world: WorldConfig) -> str:
    fields = to_dict(world).items()
    return json.dumps({name: value for name, value in fields if name not in _LATER or value != _LATER[name]}, indent=2)


_TINY_WORLD = WorldConfig(height=48, width=48, num_frames=5, num_objects=3, num_layers=8)

# The one table of sizes: stacks in train, validation, test; pixels and frames are the world's.
CONFIGS = [
    ProceduralConfig(
        name="quickstart", sizes=(160, 12, 24), world=WorldConfig(height=192, width=192),
        description="192 x 192, 15 frames; made in about a minute on two cores.",
    ),
    ProceduralConfig(
        name="standard", sizes=(1000, 50, 100), world=WorldConfig(height=256, width=256),
        description="256 x 256, 15 frames, as many stacks as FlyingThings3D's focal stacks.",
    ),
    ProceduralConfig(
        name="tiny", sizes=(2, 1, 2), world=_TINY_WORLD,
        description="48 x 48, 5 frames; to try a program, not to learn from.",
    ),
]  # fmt: skip


def stack_key(seed: int, split: str, index: int) -> jax.Array:
    """The PRNG key of one world; different for every seed, split and index."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SPLITS.index(split)), index)


@partial(jax.jit, static_argnames="world")
def _photograph(key: jax.Array, world: WorldConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    stack = make_stack(key, world)
    return jnp.round(stack.frames * 255).astype(jnp.uint8), stack.focus, stack.depth


class Procedural(StreamedBuilder):
    """Focal stacks of procedural worlds over disparity, with dense truth (partly outside the focus range)."""

    name = "procedural"
    builder_config: ProceduralConfig
    VERSION = tfds.core.Version(f"{RENDERER_VERSION}.0.0")
    BUILDER_CONFIGS = CONFIGS

    def _info(self) -> tfds.core.DatasetInfo:
        config, world = self.builder_config, self.builder_config.world
        z, h, w = world.num_frames, world.height, world.width
        return LocalInfo(
            builder=self,
            description=f"{Procedural.__doc__} {config.description or ''}".strip(),
            # Raw bytes: noisy frames hardly compress (to 0.8), and inflating them took longer than all the rest.
            features=tfds.features.FeaturesDict({
                "stack": tfds.features.Tensor(shape=(z, h, w, 3), dtype=np.uint8, encoding="bytes"),
                "focus": tfds.features.Tensor(shape=(z,), dtype=np.float32),
                "depth": tfds.features.Tensor(shape=(h, w), dtype=np.float32, encoding="bytes"),
                "name": tfds.features.Text(),
            }),
            metadata=tfds.core.MetadataDict(
                unit="disparity", focus_range=list(world.focus_range), **config.fingerprint
            ),
            license="Apache-2.0",
            disable_shuffling=True,  # record i is world i
        )  # fmt: skip

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        sizes = zip(SPLITS, self.builder_config.sizes, strict=True)
        return {split: self._generate_examples(split, size) for split, size in sizes}

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict]]:
        yield from track(self._render(split, size), f"procedural/{self.builder_config.name}: {split}", size)

    def _render(self, split: str, size: int) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        for index in range(size):
            if index == 0:
                ahead = _photograph(stack_key(config.seed, split, 0), config.world)
            frames, focus, depth = jax.device_get(ahead)
            if index + 1 < size:  # rendered while this one is compressed and written
                ahead = _photograph(stack_key(config.seed, split, index + 1), config.world)
            name = f"{config.name}/{split}/{index:05d}"
            yield index, {"stack": frames, "focus": focus, "depth": depth, "name": name}
