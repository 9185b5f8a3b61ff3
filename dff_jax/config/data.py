"""Data: where stacks come from, how they are rendered and augmented."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from dff_jax.config.base import Checked
from dff_jax.errors import ConfigError
from dff_jax.focus_axis import Unit


@dataclass(frozen=True)
class WorldConfig(Checked):
    """Procedural worlds in the style of FlyingThings3D, and the lens that images them."""

    _section = "data.world"

    height: int = 192
    width: int = 192
    num_frames: int = 15
    focus_range: tuple[float, float] = (10.0, 100.0)
    depth_range: tuple[float, float] = (4.0, 110.0)
    """Disparities of the objects, some of them outside `focus_range`, as in FlyingThings3D."""
    num_objects: int = 10
    blur_per_disparity: tuple[float, float] = (0.05, 0.085)
    """Blur radius in pixels per unit of defocus (disparity); drawn for each world."""
    max_blur_radius: int = 7
    num_layers: int = 16
    noise: tuple[float, float] = (0.0, 0.012)
    """Standard deviation of the sensor noise as a share of full scale; drawn for each world."""
    textures: Literal["flying", "natural", "printed"] = "flying"
    """`natural` adds details of all sizes, fibres, print, weak contrast, folds and rooms; `printed` adds large plain
    faces with writing, bar codes and dots."""
    blur_radius: tuple[float, float] | None = None
    """Blur radius in pixels at one end of the focus range when the other end is in focus, drawn log-uniformly. It
    replaces `blur_per_disparity`."""
    apertures: Literal["disc", "varied"] = "disc"
    """`varied` adds polygons, soft edges, bright or dim rims, and the separate points of refocused light fields."""
    settings: Literal["uniform", "varied"] = "uniform"
    """`varied`: the ends and the spacing of the focus settings are drawn, over most of `depth_range`; half the scenes
    are shallower."""

    def _check(self) -> None:
        if self.blur_radius is not None and not 0 < self.blur_radius[0] <= self.blur_radius[1]:
            raise ConfigError(f"data.world.blur_radius: needs 0 < low <= high, got {self.blur_radius}")
        self._at_least(32, "height", "width")
        self._at_least(2, "num_frames", "num_layers")
        self._at_least(1, "num_objects", "max_blur_radius")
        for name in ("focus_range", "depth_range", "blur_per_disparity", "noise"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name.endswith("_range") and low == high):
                raise ConfigError(f"data.world.{name}: needs 0 <= low < high, got {low} {high}")


@dataclass(frozen=True)
class LensConfig(Checked):
    """The lens and the sensor that image RGB-D scenes (source=rgbd), drawn anew for each stack."""

    _section = "data.lens"

    num_frames: int = 15
    focus_range: tuple[float, float] | None = None
    """In q (disparity, or 1/metres); None: drawn for each stack from its depths, some of which stay outside."""
    blur_radius: tuple[float, float] = (3.0, 7.5)
    """Blur radius in pixels at one end of the focus range when the other end is in focus."""
    max_blur_radius: int = 8
    num_layers: int = 16
    noise: tuple[float, float] = (0.0, 0.012)
    """Standard deviation of the sensor noise as a share of full scale."""

    def _check(self) -> None:
        self._at_least(2, "num_frames", "num_layers")
        self._at_least(1, "max_blur_radius")
        for name in ("blur_radius", "noise"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                raise ConfigError(f"data.lens.{name}: needs 0 <= low <= high, got {low} {high}")
        if self.focus_range is not None and not -math.inf < self.focus_range[0] < self.focus_range[1] < math.inf:
            raise ConfigError(f"data.lens.focus_range: needs low < high, got {self.focus_range}")


@dataclass(frozen=True)
class CameraConfig(Checked):
    """Faults of real cameras and of alignment, added to rendered frames (sources procedural_live and rgbd); all off."""

    _section = "data.camera"

    share: float = 1.0
    """Share of the stacks that get any of these faults (JPEG has its own)."""
    shift: float = 0.0
    """Largest translation of a frame against the truth, pixels."""
    breathing: float = 0.0
    """Largest difference of magnification between the ends of the stack."""
    vignetting: float = 0.0
    """Largest loss of light in the corners, as a share."""
    exposure: float = 0.0
    """Largest deviation of a frame's exposure, in the logarithm of light."""
    softness: float = 0.0
    """Largest standard deviation of the blur by lens, demosaicking and scaling, pixels; at most 1."""
    jpeg: tuple[int, int] | None = None
    """Lowest and highest quality, 1 to 100; half of the stacks are compressed."""

    def _check(self) -> None:
        for name in ("share", "shift", "breathing", "vignetting", "exposure", "softness"):
            top = {"shift": 16.0, "exposure": 3.0, "breathing": 0.2}.get(name, 1.0)
            if not 0 <= getattr(self, name) <= top:
                raise ConfigError(f"data.camera.{name}: from 0 to {top:g}, got {getattr(self, name)!r}")
        if self.jpeg is not None and not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
            raise ConfigError(f"data.camera.jpeg: needs 1 <= low <= high <= 100, got {self.jpeg}")


Source = Literal["tfds", "folder", "procedural_live", "rgbd"]


