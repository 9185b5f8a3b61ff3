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
