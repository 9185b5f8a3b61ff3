"""An estimator whose errors are known, and batches to measure it on."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dff_jax.evaluation.conventions import CONVENTIONS
from dff_jax.evaluation.evaluate import evaluated
from dff_jax.evaluation.rows import gather
from dff_jax.types import Batch, Estimator, History, LoadedBatch, Prediction

Z, H, W = 4, 18, 24


def fake_estimator(refiner_steps=1, history=True):
    """Knows the truth (the red channel of frame 0, times 100) and errs by a known amount at each stage."""
    traces = []

    def apply(variables, frames, focus, *, train=False, num_iterations=None):
        traces.append(frames.shape)
        k = 2 if num_iterations is None else num_iterations
        truth = 100 * frames[:, 0, ..., 0] + variables["offset"]
        iterates = jnp.stack([truth + 4.0 * 0.5**i for i in range(k + 1)], axis=1)
        refined = jnp.zeros((truth.shape[0], 0, *truth.shape[1:]))
        if refiner_steps:
            refined = jnp.stack([truth - 1.0 / (t + 1) for t in range(refiner_steps)], axis=1)
        candidates = jnp.stack([truth + 6, truth - 2], -1)
        stages = History(truth + 8, candidates, jnp.full_like(candidates, 0.5), iterates, refined)
        depth = refined[:, -1] if refiner_steps else iterates[:, -1]
        ones = jnp.ones_like(depth)
        return Prediction(depth, 0.5 * ones, ones, frames[:, 0], stages if history else None), {}

    return Estimator(lambda key, frames, focus: {"offset": jnp.zeros(())}, apply), traces


VARIABLES = {"offset": jnp.zeros(())}


def loaded_batch(names, unit="disparity", empty=(), height=H, seed=0):
    """Stacks named `names`; "" and `empty` ones have no truth. The fake estimator's answer is truth in q."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(5, 60, (len(names), height, W)).astype(np.float32)
    frames = rng.random((len(names), Z, height, W, 3), np.float32)
    frames[:, 0, ..., 0] = truth / 100
    mask = rng.random(truth.shape) > 0.1
    for i, name in enumerate(names):
        mask[i] &= name not in ("", *empty)
    focus = np.tile(np.linspace(10, 50, Z, dtype=np.float32), (len(names), 1))
    return LoadedBatch(Batch(frames, focus, np.where(mask, truth, 0).astype(np.float32), mask), tuple(names))


def evaluate(estimator, variables, batches, unit="disparity", convention=CONVENTIONS["default"], **options):
    """`evaluated` over all batches, and `gather`."""
    found = evaluated(estimator, variables, batches, unit=unit, convention=convention, **options)
    return gather([measured for measured, _, _ in found], unit, convention)