def _check_frames(where: str, frames: tuple[int, int] | None) -> None:
    if frames is not None and not 2 <= frames[0] <= frames[1]:
        raise ConfigError(f"{where}.frames: needs 2 <= fewest <= most, got {frames[0]} {frames[1]}")


Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class DataSpec(Checked):
    """Stacks with truth to measure on: exactly one of `dataset`, `source` and `world`."""

    dataset: str | None = None
    """A tfds dataset of this package, such as procedural/quickstart."""
    source: str | None = None
    """A folder of stacks: <scene>/<focus>.png ..., disp.* or depth.*."""
    world: WorldConfig | None = None
    """Procedural worlds, rendered when they are read; the same ones for equal fields."""
    unit: Unit = "disparity"
    """Unit of focus settings and depth in `source`."""
    split: Split = "test"
    """Split of `dataset`."""
    data_dir: str | None = None
    """Folder in which tfds keeps its files."""
    limit: int | None = None
    """Measure only the first so many stacks."""
    leave_out: tuple[str, ...] = ()
    """Names of stacks that are left out; tables say so. (The paper has 14 of Middlebury's 15 scenes.)"""

    def _check(self) -> None:
        self._at_least(1, "limit")
        if sum(x is not None for x in (self.dataset, self.source, self.world)) != 1:
            raise ConfigError(f"{self._section or 'data'}: needs exactly one of dataset, source and world")


@dataclass(frozen=True)
class PartConfig(Checked):
    """One part of a mixture: where its stacks come from, and fields that replace those of `data` (None: the same)."""

    _section = "data.mixture"

    source: Source = "tfds"
    dataset: str = ""
    unit: Unit = "disparity"
    weight: float = 1.0
    """Share of the batches, relative to the weights of the other parts."""
    crop: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    reverse: bool | None = None
    focus_jitter: float | None = None
    flips: bool | None = None
    colour: float | None = None
    noise: float | None = None
    world: WorldConfig | None = None
    lens: LensConfig | None = None
    camera: CameraConfig | None = None

    def _check(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"data.mixture.weight: must be greater than 0 and finite, got {self.weight!r}")
        if not self.dataset and self.source != "procedural_live":
            raise ConfigError(f"data.mixture.dataset: source={self.source} needs one")
        _check_frames("data.mixture", self.frames)


@dataclass(frozen=True)
class DataConfig(Checked):
    """Where training stacks come from and how they are augmented."""

    _section = "data"

    source: Source = "tfds"
    """`folder`: stacks laid out like FlyingThings3D's, with `train/` and `val/` inside; `procedural_live`: endless
    fresh worlds, rendered on the accelerator; `rgbd`: a folder of RGB-D scenes, imaged there by a new lens each time,
    with `train/` and `val/` inside, or without them for training alone."""
    dataset: str = "procedural/quickstart"
    """Name of a tfds dataset of this package (source=tfds), or a path (source=folder, rgbd)."""
    data_dir: str | None = None
    """Folder in which tfds keeps its files; None: the variable TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    unit: Unit = "disparity"
    """Unit of focus settings and depth in a folder; tfds datasets and RGB-D scenes carry their own."""
    batch_size: int = 2
    crop: tuple[int, int] = (256, 256)
    flips: bool = True
    colour: float = 0.2
    """Strength of the changes of brightness, contrast, gamma and tint, the same for all frames of a stack."""
    noise: float = 0.01
    """Largest standard deviation of the added sensor noise as a share of full scale."""
    frames: tuple[int, int] | None = None
    """Fewest and most frames of a training stack; None: all frames. A batch draws one of up to three numbers in this
    range (the network is compiled for each), keeps the first and the last frame, and drops others at random. Rendered
    sources render that many frames."""
    reverse: bool = False
    """Flips the order of focus at random: near becomes far in frames, focus settings and truth."""
    focus_jitter: float = 0.0
    """Largest perturbation of a focus setting, as a share of the distance to its neighbour: lenses report inexactly."""
    num_threads: int = 2
    """Threads that read and augment, in each worker process, or in this process without workers."""
    num_workers: int = 0
    """Worker processes that read and augment."""
    eval_batch_size: int = 1
    eval_limit: int | None = None
    """Number of stacks to evaluate during training; None: all."""
    world: WorldConfig = field(default_factory=WorldConfig)
    lens: LensConfig = field(default_factory=LensConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    mixture: tuple[PartConfig, ...] = ()
    """Parts to train on: each batch comes from one of them, drawn by weight. `source` and `dataset` above are then for
    validation only. Parts may differ in number of frames, unit and size."""

    def _check(self) -> None:
        self._at_least(1, "batch_size", "num_threads", "eval_batch_size", "eval_limit")
        self._at_least(0, "colour", "noise", "num_workers")
        _check_frames("data", self.frames)
        if not 0 <= self.focus_jitter < 0.5:
            raise ConfigError(f"data.focus_jitter: from 0 to below 0.5, to keep the order; got {self.focus_jitter}")
        if self.mixture:
            self.parts()  # checks what comes out
        if min(self.crop) < 16:
            raise ConfigError(f"data.crop: each side needs at least 16 pixels, got {self.crop}")

    def parts(self) -> tuple[DataConfig, ...]:
        """The parts of the mixture as configurations of their own; without a mixture, this one."""
        if not self.mixture:
            return (self,)
        found = []
        for part in self.mixture:
            given = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.name != "weight"}
            given = {name: value for name, value in given.items() if value is not None}
            found.append(dataclasses.replace(self, mixture=(), **given))
        return tuple(found)
