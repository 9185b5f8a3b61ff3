"""A frozen class for each method: which estimator, and how.

The class of a method holds its fields, their checks and what other rooms must know of it. To add a method, write its
class here, add it to `METHODS`, and write its file in `dff_jax.estimators`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from dff_jax.config.base import Checked
from dff_jax.config.own_code import is_own, trust
from dff_jax.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
Coordinate = Literal["raw", "unit"]
MOST_ITERATIONS = 10_000
"""Largest K: parameters of each iteration and the way of the depth are kept in memory."""


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Base of the methods' classes."""

    _section = "model"

    method: ClassVar[str]
    """Name of the method in JSON, on the command line and in tables."""
    trained: ClassVar[bool]
    """Whether it has weights. The name of a method without any stands where the name of a weights file does."""
    num_scales: ClassVar[int] = 0
    """Number of depths that a `multi_scale` loss compares; 0: the method has an unroll and takes the other losses."""
    tile_overlap: ClassVar[int] = 320
    """Overlap of the tiles of a large image, pixels: over twice the reach of a filter, or most of a network's."""
    bytes_per_pixel: ClassVar[float] = 160.0
    """Memory that inference takes for each pixel of each frame, measured."""

    @property
    def coordinate(self) -> Coordinate:
        """Unit of depths inside the network and of their errors in the loss."""
        return "unit"

    @property
    def num_iterations(self) -> int | None:
        """K of the unroll; None: the method has none."""
        return None

    @property
    def any_length(self) -> bool:
        """Whether stacks may have another number of frames than in training."""
        return True

    @property
    def in_metres(self) -> bool:
        """Whether the method needs distances: q itself, not its differences alone."""
        return False

    def check_unit(self, unit: str) -> None:
        """Raises ConfigError if the method needs distances, and data in `unit` do not tell them."""
        if self.in_metres and unit not in ("metre", "diopter"):
            raise ConfigError(
                "model.trained_on: a network trained on metres needs focus settings in metres or diopters, not "
                f"{unit}; if it was trained on {unit}, import its weights again without --trained-on metre"
            )

    def replace_known(self, **changes: Any) -> Self:
        """A copy with those of the changes for which this method has a field."""
        known = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if name in known})


