"""DWild, depth from focus in the wild (Won and Jeon, ECCV 2022), without its alignment network.

Written afresh from the published layout; `network.dwild.torch_key` finds the published weights' places.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import padded
from dff_jax.network.dwild import DWild
from dff_jax.types import Array, Estimator, Prediction, Variables

LEAST_SHARE = 1e-6  # added to every weight, so that their sum is never 0


def dwild(config: configs.DWild) -> Estimator:
    """The estimator of `config`, of which it takes `width` and `dtype`; see `estimators.build`.

    When training it answers at four scales (the finest is the answer), otherwise at the finest alone.
    """
    net = DWild(config.width)

    def attention(logits: Array) -> Array:
        positive = jax.nn.softplus(logits.astype(jnp.float32)) + LEAST_SHARE
        return positive / positive.sum(1, keepdims=True)

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        with padded(frames, least=32, mode="black") as seen:
            seen = 2 * seen[..., ::-1] - 1  # the published weights expect blue first
            logits, stats = soft_depth.run(net, variables, seen.astype(config.dtype), train)
        return soft_depth.answer(frames, focus, [attention(scale) for scale in logits]), stats

    estimator = Estimator(soft_depth.initializer(net), apply)
    return soft_depth.in_order(estimator, config.frame_order)
