"""Metrics against an independent float64 reference written from the literature's definitions."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from scipy import ndimage

from dff_jax.evaluation import metrics

RATIOS = ("logRMS", "AbsRel", "SqRel", "Acc_1", "Acc_2", "Acc_3")


def reference(p, g, region, valid):
    """One stack, float64; regions as boolean maps. Undefined by truth: None; prediction not finite: nan."""
    p, g = p.astype(np.float64), g.astype(np.float64)
    if not region.any():
        return dict.fromkeys(metrics.METRICS)
    if not np.isfinite(p[region]).all():
        ratios = None if (g[region] <= 0).any() else math.nan
        return {name: ratios if name in RATIOS else math.nan for name in metrics.METRICS}
    error = np.where(valid & np.isfinite(p), p - g, 0.0)
    x, y, n = p[region], g[region], region.sum()
    out = {"MAE": np.abs(x - y).mean(), "MSE": ((x - y) ** 2).mean()}
    out["RMS"] = np.sqrt(out["MSE"])
    if (y > 0).all():
        c = np.maximum(x, 1e-6)
        out["logRMS"] = np.sqrt(((np.log(c) - np.log(y)) ** 2).mean())
        out["AbsRel"], out["SqRel"] = (np.abs(x - y) / y).mean(), ((x - y) ** 2 / y).mean()
        for k in (1, 2, 3):
            out[f"Acc_{k}"] = 100 * ((np.maximum(c / y, y / c) < 1.25**k) & (x > 0)).sum() / n
    else:
        out |= dict.fromkeys(RATIOS)
    out["Corr"] = None if np.ptp(y) == 0 else 0.0 if np.ptp(x) == 0 else np.corrcoef(x, y)[0, 1]

    def scharr(a, axis):
        a = ndimage.correlate1d(a, [-1, 0, 1], axis=axis, mode="reflect")
        return ndimage.correlate1d(a, [3 / 16, 10 / 16, 3 / 16], axis=1 - axis, mode="reflect")

    norm = np.sqrt(sum(scharr(scharr(error, i), j) ** 2 for i in (0, 1) for j in (0, 1)))
    out["bumpiness"] = 100 * np.minimum(norm, 0.05)[region].sum() / n
    out["BadPix"] = 100 * (np.abs(x - y) > 0.07).mean()
    return out


def assert_same(found, expected, rtol=2e-5):
    for name in metrics.METRICS:
        if expected[name] is None:
            assert found[name] is None, name
        else:
            np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=1e-6, err_msg=name)


def cases(rng):
    """Name -> (prediction, truth, mask), each [H,W]."""
    shape = (23, 31)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    truth = (10 + 2.5 * xx + 0.3 * yy + rng.normal(0, 0.5, shape)).astype(np.float32)
    close = (truth + rng.normal(0, 4, shape)).astype(np.float32)
    smooth = (truth + 0.001 * xx * yy / 10).astype(np.float32)  # small enough for bumpiness not to saturate
    mask = rng.random(shape) > 0.2
    zero, negative, broken, hidden = (close.copy() for _ in range(4))
    signed = truth.copy()
    zero[3:6, 4:9] = 0
    negative[3:9, 4:9] = -3
    signed[0, :5] = -1.5
    mask_signed = mask.copy()
    mask_signed[0, :5] = True
    mask[12, 12] = True
    broken[12, 12] = np.nan
    hidden[~mask] = np.nan
    constant = np.full(shape, 33.3, np.float32)
    return {
        "close": (close, truth, mask),
        "smooth": (smooth, truth, mask),
        "full": (close, truth, np.ones(shape, bool)),
        "zero": (zero, truth, mask),
        "negative": (negative, truth, mask),
        "negative truth": (close, signed, mask_signed),
        "NaN": (broken, truth, mask),
        "infinite": (np.where(broken != broken, np.inf, broken), truth, mask),
        "NaN where truth is missing": (hidden, truth, mask),
        "constant prediction": (constant, truth, mask),
        "constant truth": (close, constant, mask),
        "empty mask": (close, truth, np.zeros(shape, bool)),
    }


@pytest.fixture
def stacks():
    return cases(np.random.default_rng(0))


def measured(stacks, low, high):
    p, g, valid = (np.stack(x) for x in zip(*stacks, strict=True))
    inside = (g >= low) & (g <= high)
    g = np.where(valid, g, 0)  # as a Batch has it
    regions = jax.device_get(jax.jit(metrics.measure)(p, g, valid, inside))
    return metrics.Regions(*(metrics.concatenate([one]) for one in regions)), valid, valid & inside


def test_every_metric_agrees_with_the_reference_over_both_regions(stacks):
    regions, valid, inside = measured(stacks.values(), 20.0, 60.0)
    for region, where in ((regions.all, valid), (regions.in_range, inside)):
        for i, (name, found) in enumerate(zip(stacks, metrics.finalize(region), strict=True)):
            p, g, mask = stacks[name]
            expected = reference(p, g, where[i], mask)
            assert_same(found, expected)
            assert found["valid_pixels"] == where[i].sum(), name
            with np.errstate(invalid="ignore"):
                assert found["clipped_pixels"] == (p[where[i]] < 1e-6).sum(), name
            assert found["nonfinite_pixels"] == (~np.isfinite(p[where[i]])).sum(), name


def test_edge_cases_mean_what_the_documentation_says(stacks):
    regions, _, _ = measured(stacks.values(), 20.0, 60.0)
    found = dict(zip(stacks, metrics.finalize(regions.all), strict=True))
    assert math.isnan(found["NaN"]["MAE"]) and math.isnan(found["NaN"]["Acc_1"])
    assert found["NaN"]["nonfinite_pixels"] == found["infinite"]["nonfinite_pixels"] == 1
    assert found["NaN where truth is missing"]["MAE"] == found["close"]["MAE"]
    assert found["negative truth"]["AbsRel"] is None and found["negative truth"]["MAE"] > 0
    assert found["empty mask"]["MAE"] is None and found["empty mask"]["valid_pixels"] == 0
    assert found["constant prediction"]["Corr"] == 0 and found["constant truth"]["Corr"] is None
    assert 0 < found["smooth"]["bumpiness"] < 4.5  # 5 where every pixel saturates
    # zero and negative predictions are wrong, however wrong the ratio formula would call them
    _, g, mask = stacks["negative"]
    wrong = mask[3:9, 4:9].sum()
    assert found["negative"]["clipped_pixels"] == wrong > 0
    assert found["negative"]["Acc_3"] < 100 * (1 - wrong / mask.sum()) + 1e-9


def test_headline_is_the_mean_over_stacks_and_pooled_is_all_pixels_together(stacks):
    chosen = [stacks[name] for name in ("close", "full", "zero", "negative", "empty mask")]
    regions, valid, _ = measured(chosen, 20.0, 60.0)
    found = metrics.summarize(regions.all)
    each = [reference(p, g, v, v) for (p, g, _), v in zip(chosen[:4], valid, strict=False)]
    assert_same(found, {name: np.mean([one[name] for one in each]) for name in metrics.METRICS})
    assert found["stacks"] == 4 and found["valid_pixels"] == valid.sum()
    # one long row: every metric but bumpiness, which knows of neighbours, is that of a single stack
    p, g = (np.concatenate([c[i][c[2]] for c in chosen])[None] for i in (0, 1))
    together = reference(p, g, np.ones_like(p, bool), np.ones_like(p, bool))
    for name in set(metrics.METRICS) - {"bumpiness"}:
        np.testing.assert_allclose(found["pooled"][name], together[name], rtol=2e-5, err_msg=name)
    assert abs(found["pooled"]["MSE"] - found["MSE"]) > 1e-3  # stacks of unequal size


def test_undefined_stacks_leave_the_mean_and_failed_ones_spoil_it(stacks):
    close, signed, broken = (stacks[name] for name in ("close", "negative truth", "NaN"))
    found = metrics.summarize(measured([close, signed], 20, 60)[0].all)
    alone = metrics.summarize(measured([close], 20, 60)[0].all)
    assert found["AbsRel"] == alone["AbsRel"] and found["MAE"] != alone["MAE"]
    found = metrics.summarize(measured([close, broken], 20, 60)[0].all)
    assert all(math.isnan(found[name]) and math.isnan(found["pooled"][name]) for name in metrics.METRICS)
    assert found["nonfinite_pixels"] == 1


def test_other_stacks_of_a_batch_change_nothing(stacks):
    """A stack alone, and beside one that only fills up the batch: the same bits."""
    close, filler = stacks["close"], stacks["empty mask"]
    alone = measured([close], 20, 60)[0]
    padded = measured([close, filler], 20, 60)[0]
    for one, two in zip(jax.tree.leaves(alone), jax.tree.leaves(padded), strict=True):
        assert one[0] == two[0]
    assert metrics.summarize(alone.all) == metrics.summarize(padded.all)


def test_float32_sums_are_sound_at_full_size():
    """540 x 960, depth spread of a thousandth around a large mean: what one-pass variances cannot do."""
    rng = np.random.default_rng(1)
    truth = (1000 + rng.normal(0, 1, (540, 960))).astype(np.float32)
    prediction = (truth + rng.normal(0, 1, truth.shape)).astype(np.float32)
    every = np.ones(truth.shape, bool)
    assert_same(metrics.compute(prediction, truth), reference(prediction, truth, every, every), rtol=1e-5)


def test_a_constant_map_has_no_correlation_whatever_its_mean_rounds_to():
    rng = np.random.default_rng(2)
    for value in (0.1, 1 / 3, 7.7, 33.3, 61.9, 1e-3, 998.7):
        constant = np.full((23, 31), value, np.float32)
        varying = rng.uniform(1, 2, constant.shape).astype(np.float32)
        mask = rng.random(constant.shape) > 0.3
        assert metrics.compute(varying, constant, mask)["Corr"] is None
        assert metrics.compute(constant, varying, mask)["Corr"] == 0


def test_a_negative_prediction_is_wrong_even_where_clipping_brings_it_to_the_truth():
    truth = np.full((4, 5), 1.1e-6, np.float32)
    found = metrics.compute(np.where(np.arange(5) < 2, np.float32(-1e-6), truth), truth)
    assert found["Acc_1"] == pytest.approx(60) and found["clipped_pixels"] == 8


def test_compute_needs_no_mask_and_says_what_is_in_range(stacks):
    p, g, mask = stacks["close"]
    truth = np.where(mask, g, 0)
    truth[0, 0] = np.nan
    mask = mask & np.isfinite(truth)
    found = metrics.compute(p, truth, focus_range=(60.0, 20.0))
    assert_same(found, reference(p, g, mask, mask))
    inside = mask & (g >= 20) & (g <= 60)
    assert_same(found["in_range"], reference(p, g, inside, mask))
    assert_same(metrics.compute(p, g, mask), reference(p, g, mask, mask))
    with pytest.raises(ValueError, match="same"):
        metrics.compute(p[1:], g)


def test_perfect_prediction():
    g = np.linspace(1, 9, 48, dtype=np.float32).reshape(6, 8)
    found = metrics.compute(g, g)
    errors = set(metrics.METRICS) - metrics.LARGER_IS_BETTER
    assert all(found[name] == 0 for name in errors)
    assert all(found[f"Acc_{k}"] == 100 for k in (1, 2, 3)) and found["Corr"] == pytest.approx(1)
