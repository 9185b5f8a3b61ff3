"""Configuration: frozen nested dataclasses, validated when made, JSON out and in.

Every ruling on an open point of the paper is one named, typed field; the paper's own reading is always one of its
values (named first). Presets of the network are functions here; whole experiments are functions in `configs/*.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from dff_jax.checked import Checked
from dff_jax.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network and its unroll. The defaults are preset `physical`, the library's own reading."""

    _section = "model"

    method: Literal["proximal", "classical", "sml"] = "proximal"
    """Which estimator. `classical` (several focus measures fused by the solver) and `sml` (the plain
    sum-modified-Laplacian) need no weights and ignore every other field."""

    # Focus volume F (1-3)
    encoder: Literal["resnet18", "tiny"] = "resnet18"
    norm: Literal["batch", "group"] = "batch"
    volume: Literal["fv", "diff"] = "fv"
    """`diff`: features of neighbouring frames are subtracted along the focus axis."""
    pooling: Literal["pyramid", "none"] = "pyramid"
    """Pyramid pooling at the coarse levels. Its bins scale with the image, so `none` suits training on small crops."""
    width: float = 1.0
    """Multiplies the channel counts of the encoder and the focus volume."""
    head_width: float = 1.0
    """Multiplies those of the networks at full resolution: heads, proximal network, refiner."""
    input_range: Literal["symmetric", "imagenet"] = "symmetric"
    """RGB to [-1,1], or ImageNet mean and standard deviation (for ImageNet weights)."""
    measure_prior: Literal["none", "log_sml", "log_sml_features"] = "log_sml"
    """`log_sml`: adds the log sum-modified-Laplacian of 3, 9 and 21 pixel windows to F, each with a learned scale.
    `log_sml_features`: also shows them to the decoder, pooled to each of its levels."""

    # Planes and candidates (4-7, 14)
    planes: Literal["index", "focus"] = "focus"
    coordinate: Literal["raw", "unit"] = "unit"
    num_planes: int | None = 15
    """C, to which F is resampled along the focus axis before the heads; None: C = Z, as in the paper."""
    num_candidates: int = 3
    candidate_source: Literal["residual_heads", "per_scale"] = "residual_heads"
    """`per_scale`: the soft-argmax of each of the N finest score maps is a candidate, N <= 4; no heads."""
    weight_norm: Literal["softmax", "softmax_squared", "sigmoid", "softplus"] = "softplus"
    guide: Literal["none", "all_in_focus"] = "all_in_focus"

    # Unroll (8-13, 17)
    scheme: str = "proximal_gradient"
    """A scheme of `dff_jax.unroll`, or the dotted name of your own, `module:function`."""
    prox: str = "gated_unet"
    """`gated_unet` (18-25), `residual_cnn`, `gru` (recurrent), a closed form of `dff_jax.unroll` (identity, tikhonov,
    tv, edge_tv, guided_filter), or the dotted name of your own, `module:prox`."""
    num_iterations: int = 3
    tied: bool = True
    step_size: Literal["learned_per_iteration", "constant", "learned_shared", "per_pixel"] = "learned_per_iteration"
    step_size_init: float = 0.5
    """eta where S = 1. A learned eta is kept below 1/S in every pixel."""
    regularization: Literal["constant", "learned", "learned_per_iteration", "per_pixel"] = "constant"
    regularization_init: float = 0.1
    prox_output: Literal["direct", "residual"] = "residual"
    prox_inputs: Literal["equation_17", "with_confidence", "with_lookup"] = "with_lookup"
    """`with_confidence` adds S and the candidates' disagreement, brought to unit scale; `with_lookup` also what the
    focus volume says around D(k-1): log P at the five planes nearest to it, looked up anew in each iteration."""
    prox_levels: int = 3
    """Max-poolings inside the proximal U-Net: 1 in the paper; more widen its receptive field."""
    activation: Literal["relu", "leaky_relu", "silu"] = "leaky_relu"
    """Of the heads, the proximal network and the refiner."""
    gradient: str = "auto"
    """`auto` (unrolled back-propagation on CPU, a rolled scan with rematerialised steps elsewhere), `backprop`,
    `remat`, `truncated(n)` (through the last n steps only), `jacobian_free` (the last step), or `implicit` (as if D(K)
    were a fixed point of the last step)."""

    # Refiner (15, 16)
    refiner_steps: int = 1
    refiner_inputs: Literal["depth_volume", "depth_volume_candidates"] = "depth_volume"

    def _check(self) -> None:
        self._positive("width", "head_width", "step_size_init", "regularization_init")
        self._at_least(1, "num_candidates", "prox_levels")
        self._at_least(2, "num_planes")
        self._at_least(0, "num_iterations", "refiner_steps")
        if not re.fullmatch(r"auto|backprop|remat|truncated\([1-9]\d*\)|jacobian_free|implicit", self.gradient):
            raise ConfigError(
                f"model.gradient: {self.gradient!r} is not a choice; choose one of auto, backprop, remat, "
                "truncated(n) with n of 1 or more, jacobian_free, implicit"
            )
        if self.prox_inputs == "with_lookup" and (self.num_planes is None or self.coordinate == "raw"):
            raise ConfigError("model.prox_inputs: with_lookup needs fixed planes (num_planes) and coordinate=unit")
        if self.step_size != "constant" and self.step_size_init >= 1:
            raise ConfigError(f"model.step_size_init: a learned step needs less than 1, got {self.step_size_init}")
        if self.candidate_source == "per_scale" and self.num_candidates > 4:
            raise ConfigError(
                f"model.num_candidates: per_scale has a candidate for each of 4 levels, got {self.num_candidates}"
            )
        if self.planes == "index" and self.coordinate == "unit":
            raise ConfigError("model.coordinate: planes=index counts planes 1..C, which is no unit coordinate; use raw")


