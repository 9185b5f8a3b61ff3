"""DFV-FV and DFV-Diff (Yang, Huang and Zhou, CVPR 2022). Presets `dfv_fv`, `dfv_diff`."""

from __future__ import annotations

from typing import Any

from dff_jax import config as configs
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import padded
from dff_jax.network.dfv import DFV
from dff_jax.types import Array, Estimator, Prediction, Variables


def dfv(config: configs.DFV) -> Estimator:
    """The estimator of `config`, of which it takes `volume`, `width` and `dtype`; see `estimators.build`.

    When training it answers at four scales (the finest is the answer), otherwise at the finest alone.
    """
    net = DFV(config.width, config.volume == "diff", config.dtype)

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        with padded(frames, mode="reflect") as seen:
            weights, stats = soft_depth.run(net, variables, seen, train)
        return soft_depth.answer(frames, focus, weights), stats

    estimator = Estimator(soft_depth.initializer(net, num_frames=2, side=64), apply)
    return soft_depth.in_order(estimator, config.frame_order)
