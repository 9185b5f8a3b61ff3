"""One experiment: the model, the objective, the optimizer, the data and the loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from dff_jax.config.base import Checked
from dff_jax.config.data import DataConfig
from dff_jax.config.methods import ModelConfig, Proximal
from dff_jax.errors import ConfigError


@dataclass(frozen=True)
class LossConfig(Checked):
    """The training objective (26)."""

    _section = "loss"

    kind: Literal["mse_final", "sequence", "multi_scale"] = "sequence"
    """`sequence`: over Dbar, D(0)..D(K) and the refined depths, each stage weighted gamma times the next;
    `multi_scale`: over the depths of a compared network at its scales, weighted by `scale_weights`."""
    gamma: float = 0.8
    scale_weights: tuple[float, ...] = (1.0,)
    """Weight of each scale, the answer first."""
    penalty: Literal["mse", "l1", "smooth_l1", "charbonnier", "log_l1"] = "charbonnier"
    """Penalty of each stage or scale. In coordinate `unit` errors are shares of the focus range. `log_l1` counts large
    errors less (from 0.1 on at most half), so that pixels without any clue do not dominate."""
    region: Literal["valid", "in_range"] = "valid"
    """Pixels that count: all with ground truth, or those with truth inside the focus range of the stack."""
    uncertainty: float = 0.0
    """Weight of the negative log likelihood of the answer's error, which trains model.uncertainty=learned."""
    image: float = 0.0
    """Weight of the mean absolute error of the all-in-focus image, against the data's own picture (w_a of AiFDNet)."""
    smoothness: float = 0.0
    """Weight of the slopes of the depth where the data's picture has no edges (w_s of AiFDNet)."""
    depth: float = 1.0
    """Weight of all that compares depths (w_d of AiFDNet); 0: training without ground truth, by the picture alone."""

    def _check(self) -> None:
        self._positive("gamma")
        self._at_least(0, "uncertainty", "image", "smoothness", "depth")
        if not self.depth and not self.image:
            raise ConfigError("loss.depth: 0 leaves nothing to learn from; give loss.image a weight, such as 1")
        if not self.depth and self.uncertainty:
            raise ConfigError("loss.uncertainty: learns from errors of the depth; it needs loss.depth above 0")
        if not self.scale_weights or min(self.scale_weights) < 0 or not sum(self.scale_weights) > 0:
            raise ConfigError(f"loss.scale_weights: needs weights of 0 or more, not all 0, got {self.scale_weights}")


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW with a one-cycle learning rate."""

    _section = "optimizer"

    peak_learning_rate: float = 1e-4
    schedule: Literal["torch_onecycle", "optax_onecycle", "constant"] = "optax_onecycle"
    """`torch_onecycle` also cycles beta1 0.95 -> 0.85 -> 0.95, as PyTorch's does in the published training."""
    beta2: float = 0.999
    warmup_share: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    weight_decay: float = 1e-2
    """0 makes it Adam."""
    decay: Literal["all", "kernels"] = "kernels"
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""

    def _check(self) -> None:
        self._positive("peak_learning_rate", "div_factor", "final_div_factor")
        if self.clip_norm is not None:
            self._positive("clip_norm")
        if not 0 <= self.beta2 < 1:
            raise ConfigError(f"optimizer.beta2: from 0 to below 1, got {self.beta2}")
        self._at_least(0, "weight_decay")
        if not 0 < self.warmup_share < 1:
            raise ConfigError(f"optimizer.warmup_share: must lie between 0 and 1, got {self.warmup_share!r}")


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """The training loop: number of steps, intervals, devices, weights to begin with."""

    _section = "training"

    num_steps: int = 1000
    log_every: int = 20
    eval_every: int = 250
    save_every: int = 250
    keep: int = 2
    """Number of newest checkpoints to keep beside the best one."""
    accumulate: int = 1
    """Number of parts into which each batch is cut; their gradients are summed before the update. It needs the
    memory of a batch that many times smaller. BatchNorm normalises within a part."""
    average: float = 0.0
    """Decay of a running average of weights and batch statistics, which is evaluated and exported; 0: none."""
    statistics: int = 40
    """Number of training stacks, at the size of the validation stacks, over which a network with BatchNorm gets its
    mean and variance before each evaluation, and for the weights that are exported; 0: the running averages."""
    parallel: Literal["jit", "pmap"] = "jit"
    num_devices: int | None = None
    """Number of devices to use; None: all."""
    tensorboard: bool = True
    encoder_weights: str | None = None
    """An encoder to begin with, from `dff-jax import-weights --model resnet18`; not read when a run is resumed. Needs
    encoder=resnet18, norm=batch and width=1. ImageNet's weights want input_range=imagenet."""
    initial_weights: str | None = None
    """Weights to begin with: a run folder, a file, or `pretrained`; not read when a run is resumed. Inputs are found by
    name, and further ones begin as zeros; the run lists what begins as random numbers. At least half must be found."""
    transfer: str | None = None
    """A folder of stacks to evaluate beside the validation split, to watch transfer during training."""

    def _check(self) -> None:
        self._at_least(1, "num_steps", "log_every", "eval_every", "save_every", "keep", "num_devices", "accumulate")
        if self.initial_weights is not None and self.encoder_weights is not None:
            raise ConfigError("training.encoder_weights: give these or initial_weights, not both")
        self._at_least(0, "statistics")
        if not 0 <= self.average < 1:
            raise ConfigError(f"training.average: from 0 to below 1, got {self.average!r}")