@dataclass(frozen=True)
class Proximal(ModelConfig):
    """The unrolled network. The defaults are the library's own reading at the paper's width: preset `physical` has
    half of it behind the encoder."""

    method = "proximal"
    trained = True

    dtype: Dtype = "float32"
    """Number format of the convolutions. Parameters, statistics, depths, softmax and loss are always float32."""

    # Focus volume F (1-3)
    encoder: Literal["resnet18", "tiny"] = "resnet18"
    norm: Literal["batch", "torch_batch", "group"] = "batch"
    """`torch_batch`: BatchNorm as PyTorch's, whose running variance is the unbiased one."""
    volume: Literal["fv", "diff"] = "fv"
    """`diff`: features of neighbouring frames are subtracted along the focus axis."""
    pooling: Literal["pyramid", "none"] = "pyramid"
    """Pyramid pooling at the coarse levels. Its bins grow with the image, so `none` suits training on small crops."""
    width: float = 1.0
    """Multiplies the channel counts of the encoder and the focus volume."""
    decoder_width: float = 1.0
    """Multiplies the channel counts of the top-down path and the 3-D decoder of the focus volume once more."""
    head_width: float = 1.0
    """Multiplies the channel counts of the networks at full resolution: heads, proximal network, refiner."""
    input_range: Literal["symmetric", "imagenet"] = "symmetric"
    """Scaling of RGB: to [-1,1], or by ImageNet's mean and standard deviation (for ImageNet weights)."""
    measure_prior: Literal["none", "log_sml", "log_sml_features"] = "log_sml"
    """`log_sml`: adds the log sum-modified-Laplacian of windows of 3, 9 and 21 pixels to F, each with a learned scale.
    `log_sml_features`: the decoder sees them too, pooled to each of its levels."""

    # Planes and candidates (4-7, 14)
    planes: Literal["index", "focus"] = "focus"
    coordinate: Coordinate = "unit"
    num_planes: int | None = 15
    """C, the number of planes to which F is resampled along the focus axis; None: C = Z, as in the paper."""
    num_candidates: int = 3
    candidate_source: Literal["residual_heads", "per_scale"] = "residual_heads"
    """`per_scale`: the candidates are the soft-argmax of each of the N finest score maps, N <= 4, without heads."""
    measured_candidates: bool = False
    """Adds the nine candidates of `classical` (three focus measures at three scales, no parameters). The network sees
    them and the sharpness of their peaks, and weighs all candidates together."""
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
    """eta where S = 1."""
    bounded_step: bool = True
    """A learned eta is u / (1 + u S) with u = softplus(raw), below 1/S in every pixel. False: it is u, as in the paper,
    and nothing keeps it from overshooting."""
    regularization: Literal["constant", "learned", "learned_per_iteration", "per_pixel"] = "constant"
    regularization_init: float = 0.1
    prox_output: Literal["direct", "residual"] = "residual"
    prox_inputs: Literal["equation_17", "with_confidence", "with_lookup"] = "with_lookup"
    """`with_confidence` adds S and the disagreement of the candidates, both at unit scale. `with_lookup` also adds
    log P at the five planes nearest to D(k-1), read anew in each iteration."""
    prox_levels: int = 3
    """Number of max-poolings in the proximal U-Net: 1 in the paper; more of them widen its receptive field."""
    activation: Literal["relu", "leaky_relu", "silu"] = "leaky_relu"
    """Activation of the heads, the proximal network and the refiner."""
    gradient: str = "auto"
    """`auto` (unrolled back-propagation on CPU, a rolled scan with rematerialised steps elsewhere), `backprop`,
    `remat`, `truncated(n)` (through the last n steps only), `jacobian_free` (the last step), or `implicit` (as if D(K)
    were a fixed point of the last step)."""

    # Refiner (15, 16)
    refiner_steps: int = 1
    refiner_inputs: Literal["depth_volume", "depth_volume_candidates", "with_settings"] = "depth_volume"
    """`with_settings`: depth, volume, candidates, and the position of the depth between the focus settings, because few
    settings bias a depth towards the nearest one."""

    sharpen: Literal["none", "weighted_median"] = "none"
    """Step after the refiner, at inference only: a weighted median, guided by the frame that is sharp around each
    pixel, moves the edges of the depth to the edges of the image."""

    # Uncertainty
    uncertainty: Literal["spread", "learned"] = "spread"
    """Source of the confidence: the spread of the distribution over planes and of the candidates, or a head that learns
    the expected error of the answer (through `loss.uncertainty`) and changes nothing else."""

    def _check(self) -> None:
        trust(self.scheme, self.prox)  # made in Python; what a file names was checked before
        self._positive("width", "decoder_width", "head_width", "step_size_init", "regularization_init")
        self._at_least(1, "num_candidates", "prox_levels")
        self._at_least(2, "num_planes")
        self._at_least(0, "num_iterations", "refiner_steps")
        self._at_most(MOST_ITERATIONS, "num_iterations")
        if not re.fullmatch(r"auto|backprop|remat|truncated\([1-9]\d*\)|jacobian_free|implicit", self.gradient):
            raise ConfigError(
                f"model.gradient: {self.gradient!r} is not a choice; choose one of auto, backprop, remat, "
                "truncated(n) with n of 1 or more, jacobian_free, implicit"
            )
        if self.measured_candidates and self.coordinate == "raw":
            raise ConfigError("model.measured_candidates: needs coordinate=unit")
        if self.refiner_inputs == "with_settings" and self.coordinate == "raw":
            raise ConfigError("model.refiner_inputs: with_settings needs coordinate=unit")
        if self.uncertainty == "learned" and self.coordinate == "raw":
            raise ConfigError("model.uncertainty: learned needs coordinate=unit")
        if self.prox_inputs == "with_lookup" and (self.num_planes is None or self.coordinate == "raw"):
            raise ConfigError("model.prox_inputs: with_lookup needs fixed planes (num_planes) and coordinate=unit")
        if self.step_size != "constant" and self.bounded_step and self.step_size_init >= 1:
            raise ConfigError(f"model.step_size_init: a bounded step needs less than 1, got {self.step_size_init}")
        if self.candidate_source == "per_scale" and self.num_candidates > 4:
            raise ConfigError(
                f"model.num_candidates: per_scale has a candidate for each of 4 levels, got {self.num_candidates}"
            )
        if self.planes == "index" and self.coordinate == "unit":
            raise ConfigError("model.coordinate: planes=index counts planes 1..C, which is no unit coordinate; use raw")

    @property
    def any_length(self) -> bool:
        return self.num_planes is not None

    @property
    def own_code(self) -> bool:
        """Whether the scheme or the prox is the user's own."""
        return is_own(self.scheme) or is_own(self.prox)


