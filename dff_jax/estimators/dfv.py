"""DFV-FV and DFV-Diff (Yang, Huang and Zhou, CVPR 2022). Presets `dfv_fv`, `dfv_diff`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dff_jax.config import ModelConfig
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import pad_to_multiple
from dff_jax.network.dfv import DFV
from dff_jax.types import Array, Estimator, Prediction, Variables


def dfv(config: ModelConfig, axis_name: str | None = None) -> Estimator:
    """The estimator of `config`, of which it takes `volume` and `width`; see `estimators.build`.

    A history holds the depths of all four scales when training, finest first, else only the finest.
    """
    net = DFV(config.width, config.volume == "diff", axis_name)

    def make_variables(key: Array, num_frames: int) -> Variables:
        given = net.init(key, jnp.zeros((1, num_frames, 64, 64, 3), jnp.float32), False)
        return {"params": given["params"], "batch_stats": given["batch_stats"]}

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        if isinstance(key, jax.core.Tracer):
            return make_variables(key, frames.shape[1])
        # a hundred random tensors take a minute to optimise and no time to run
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(make_variables, static_argnums=1, compiler_options=options)(key, frames.shape[1])

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        padded = pad_to_multiple(frames, mode="reflect")
        if not train:
            return soft_depth.answer(frames, focus, net.apply(variables, padded, False)), variables["batch_stats"]
        weights, changed = net.apply(variables, padded, True, mutable=["batch_stats"])
        return soft_depth.answer(frames, focus, weights), changed["batch_stats"]

    return Estimator(init, apply)
