"""Weights files that an earlier version wrote, under the names of today's networks."""

from __future__ import annotations

import numpy as np

from dff_jax.config import ModelConfig, Proximal

FIRST_CONVOLUTION = {
    "gated_unet": "phi1/Conv_0/Conv_0/kernel", "residual_cnn": "Conv_0/Conv_0/kernel", "gru": "encode/Conv_0/kernel"
}  # fmt: skip
"""The first convolution of each proximal network."""


def migrate(model: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by flat key under today's names.

    Files of before had one kernel [3,3,c,n] ([K,3,3,c,n] of untied networks) over all inputs of a proximal network: z,
    F, eta, lambda, D(k-1), confidence, log P. What does not change between iterations has a kernel of its own now.
    """
    if not isinstance(model, Proximal) or model.prox not in FIRST_CONVOLUTION:
        return tensors
    first, static = f"params/prox/{FIRST_CONVOLUTION[model.prox]}", "params/prox/static/Conv_0/kernel"
    if first not in tensors or static in tensors:
        return tensors
    from dff_jax.network.prox import LOOKUP_REACH

    kernel = tensors[first]
    confidence = 0 if model.prox_inputs == "equation_17" else 2
    evidence = 2 * LOOKUP_REACH + 1 if model.prox_inputs == "with_lookup" else 0
    features = kernel.shape[-2] - 4 - confidence - evidence
    ends = [1, 1 + features, 4 + features, 4 + features + confidence]
    z, F, others, S_and_V, log_P = np.split(kernel, ends, axis=-2)
    return tensors | {first: np.concatenate([z, others, log_P], -2), static: np.concatenate([F, S_and_V], -2)}
