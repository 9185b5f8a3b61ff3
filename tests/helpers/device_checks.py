"""What the checks of an accelerator share: placing, compiling and comparing."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def on_cpu(tree: Any) -> Any:
    return jax.device_put(tree, jax.devices("cpu")[0])


def on_device(tree: Any) -> Any:
    return jax.device_put(tree, jax.devices()[0])


def distance(got: Any, want: Any) -> float:
    """|got - want| / |want| over all leaves of two trees, in the Euclidean norm."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    difference = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float(np.sqrt(difference / sum(float((b**2).sum()) for _, b in pairs)))


def convolve(x: np.ndarray, kernel: np.ndarray, dilation: int = 1) -> np.ndarray:
    """SAME convolution [B,Z,H,W,C] by [kz,ky,kx,C,O], or without Z and kz, in float64."""
    if x.ndim == 4:
        return convolve(x[:, None], kernel[None], dilation)[:, 0]
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    steps = (1, dilation, dilation)
    reach = [s * (k // 2) for s, k in zip(steps, kernel.shape[:3], strict=True)]
    padded = np.pad(x, [(0, 0), *((r, r) for r in reach), (0, 0)])
    total = np.zeros((*x.shape[:4], kernel.shape[-1]))
    for at in np.ndindex(*kernel.shape[:3]):
        window = tuple(slice(s * i, s * i + n) for s, i, n in zip(steps, at, x.shape[1:4], strict=True))
        total += padded[(slice(None), *window)] @ kernel[at]
    return total


def convolution_error(lowering: Callable, x_shape: tuple, kernel_shape: tuple, want: Callable) -> float:
    """Largest relative error of a lowering's value and gradients against `want`.

    The gradients are checked by <conv(x, k), g>, which is linear in x and in k.
    """
    rng = np.random.default_rng(0)
    x, kernel, u, v = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, kernel_shape) * 2)
    expected = want(x, kernel)
    g = rng.standard_normal(expected.shape).astype(np.float32)

    def loss(x, kernel):
        y = lowering(x, kernel)
        return (y * g).sum(), y

    (_, y), (dx, dk) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*on_device((x, kernel)))
    slopes = (np.vdot(u, dx), (want(u, kernel) * g).sum()), (np.vdot(v, dk), (want(x, v) * g).sum())
    scale = np.linalg.norm(expected) * np.linalg.norm(g) / np.sqrt(g.size)
    return max(distance(y, expected), *(float(abs(a - b) / scale) for a, b in slopes))