@dataclass(frozen=True)
class LossConfig(Checked):
    """The training objective (26)."""

    _section = "loss"

    kind: Literal["mse_final", "sequence"] = "sequence"
    """`sequence`: gamma-weighted over Dbar, D(0)..D(K) and the refined depths, the last one heaviest."""
    gamma: float = 0.8
    penalty: Literal["mse", "l1", "charbonnier"] = "charbonnier"
    """Of each stage of the sequence. In coordinate `unit` errors are shares of the focus range."""

    def _check(self) -> None:
        self._positive("gamma")


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW with a one-cycle learning rate."""

    _section = "optimizer"

    peak_learning_rate: float = 1e-4
    schedule: Literal["torch_onecycle", "optax_onecycle"] = "optax_onecycle"
    """`torch_onecycle` also cycles beta1 0.95 -> 0.85 -> 0.95, as the published training did."""
    warmup_share: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    weight_decay: float = 1e-2
    decay: Literal["all", "kernels"] = "kernels"
    clip_norm: float = 1.0

    def _check(self) -> None:
        self._positive("peak_learning_rate", "div_factor", "final_div_factor", "clip_norm")
        self._at_least(0, "weight_decay")
        if not 0 < self.warmup_share < 1:
            raise ConfigError(f"optimizer.warmup_share: must lie between 0 and 1, got {self.warmup_share!r}")


@dataclass(frozen=True)
class WorldConfig(Checked):
    """Procedural worlds in the image of FlyingThings3D, and the lens that photographs them."""

    _section = "data.world"

    height: int = 192
    width: int = 192
    num_frames: int = 15
    focus_range: tuple[float, float] = (10.0, 100.0)
    depth_range: tuple[float, float] = (4.0, 110.0)
    """Disparities of objects: partly outside `focus_range`, as in FlyingThings3D."""
    num_objects: int = 10
    blur_per_disparity: tuple[float, float] = (0.05, 0.085)
    """Blur radius in pixels per disparity of defocus; drawn for each world."""
    max_blur_radius: int = 7
    num_layers: int = 16
    noise: tuple[float, float] = (0.0, 0.012)
    """Standard deviation of the sensor noise, of full scale; drawn for each world."""

    def _check(self) -> None:
        self._at_least(32, "height", "width")
        self._at_least(2, "num_frames", "num_layers")
        self._at_least(1, "num_objects", "max_blur_radius")
        for name in ("focus_range", "depth_range", "blur_per_disparity", "noise"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name.endswith("_range") and low == high):
                raise ConfigError(f"data.world.{name}: needs 0 <= low < high, got {low} {high}")


@dataclass(frozen=True)
class LensConfig(Checked):
    """The lens and sensor that photograph RGB-D scenes (source=rgbd), drawn anew for each stack."""

    _section = "data.lens"

    num_frames: int = 15
    focus_range: tuple[float, float] | None = None
    """In q (disparity, or 1/metres); None: drawn for each stack from the depths in view, some of which stay outside."""
    blur_radius: tuple[float, float] = (3.0, 7.5)
    """In pixels, at one end of the focus range when the other is in focus."""
    max_blur_radius: int = 8
    num_layers: int = 16
    noise: tuple[float, float] = (0.0, 0.012)
    """Standard deviation of the sensor noise, of full scale."""

    def _check(self) -> None:
        self._at_least(2, "num_frames", "num_layers")
        self._at_least(1, "max_blur_radius")
        for name in ("blur_radius", "noise"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                raise ConfigError(f"data.lens.{name}: needs 0 <= low <= high, got {low} {high}")
        if self.focus_range is not None and not -math.inf < self.focus_range[0] < self.focus_range[1] < math.inf:
            raise ConfigError(f"data.lens.focus_range: needs low < high, got {self.focus_range}")


Source = Literal["tfds", "folder", "procedural_live", "rgbd"]
Unit = Literal["disparity", "diopter", "metre", "index"]


def _check_frames(where: str, frames: tuple[int, int] | None) -> None:
    if frames is not None and not 2 <= frames[0] <= frames[1]:
        raise ConfigError(f"{where}.frames: needs 2 <= fewest <= most, got {frames[0]} {frames[1]}")


@dataclass(frozen=True)
class PartConfig(Checked):
    """One part of a mixture: where its stacks come from, and what is not as in the rest of `data` (None: it is)."""

    _section = "data.mixture"

    source: Source = "tfds"
    dataset: str = ""
    unit: Unit = "disparity"
    weight: float = 1.0
    """Share of the batches, before the weights of all parts are brought to sum 1."""
    crop: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    reverse: bool | None = None
    focus_jitter: float | None = None
    flips: bool | None = None
    colour: float | None = None
    noise: float | None = None
    world: WorldConfig | None = None
    lens: LensConfig | None = None

    def _check(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"data.mixture.weight: must be greater than 0 and finite, got {self.weight!r}")
        if not self.dataset and self.source != "procedural_live":
            raise ConfigError(f"data.mixture.dataset: source={self.source} needs one")
        _check_frames("data.mixture", self.frames)


@dataclass(frozen=True)
class DataConfig(Checked):
    """Where training stacks come from and what is done to them."""

    _section = "data"

    source: Source = "tfds"
    """`folder`: stacks laid out like FlyingThings3D's, with `train/` and `val/` inside; `procedural_live`: endless
    fresh worlds rendered on the accelerator; `rgbd`: a folder of RGB-D scenes photographed there, by a new lens each
    time, with `train/` and `val/` inside or (only to train on) without."""
    dataset: str = "procedural/quickstart"
    """Name of a tfds dataset of this package (source=tfds), or a path (source=folder, rgbd)."""
    data_dir: str | None = None
    """Where tfds keeps its files; None: ~/tensorflow_datasets, or the variable TFDS_DATA_DIR."""
    unit: Unit = "disparity"
    """Unit of focus settings and depth in a folder; tfds datasets and RGB-D scenes carry their own."""
    batch_size: int = 2
    crop: tuple[int, int] = (256, 256)
    flips: bool = True
    colour: float = 0.2
    """Strength of the brightness, contrast, gamma and tint augmentation; the same for all frames of a stack."""
    noise: float = 0.01
    """Largest standard deviation of the added sensor noise, of full scale."""
    frames: tuple[int, int] | None = None
    """Fewest and most frames of a training stack: a batch draws one of up to three numbers between (the network is
    compiled for each), keeps the first and the last frame and a random choice of the others; None: all frames.
    Rendered sources render just so many."""
    reverse: bool = False
    """Turns stacks around at random: near becomes far in frames, focus settings and truth."""
    focus_jitter: float = 0.0
    """Largest error of a focus setting, as a share of the distance to the nearest other: lenses report inexactly."""
    num_threads: int = 2
    """That read and augment, in each worker process or, without any, in this one."""
    num_workers: int = 0
    """Processes that read and augment."""
    eval_batch_size: int = 1
    eval_limit: int | None = None
    """Evaluates only the first so many stacks during training."""
    world: WorldConfig = field(default_factory=WorldConfig)
    lens: LensConfig = field(default_factory=LensConfig)
    mixture: tuple[PartConfig, ...] = ()
    """If given, what is trained on, each batch from one part, by weight; `source` and `dataset` above then only
    validate. Parts may differ in number of frames, unit and size."""

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
        """What is trained on, each part a configuration without mixture; this one itself if it has none."""
        if not self.mixture:
            return (self,)
        found = []
        for part in self.mixture:
            given = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.name != "weight"}
            given = {name: value for name, value in given.items() if value is not None}
            found.append(dataclasses.replace(self, mixture=(), **given))
        return tuple(found)


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """The loop: how long, how often, on what."""

    _section = "training"

    num_steps: int = 1000
    log_every: int = 20
    eval_every: int = 250
    save_every: int = 250
    keep: int = 2
    """Newest checkpoints kept, beside the best one."""
    parallel: Literal["jit", "pmap"] = "jit"
    num_devices: int | None = None
    """Devices to use; None: all."""
    tensorboard: bool = True
    transfer: str | None = None
    """A folder of stacks to evaluate beside the validation split, to see transfer while training."""

    def _check(self) -> None:
        self._at_least(1, "num_steps", "log_every", "eval_every", "save_every", "keep", "num_devices")


@dataclass(frozen=True)
class Config(Checked):
    """One experiment."""

    name: str = "physical"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def _check(self) -> None:
        if self.model.method == "proximal" and self.model.num_planes is None:  # C = Z is a shape of the weights
            numbers = {part.frames for part in self.data.parts()}
            varied = any(frames and frames[0] < frames[1] for frames in numbers)
            if varied or len(numbers) > 1 or (self.data.mixture and numbers == {None}):
                raise ConfigError(
                    "model.num_planes: None (C = Z) needs stacks of one length; set data.frames to one number, such as "
                    "15 15, or num_planes"
                )


# Presets of the network (method.md section 4) ---------------------------------------------------------------------


def paper() -> ModelConfig:
    """The paper to the letter: index planes in dataset units, softmax weights, direct prox, no guide, C = Z."""
    return ModelConfig(
        measure_prior="none", planes="index", coordinate="raw", num_planes=None, weight_norm="softmax", guide="none",
        prox_output="direct", prox_inputs="equation_17", prox_levels=1, activation="relu",
    )  # fmt: skip


def physical() -> ModelConfig:
    """The library's default: focus planes in the unit coordinate, softplus weights, residual prox, any Z."""
    return ModelConfig()


