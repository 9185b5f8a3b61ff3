"""Parameters of networks for tests: from shapes and NumPy, as a compiled `init` takes seconds for each network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from dff_jax.config import LossConfig, ModelConfig
from dff_jax.training.objective import objective
from dff_jax.types import Batch, Estimator, Variables


def variables(estimator: Estimator, frames: Any = (1, 4, 32, 32), seed: int = 0) -> Variables:
    """The estimator's variables, random: kernels of unit gain, scales and variances 1, the rest 0.

    Args:
      frames: B, Z, H, W of the stack whose shapes decide, or an array of that shape.
    """
    B, Z, H, W = getattr(frames, "shape", frames)[:4]
    stack = jax.ShapeDtypeStruct((B, Z, H, W, 3), np.float32), jax.ShapeDtypeStruct((B, Z), np.float32)
    shapes = flatten_dict(jax.eval_shape(estimator.init, jax.random.key(0), *stack), sep="/", keep_empty_nodes=True)
    rng = np.random.default_rng(seed)
    return unflatten_dict({name: _array(rng, name, x) for name, x in sorted(shapes.items())}, sep="/")


def _array(rng: np.random.Generator, name: str, shape: Any) -> Any:
    if shape is empty_node:
        return shape
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "kernel":
        gain = math.sqrt(2 / max(1, math.prod(shape.shape[:-1])))
        return np.float32(gain * rng.standard_normal(shape.shape))
    return np.full(shape.shape, 1.0 if leaf in ("scale", "var") else 0.0, np.float32)


def on_host(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with answers in NumPy: each operation on an array of JAX's compiles a program for its shape."""
    compiled = jax.jit(function, **options)
    return lambda *args, **kwargs: jax.device_get(compiled(*args, **kwargs))


def random_like(shapes: Any) -> Any:
    """Arrays for a tree of shapes: far from initialisation, where zero-initialised layers hide mistakes."""
    rng = np.random.default_rng(5)

    def draw(path, x):
        if path[-1].key in ("scale", "measure_scale", "var"):  # of norms
            return (1 + 0.1 * rng.random(x.shape)).astype(np.float32)
        fan_in = math.prod(x.shape[:-1]) if path[-1].key == "kernel" else 4
        value = rng.normal(size=x.shape) / np.sqrt(fan_in)
        names = [key.key for key in path]
        if names[-1] == "regularization" or names[-4:] == ["regularization", "Conv_2", "Conv_0", "bias"]:
            value = value - 4  # lambda about 0.02: total variation has not yet flattened everything
        return value.astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def trained(
    estimator: Estimator, given: Variables, model: ModelConfig, batches: Iterable[Batch], loss: LossConfig, rate: float
) -> tuple[Variables, list[float]]:
    """The variables after a step of Adam on each batch, all valid, and the loss before each step.

    Adam is in NumPy: for hundreds of tensors it takes as long to compile as the gradient of the network.
    """

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(params: Any, stats: Any, batch: Batch) -> Any:
        seen = {"params": params, "batch_stats": stats}
        prediction, stats = estimator.apply(seen, batch.frames, batch.focus, train=True)
        return objective(prediction, batch, loss, model.coordinate).loss / batch.depth.size, stats

    params, stats, losses = given["params"], given["batch_stats"], []
    mean = square = jax.tree.map(np.zeros_like, params)
    for k, batch in enumerate(batches, 1):
        (value, stats), found = jax.device_get(gradient(params, stats, batch))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, found)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, square, found)
        size = rate * math.sqrt(1 - 0.999**k) / (1 - 0.9**k)
        params = jax.tree.map(lambda p, m, s, size=size: p - size * m / (np.sqrt(s) + 1e-8), params, mean, square)
        losses.append(float(value))
    return {"params": params, "batch_stats": stats}, losses
