"""All-in-focus images against the data's own picture: PSNR and SSIM, of each stack and then averaged.

    PSNR  -10 log10(mean (I - I_gt)^2) in dB, over all pixels and channels, for values in [0,1]
    SSIM  structural similarity (Wang et al., Image Quality Assessment, IEEE TIP 2004): 11 x 11 Gaussian window of
          standard deviation 1.5, K1 = .01, K2 = .03, where the window lies inside the image; mean over channels

The picture is sharp everywhere, so pixels without ground truth of the depth count as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

METRICS = ("PSNR", "SSIM")
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@jax.jit
def measure(images: Sequence[jax.Array], picture: jax.Array) -> jax.Array:
    """Mean squared error and SSIM of each image and stack, [images,2,B]; all [B,H,W,3] in [0,1]."""
    return jnp.stack([jnp.stack([jnp.square(one - picture).mean((1, 2, 3)), ssim(one, picture)]) for one in images])


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """SSIM [B] of images [B,H,W,C] in [0,1]; NaN for images smaller than the window."""
    x, y = x - 0.5, y - 0.5  # small numbers, of whose squares less is lost to rounding
    mean_x, mean_y = window_mean(x), window_mean(y)
    variances = window_mean(jnp.square(x) + jnp.square(y)) - jnp.square(mean_x) - jnp.square(mean_y)
    covariance = window_mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + C1) / (jnp.square(mean_x) + jnp.square(mean_y) + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean((1, 2, 3))


def window_mean(x: jax.Array) -> jax.Array:
    """Gaussian mean of [B,H,W,C] in each window inside the image: [B,H-10,W-10,C]."""
    taps = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    taps = (taps / taps.sum()).tolist()
    for axis in (1, 2):
        size = max(x.shape[axis] - WINDOW + 1, 0)
        starts = [min(i, x.shape[axis] - size) for i in range(WINDOW)]  # of smaller images, nothing
        x = jnp.stack([t * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for t, i in zip(taps, starts, strict=True)])
        x = x.sum(0)
    return x


def summarize(names: Sequence[str], found: Sequence[np.ndarray]) -> dict[str, dict[str, Any]]:
    """Method -> the mean over stacks of each metric, and the number of stacks.

    Args:
      names: of the methods.
      found: of each batch, what `measure` gives, on the host, for the stacks that count.
    """
    if not found:
        return {}
    squared, similarity = np.concatenate(found, axis=-1).astype(np.float64).transpose(1, 0, 2)
    with np.errstate(divide="ignore"):
        decibels = -10 * np.log10(squared)
    each = zip(names, decibels, similarity, strict=True)
    return {name: {"PSNR": float(p.mean()), "SSIM": float(s.mean()), "stacks": p.size} for name, p, s in each}
