"""AiFDNet (Wang et al., ICCV 2021) with one class: depth and all-in-focus picture by the same attention.

Written afresh from the published layout; `network.aifdnet.torch_key` finds the published weights' places.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import padded
from dff_jax.network.aifdnet import AiFDNet
from dff_jax.types import Array, Estimator, Prediction, Variables


def aifdnet(config: configs.AiFDNet) -> Estimator:
    """The estimator of `config`, of which it takes `width` and `dtype`; see `estimators.build`."""
    net = AiFDNet(config.width)

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        with padded(frames, least=32, mode="black") as seen:
            logits, stats = soft_depth.run(net, variables, seen.astype(config.dtype), train)
        return soft_depth.answer(frames, focus, [jax.nn.softmax(logits.astype(jnp.float32), axis=1)]), stats

    estimator = Estimator(soft_depth.initializer(net), apply)
    return soft_depth.in_order(estimator, config.frame_order)
