"""Weights and stacks by closed formulas, for expected numbers computed elsewhere (by PyTorch) from the same."""

import math

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def filled(estimator):
    """The estimator's variables, the i-th path in alphabetic order filled from sin(i + 1.7 j + 0.01 j^2), j the flat
    index: kernels of about unit gain, scales and variances around 1, biases and means around 0."""
    shapes = jax.eval_shape(estimator.init, jax.random.key(0), *stack(3, 32, 32))
    tensors = {}
    for i, (path, x) in enumerate(sorted(flatten_dict(shapes, sep="/").items())):
        j = np.arange(math.prod(x.shape), dtype=np.float64)
        wave = np.sin(i + 1.7 * j + 0.01 * j**2).reshape(x.shape)
        leaf = path.rsplit("/", 1)[1]
        if leaf == "kernel":
            wave *= math.sqrt(3 / math.prod(x.shape[:-1]))
        elif leaf in ("scale", "var"):
            wave = 1 + 0.4 * wave
        else:
            wave *= 0.2
        tensors[path] = np.float32(wave)
    return unflatten_dict(tensors, sep="/")


def stack(z, h, w, b=1):
    """Frames [b,z,h,w,3] in [0,1] and focus [b,z], 10 to 100, unevenly spaced."""
    i, j, y, x, c = np.ogrid[:b, :z, :h, :w, :3]
    frames = 0.25 * np.sin(0.9 * y + i + c) * np.cos(0.7 * x + 0.5 * j) + 0.25 * np.sin(0.13 * y * (j + 1) + 2 * c)
    focus = 10 + 90 * np.linspace(0, 1, z) ** 1.5 if z > 1 else np.array([10.0])
    return np.float32(np.broadcast_to(0.5 + frames, (b, z, h, w, 3))), np.float32(np.broadcast_to(focus, (b, z)))