@dataclass(frozen=True)
class ComparedNetwork(ModelConfig):
    """What the compared networks have in common."""

    trained = True

    dtype: Dtype = "float32"
    """Number format of the convolutions. Parameters, statistics, depths, softmax and loss are always float32."""
    width: float = 1.0
    """Multiplies all channel counts."""
    frame_order: Literal["ascending", "descending"] = "ascending"
    """Order of q in which the network sees the frames: `descending` (near first) for weights that were trained so."""
    trained_on: Literal["disparity", "diopter", "metre"] = "disparity"
    """Unit of the focus settings of which the network gives a mean. Disparity and diopters are q itself; a mean of
    metres is turned to q, and needs data in metres or diopters."""
    coordinate: Coordinate = "raw"
    """Unit of the errors in the loss."""

    def _check(self) -> None:
        self._positive("width")

    @property
    def in_metres(self) -> bool:
        return self.trained_on == "metre"


@dataclass(frozen=True)
class DFV(ComparedNetwork):
    """DFV (Yang, Huang and Zhou, CVPR 2022)."""

    method = "dfv"
    num_scales = 4

    volume: Literal["fv", "diff"] = "fv"
    """`diff`: features of neighbouring frames are subtracted along the focus axis."""


@dataclass(frozen=True)
class AiFDNet(ComparedNetwork):
    """AiFDNet (Wang et al., ICCV 2021), supervised by depth."""

    method = "aifdnet"
    num_scales = 1

    attention: Literal["softmax", "softplus"] = "softmax"
    """What makes weights of logits: `softplus`, by its sum, is the published code's `normalize_attention`."""
    frame_position: bool = False
    """Whether the network sees a fourth channel, (s + 1) / S in the s-th of S frames."""


@dataclass(frozen=True)
class DWild(ComparedNetwork):
    """DWild, depth from focus in the wild (Won and Jeon, ECCV 2022)."""

    method = "dwild"
    num_scales = 4

    coordinate: Coordinate = "unit"


@dataclass(frozen=True)
class Classical(ModelConfig):
    """No training: several focus measures give the candidates, peak sharpness the weights, TV the prox."""

    method = "classical"
    trained = False
    tile_overlap = 128
    bytes_per_pixel = 95.0

    num_iterations: int = 3

    def _check(self) -> None:
        self._at_least(0, "num_iterations")
        self._at_most(MOST_ITERATIONS, "num_iterations")


@dataclass(frozen=True)
class SML(ModelConfig):
    """No training: sum-modified-Laplacian, aggregation, Gaussian peak; the baseline."""

    method = "sml"
    trained = False
    tile_overlap = 32
    bytes_per_pixel = 45.0


@dataclass(frozen=True)
class RDF(ModelConfig):
    """No training: ring difference filter, guided filter, Gaussian peak."""

    method = "rdf"
    trained = False
    tile_overlap = 64
    bytes_per_pixel = 76.0


@dataclass(frozen=True)
class RfvrLike(ModelConfig):
    """No training: robust static/dynamic-guided regularisation of the focus volume; our own, after RFVR's abstract."""

    method = "rfvr_like"
    trained = False
    tile_overlap = 96
    bytes_per_pixel = 117.0


METHODS: dict[str, type[ModelConfig]] = {
    cls.method: cls for cls in (Proximal, DFV, AiFDNet, DWild, Classical, SML, RDF, RfvrLike)
}
"""The class of each method by its name."""
UNTRAINED = tuple(name for name, cls in METHODS.items() if not cls.trained)
"""Methods without weights: their names stand where those of weights do."""
