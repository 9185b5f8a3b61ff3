"""Depth metrics: sums and counts of each stack on the device, metrics from them on the host in float64.

Definitions are those of the depth-from-focus literature (ddff-pytorch, DFV, DDL-GRU). For prediction p and
truth g over the n pixels of a region:

    MAE        sum |p-g| / n                     AbsRel  sum |p-g|/g / n
    MSE        sum (p-g)^2 / n                   SqRel   sum (p-g)^2/g / n
    RMS        sqrt(MSE)                         logRMS  sqrt(sum (ln p - ln g)^2 / n)
    Corr       Pearson correlation of p and g    Acc_k   100 #{p > 0, max(p/g, g/p) < 1.25^k} / n, in percent
    bumpiness  100/n sum min(|Hess(p-g)|_F, 0.05), with p-g = 0 where truth is missing
    BadPix     100 #{|p-g| > 0.07} / n, in percent; like bumpiness a threshold in truth's unit, made for DDFF-12

Inside logarithms and ratios p is clipped from below at 1e-6, and clipped pixels are counted. A metric is computed for
each stack and averaged over the stacks; `pooled` is the metric of all pixels of all stacks together.

A prediction that is not finite makes the metrics of its stack NaN, and so the mean. A metric that the truth leaves
undefined is None and does not enter the mean: all metrics of a stack without a pixel in the region; logRMS, AbsRel,
SqRel and Acc where truth is not positive; Corr where truth is constant. A constant prediction of a varying truth has
Corr 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

METRICS = ("MAE", "MSE", "RMS", "logRMS", "AbsRel", "SqRel", "Acc_1", "Acc_2", "Acc_3", "Corr", "bumpiness", "BadPix")
LARGER_IS_BETTER = frozenset({"Acc_1", "Acc_2", "Acc_3", "Corr"})
RATIO_METRICS = frozenset({"logRMS", "AbsRel", "SqRel", "Acc_1", "Acc_2", "Acc_3"})
COUNTS = ("valid_pixels", "clipped_pixels", "nonfinite_pixels")

SMALLEST = 1e-6  # p is clipped here inside logarithms and ratios
BUMP_LIMIT = 0.05
BAD_PIXEL = 0.07


class Sums(NamedTuple):
    """Over one region of each stack; every field [B], counts int32, the rest float32.

    Only pixels with a finite prediction enter the sums; `nonfinite` counts the others.
    """

    pixels: Any
    nonfinite: Any  # prediction is NaN or infinite
    clipped: Any  # prediction below SMALLEST
    nonpositive: Any  # truth <= 0, which leaves ratios undefined
    within_1: Any
    within_2: Any
    within_3: Any
    bad: Any
    absolute: Any
    squared: Any
    log_squared: Any
    relative: Any
    squared_relative: Any
    bumps: Any
    mean_p: Any
    mean_g: Any
    centred_pp: Any  # sum (p - mean_p)^2; exactly 0 for a constant
    centred_gg: Any
    centred_pg: Any


class Regions(NamedTuple):
    """One value for all valid pixels, one for those whose truth lies inside the range of focus settings."""

    all: Any
    in_range: Any


def measure(prediction: jax.Array, truth: jax.Array, valid: jax.Array, in_range: jax.Array) -> Regions:
    """Sums and counts of each stack, with fields [B]. Pure; jit it.

    Args:
      prediction, truth: [B,H,W] float32, in one unit.
      valid: [B,H,W] bool, where truth holds.
      in_range: [B,H,W] bool, where truth lies within the focus settings (only counted where valid).
    """
    chex.assert_equal_shape((prediction, truth, valid, in_range))
    bumpy = bumps(prediction, truth, valid)
    return Regions(*(region_sums(prediction, truth, region, bumpy) for region in (valid, valid & in_range)))


def bumps(prediction: jax.Array, truth: jax.Array, valid: jax.Array) -> jax.Array:
    """The terms of bumpiness, [B,H,W]; arguments as for `measure`."""
    error = jnp.where(valid & jnp.isfinite(prediction), prediction - truth, 0.0)
    return jnp.minimum(_hessian_norm(error), BUMP_LIMIT)


def fit(prediction: jax.Array, truth: jax.Array, region: jax.Array) -> jax.Array:
    """a p + b, with a and b [B] that fit truth best over the region in least squares; all [B,H,W]."""
    finite = region & jnp.isfinite(prediction)
    n = jnp.maximum(finite.sum((1, 2)), 1).astype(jnp.float32)
    mean_p, p = _centre(jnp.where(finite, prediction, 0.0), finite, n)
    mean_g, g = _centre(jnp.where(finite, truth, 0.0), finite, n)
    spread = (p * p).sum((1, 2))
    slope = (p * g).sum((1, 2)) / jnp.where(spread > 0, spread, 1.0)
    return slope[:, None, None] * (prediction - mean_p[:, None, None]) + mean_g[:, None, None]


def region_sums(p: jax.Array, g: jax.Array, region: jax.Array, bumpy: jax.Array) -> Sums:
    """Sums and counts per stack over one region; all [B,H,W], `bumpy` as `bumps` gives it."""
    finite = region & jnp.isfinite(p)
    positive = finite & (g > 0)
    p_kept, g_kept = jnp.where(finite, p, 0.0), jnp.where(finite, g, 0.0)
    difference = p_kept - g_kept
    # ratios only where truth is positive; 1 elsewhere, where every term comes out as 0
    p_safe = jnp.where(positive, jnp.maximum(p_kept, SMALLEST), 1.0)
    g_safe = jnp.where(positive, g_kept, 1.0)
    ratio = jnp.maximum(p_safe / g_safe, g_safe / p_safe)
    comparable = positive & (p_kept > 0)
    difference_of_positive = jnp.where(positive, difference, 0.0)

    def count(x):
        return x.sum((1, 2), dtype=jnp.int32)

    n = jnp.maximum(count(finite), 1).astype(jnp.float32)

    def total(x):  # a plain float32 sum of equal numbers drifts, and how far depends on the size of the array
        return n * _centre(x, finite, n)[0]

    mean_p, p_centred = _centre(p_kept, finite, n)
    mean_g, g_centred = _centre(g_kept, finite, n)
    return Sums(
        pixels=count(region),
        nonfinite=count(region & ~jnp.isfinite(p)),
        clipped=count(finite & (p_kept < SMALLEST)),
        nonpositive=count(region & (g <= 0)),
        within_1=count(comparable & (ratio < 1.25)),
        within_2=count(comparable & (ratio < 1.25**2)),
        within_3=count(comparable & (ratio < 1.25**3)),
        bad=count(finite & (jnp.abs(difference) > BAD_PIXEL)),
        absolute=total(jnp.abs(difference)),
        squared=total(difference**2),
        log_squared=total((jnp.log(p_safe) - jnp.log(g_safe)) ** 2),
        relative=total(jnp.abs(difference_of_positive) / g_safe),
        squared_relative=total(difference_of_positive**2 / g_safe),
        bumps=total(jnp.where(finite, bumpy, 0.0)),
        mean_p=mean_p,
        mean_g=mean_g,
        centred_pp=total(p_centred**2),
        centred_gg=total(g_centred**2),
        centred_pg=total(p_centred * g_centred),
    )


def mean_over(x: jax.Array, region: jax.Array) -> jax.Array:
    """Mean [B] of x over the region, both [B,H,W]; 0 where that is empty."""
    return _centre(x, region, jnp.maximum(region.sum((1, 2)), 1).astype(x.dtype))[0]


def _centre(x, region, n):
    """Mean [B] over the region, and x minus it, [B,H,W]: 0 outside, and 0 throughout where x is constant."""
    mean = _row_by_row(jnp.where(region, x, 0.0)) / n
    # second pass: what rounding left in the mean (1e-7 of it) is a share of the spread that may not be small
    centred = jnp.where(region, x - mean[:, None, None], 0.0)
    rest = _row_by_row(centred) / n
    return mean + rest, jnp.where(region, centred - rest[:, None, None], 0.0)


def _row_by_row(x: jax.Array) -> jax.Array:
    """Sum [B] of [B,H,W] by rows, which rounds less; the barrier keeps XLA from making it one long sum."""
    return jax.lax.optimization_barrier(x.sum(2)).sum(1)


def _hessian_norm(x: jax.Array) -> jax.Array:
    """Frobenius norm of the Hessian of [B,H,W] by Scharr's derivative applied twice, as in the literature.

    The derivative is [1,0,-1] along the axis (twice the central difference) and [3,10,3]/16 across it;
    borders are reflected about the edge of the outer pixel.
    """

    def derivative(x, axis):
        height, width = x.shape[1:]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="symmetric")
        if axis == 1:
            slope = padded[:, 2:] - padded[:, :-2]
            return (3 * slope[:, :, :width] + 10 * slope[:, :, 1:-1] + 3 * slope[:, :, 2:]) / 16
        slope = padded[:, :, 2:] - padded[:, :, :-2]
        return (3 * slope[:, :height] + 10 * slope[:, 1:-1] + 3 * slope[:, 2:]) / 16

    return jnp.sqrt(sum(derivative(derivative(x, i), j) ** 2 for i in (1, 2) for j in (1, 2)))


# On the host --------------------------------------------------------------------------------------------


def concatenate(parts: list[Sums]) -> Sums:
    """The stacks of several batches together, on the host: every field [stacks] float64."""
    return Sums(*(np.concatenate(field).astype(np.float64) for field in zip(*parts, strict=True)))


def pool(sums: Sums) -> Sums:
    """All stacks as one, every field [1]. Means and centred sums are combined exactly (Chan et al. 1979)."""
    n = sums.pixels - sums.nonfinite
    share = n / max(n.sum(), 1.0)
    mean_p, mean_g = (share * sums.mean_p).sum(), (share * sums.mean_g).sum()
    dp, dg = sums.mean_p - mean_p, sums.mean_g - mean_g
    added = Sums(*(field.sum() for field in sums))._replace(
        mean_p=mean_p,
        mean_g=mean_g,
        centred_pp=(sums.centred_pp + n * dp**2).sum(),
        centred_gg=(sums.centred_gg + n * dg**2).sum(),
        centred_pg=(sums.centred_pg + n * dp * dg).sum(),
    )
    return Sums(*(np.asarray([field], np.float64) for field in added))


def finalize(sums: Sums, ratios: bool = True) -> list[dict[str, Any]]:
    """Metrics and pixel counts of each stack: None where truth leaves it undefined, NaN if p is not finite.

    Args:
      sums: of one region, every field [stacks], on the host.
      ratios: False: the unit has no ratio metrics; they are None, whatever the signs in this stack.
    """
    return [_finalize_one(Sums(*(float(x) for x in one)), ratios) for one in zip(*sums, strict=True)]


def _finalize_one(s: Sums, ratios: bool) -> dict[str, Any]:
    counts: dict[str, Any] = dict(zip(COUNTS, map(int, (s.pixels, s.clipped, s.nonfinite)), strict=True))
    if not s.pixels:
        return dict.fromkeys(METRICS, None) | counts
    n, variance = s.pixels, s.centred_pp * s.centred_gg
    values: dict[str, Any] = {
        "MAE": s.absolute / n,
        "MSE": s.squared / n,
        "RMS": math.sqrt(s.squared / n),
        "logRMS": math.sqrt(s.log_squared / n),
        "AbsRel": s.relative / n,
        "SqRel": s.squared_relative / n,
        "Acc_1": 100 * s.within_1 / n,
        "Acc_2": 100 * s.within_2 / n,
        "Acc_3": 100 * s.within_3 / n,
        "Corr": max(-1.0, min(1.0, s.centred_pg / math.sqrt(variance))) if variance > 0 else 0.0,
        "bumpiness": 100 * s.bumps / n,
        "BadPix": 100 * s.bad / n,
    }
    if s.nonfinite:
        values = dict.fromkeys(METRICS, math.nan)
    if s.nonpositive or not ratios:
        values |= dict.fromkeys(RATIO_METRICS, None)
    if s.centred_gg == 0 and not s.nonfinite:
        values["Corr"] = None
    return values | counts


def summarize(sums: Sums, ratios: bool = True) -> dict[str, Any]:
    """One region: the mean over stacks of each metric, pixel counts, and `pooled`.

    Args:
      sums: every field [stacks], on the host.
      ratios: as for `finalize`.

    Returns:
      {metric: mean over the stacks where truth defines it, None if there is none}, total pixel counts,
      `stacks` (that have a pixel in the region), and `pooled`: the metrics of all pixels together.
    """
    stacks = finalize(sums, ratios)
    out: dict[str, Any] = {}
    for metric in METRICS:
        values = [stack[metric] for stack in stacks if stack[metric] is not None]
        out[metric] = float(np.mean(values)) if values else None
    out |= {count: sum(stack[count] for stack in stacks) for count in COUNTS}
    out["stacks"] = sum(stack["valid_pixels"] > 0 for stack in stacks)
    pooled = finalize(pool(sums), ratios)[0]
    out["pooled"] = {metric: pooled[metric] for metric in METRICS}
    return out


_measure = jax.jit(measure)


def compute(
    prediction: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray | None = None,
    focus_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """All metrics of one depth map.

    Args:
      prediction, truth: [H,W], in one unit.
      mask: [H,W] bool, where truth holds; None: where it is finite and positive.
      focus_range: nearest and farthest focus setting, in the same unit; adds `in_range`, the metrics over the
        pixels whose truth lies between them.

    Returns:
      {metric: value}, with pixel counts; None where truth leaves a metric undefined.

    Raises:
      ValueError: shapes differ.
    """
    prediction, truth = np.asarray(prediction, np.float32), np.asarray(truth, np.float32)
    valid = np.isfinite(truth) & (truth > 0) if mask is None else np.asarray(mask, bool) & np.isfinite(truth)
    if not prediction.shape == truth.shape == valid.shape or truth.ndim != 2:
        shapes = f"prediction {prediction.shape}, truth {truth.shape}, mask {valid.shape}"
        raise ValueError(f"{shapes}: must all be the same [H,W]")
    low, high = sorted(focus_range) if focus_range is not None else (-np.inf, np.inf)
    inside = valid & (truth >= low) & (truth <= high)
    truth = np.where(valid, truth, 0)
    regions = jax.device_get(_measure(prediction[None], truth[None], valid[None], inside[None]))
    out: dict[str, Any] = finalize(regions.all)[0]
    if focus_range is not None:
        out["in_range"] = finalize(regions.in_range)[0]
    return out