@dataclass(frozen=True)
class Config(Checked):
    """One experiment: everything that a run depends on."""

    name: str = "physical"
    seed: int = 0
    model: ModelConfig = field(default_factory=Proximal)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def _check(self) -> None:
        self._at_least(0, "seed")
        network = self.model if isinstance(self.model, Proximal) else None
        uncertainty = network.uncertainty if network else "spread"
        if (uncertainty == "learned") != (self.loss.uncertainty > 0):
            raise ConfigError(
                "loss.uncertainty: greater than 0 goes with model.uncertainty=learned, and 0 with spread; got "
                f"{self.loss.uncertainty!r} and {uncertainty}"
            )
        if not self.model.any_length:  # C = Z is a shape of the weights
            numbers = {part.frames for part in self.data.parts()}
            varied = any(frames and frames[0] < frames[1] for frames in numbers)
            if varied or len(numbers) > 1 or (self.data.mixture and numbers == {None}):
                raise ConfigError(
                    "model.num_planes: None (C = Z) needs stacks of one length; set data.frames to one number, such as "
                    "15 15, or num_planes"
                )

    def idle(self) -> list[str]:
        """Fields that were changed but have no effect beside others, each with the reason."""
        model, loss, found = self.model, self.loss, []

        def has_no_effect(part: Checked, reason: str, *names: str) -> None:
            plain = {field.name: field.default for field in dataclasses.fields(part)}
            found.extend(f"{part._name(name)} ({reason})" for name in names if getattr(part, name) != plain[name])

        if isinstance(model, Proximal):
            if not model.own_code and model.prox not in ("gated_unet", "residual_cnn", "gru"):
                has_no_effect(model, f"prox={model.prox} has no parameters", "tied")
            if not model.refiner_steps:
                has_no_effect(model, "refiner_steps=0", "refiner_inputs")
            if model.prox == "identity":
                has_no_effect(model, "prox=identity", "regularization", "regularization_init")
        if not loss.depth:
            has_no_effect(loss, "depth=0", "kind", "gamma", "scale_weights", "penalty", "region")
            loss = LossConfig()
        if loss.kind == "mse_final" and loss.penalty != "mse":
            has_no_effect(loss, "kind=mse_final is squared", "penalty")
        if loss.kind != "sequence":
            has_no_effect(loss, f"kind={loss.kind}", "gamma")
        if loss.kind != "multi_scale":
            has_no_effect(loss, f"kind={loss.kind}", "scale_weights")
        if self.optimizer.schedule == "constant":
            has_no_effect(self.optimizer, "schedule=constant", "warmup_share", "div_factor", "final_div_factor")
        if not self.optimizer.weight_decay:
            has_no_effect(self.optimizer, "weight_decay=0", "decay")
        return found
