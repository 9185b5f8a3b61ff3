"""Parameters of networks for tests: from shapes and NumPy, as a compiled `init` takes seconds for each network."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from dff_jax.types import Estimator, Variables


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
