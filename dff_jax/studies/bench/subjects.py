"""What the benchmarks and the comparison measure: random stacks and parameters, an inference, a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import estimators
from dff_jax.config import LossConfig, ModelConfig, OptimizerConfig
from dff_jax.runtime.compile import jit
from dff_jax.studies.bench import measuring
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import TrainState, begin
from dff_jax.training.step import make_update
from dff_jax.types import Array, Batch, Estimator, Prediction, Variables

Shape = tuple[int, ...]  # stacks B, frames Z, side of the square images (or height and width)


def batch(shape: Shape) -> Batch:
    """Random frames and truth."""
    B, Z, height, width = (*shape, shape[-1])[:4]
    frames = np.random.default_rng(0).random((B, Z, height, width, 3), np.float32)
    focus = np.tile(np.linspace(10, 100, Z, dtype=np.float32), (B, 1))
    depth = 10 + 90 * frames[:, 0, ..., 0]
    return Batch(jnp.asarray(frames), jnp.asarray(focus), jnp.asarray(depth), jnp.ones(depth.shape, bool))


def variables(model: ModelConfig, frames: int) -> Variables:
    """Random variables for stacks of `frames`: activations stay at about 1. Made on the host, nothing is compiled."""
    # K does not change the parameters; K = 1 is the quickest to trace
    return _variables(model.replace_known(num_iterations=1, gradient="auto", dtype="float32"), frames)


@functools.cache
def _variables(model: ModelConfig, frames: int) -> Variables:
    shape = jax.ShapeDtypeStruct
    inputs = shape((1, frames, 64, 64, 3), np.float32), shape((1, frames), np.float32)
    return fill(jax.eval_shape(estimators.build(model).init, jax.random.key(0), *inputs))


def fill(shapes: Any, seed: int = 0) -> Any:
    """Random arrays of these shapes: kernels of unit gain, scales and variances 1, biases and means 0."""
    rng = np.random.default_rng(seed)

    def one(path: tuple, x: Any) -> np.ndarray:
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("scale", "var"):
            return np.ones(x.shape, x.dtype)
        if name in ("bias", "mean"):
            return np.zeros(x.shape, x.dtype)
        spread = np.sqrt(1 / np.prod(x.shape[:-1])) if name == "kernel" else 0.1
        return (spread * rng.standard_normal(x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def without_history(estimator: Estimator) -> Callable[[Variables, Array, Array], Prediction]:
    """Inference as users see it: (variables, frames [B,Z,H,W,3], focus [B,Z]) -> Prediction without its history."""

    def infer(variables: Variables, frames: Array, focus: Array) -> Prediction:
        return estimator.apply(variables, frames, focus, train=False)[0]._replace(history=None)

    return infer


def inference(model: ModelConfig, shape: Shape) -> tuple[Callable, tuple]:
    """An inference, to be jitted, and its arguments."""
    data = batch(shape)
    return without_history(estimators.build(model)), (variables(model, shape[1]), data.frames, data.focus)


def training_step(
    model: ModelConfig, data: Batch, given: Variables | None = None, loss: LossConfig | None = None,
    optimizer: OptimizerConfig | None = None, num_steps: int = 1000,
) -> tuple[Callable, tuple[TrainState, Batch]]:  # fmt: skip
    """An update (loss, gradient, AdamW), to be jitted, and its arguments.

    Args:
      given: variables to start from; None: random ones.
      loss: None: the one that goes with the method.
      optimizer: None: the default.
      num_steps: length of the learning rate's schedule.
    """
    given = variables(model, data.focus.shape[1]) if given is None else given
    tx = optimizers.build(optimizer or OptimizerConfig(), num_steps)
    update = make_update(estimators.build(model), tx, loss or loss_of(model), model.coordinate)
    return update, (begin(given, tx), data)


def loss_of(model: ModelConfig) -> LossConfig:
    """The loss that goes with a method."""
    if not model.num_scales:
        return LossConfig()
    return LossConfig(kind="multi_scale", scale_weights=(1.0,) * model.num_scales, penalty="smooth_l1")


def gflops(model: ModelConfig, shape: Shape, training: bool) -> float | None:
    """GFLOPs of an inference or a training step, nothing computed twice.

    XLA counts the body of a loop once, so iterations are counted one by one: f(K) = f(0) + K (f(1) - f(0)).
    """
    B, Z, size = shape
    if model.num_iterations is None:
        found = _stack_gflops(model, Z, size, training)
        return found and B * found
    counted = model.replace_known(num_iterations=0, gradient="backprop")
    none, one = (_stack_gflops(counted.replace_known(num_iterations=K), Z, size, training) for K in (0, 1))
    return B * (none + model.num_iterations * (one - none)) if none and one else None


@functools.cache
def _stack_gflops(model: ModelConfig, frames: int, size: int, training: bool) -> float | None:
    shape = 1, frames, size
    function, arguments = training_step(model, batch(shape)) if training else inference(model, shape)
    return measuring.count_gflops(jit(function), *arguments)