def tiny() -> ModelConfig:
    """`physical` at a quarter of the width; trains on a laptop, on crops too small for pyramid pooling.

    So small a network learns faster from measured sharpness than from pixels: its decoder sees the measures too.
    """
    return ModelConfig(
        encoder="tiny", width=0.25, head_width=0.25, pooling="none", measure_prior="log_sml_features"
    )


def classical() -> ModelConfig:
    """No training: several focus measures give the candidates, peak sharpness the weights, TV the prox."""
    return ModelConfig(method="classical")


def sml() -> ModelConfig:
    """No training: sum-modified-Laplacian, aggregation, Gaussian peak; the yardstick."""
    return ModelConfig(method="sml")


MODEL_PRESETS = {"paper": paper, "physical": physical, "tiny": tiny, "classical": classical, "sml": sml}


def model_preset(name: str) -> ModelConfig:
    """The preset of that name; raises ConfigError listing the choices."""
    if name not in MODEL_PRESETS:
        raise ConfigError(f"model preset: {name!r} is unknown; choose one of {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[name]()


# JSON --------------------------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain dicts (tuples stay tuples; json writes them as lists)."""
    return dataclasses.asdict(config)


def to_json(config: Any) -> str:
    """A config as JSON text."""
    return json.dumps(to_dict(config), indent=2)


def from_dict(data: dict[str, Any], cls: type = Config, where: str = "") -> Any:
    """Inverse of `to_dict`, checked. Fields left out take their defaults.

    Raises:
      ConfigError: an unknown field (named, with the nearest choices) or a bad value.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'}: expected fields, got {data!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    kwargs = {}
    for key, value in data.items():
        shown = " ".join(str(key).split())[:80]
        path = f"{where}.{shown}" if where else shown
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3) or names
            raise ConfigError(f"{path}: unknown field; choose one of {', '.join(near)}")
        hint = hints[key]
        inner = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
        many = typing.get_origin(hint) is tuple
        if inner and many and isinstance(value, list | tuple):
            value = tuple(from_dict(item, inner, f"{path}.{i}") for i, item in enumerate(value))
        elif inner and not many and not (value is None and inner is not hint):
            value = from_dict(value, inner, path)
        elif isinstance(value, list):
            value = tuple(value)
        kwargs[key] = value
    return cls(**kwargs)


def from_json(text: str, cls: type = Config) -> Any:
    """A config from JSON text; raises ConfigError as `from_dict` does, and for text that is not JSON."""
    try:
        data = json.loads(text)
        return from_dict(data, cls)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, brackets without end
        raise ConfigError(f"config: not valid JSON ({error})") from None
