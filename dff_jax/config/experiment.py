"""One experiment: everything that a run depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from dff_jax.config.base import Checked
from dff_jax.config.data import DataConfig
from dff_jax.config.methods import ModelConfig
from dff_jax.config.training import LossConfig, OptimizerConfig, TrainingConfig
from dff_jax.errors import ConfigError


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
        learned = self.model.method == "proximal" and self.model.uncertainty == "learned"
        if learned != (self.loss.uncertainty > 0):
            raise ConfigError(
                "loss.uncertainty: greater than 0 goes with model.uncertainty=learned, and 0 with spread; got "
                f"{self.loss.uncertainty!r} and {self.model.uncertainty}"
            )
        if self.model.method == "proximal" and self.model.num_planes is None:  # C = Z is a shape of the weights
            numbers = {part.frames for part in self.data.parts()}
            varied = any(frames and frames[0] < frames[1] for frames in numbers)
            if varied or len(numbers) > 1 or (self.data.mixture and numbers == {None}):
                raise ConfigError(
                    "model.num_planes: None (C = Z) needs stacks of one length; set data.frames to one number, such as "
                    "15 15, or num_planes"
                )
