"""The literature's masks and units against a plain NumPy reference, and how they come out of an evaluation."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from known_errors import VARIABLES, evaluate, fake_estimator, loaded_batch

from dff_jax.errors import InputError
from dff_jax.evaluation import conventions, metrics, tables
from dff_jax.evaluation.conventions import CONVENTIONS

RANGES = {
    "flyingthings": (10, 100), "middlebury": (10, 60), "hci": (-2.5, 2.5), "ddff12": (0.02, 0.28),
    "fod500": (0.1, 1.5),
}  # fmt: skip
NAMES = [name for name in CONVENTIONS if name != "default"]
RATIOS = ("logRMS", "AbsRel", "SqRel", "Acc_1", "Acc_2", "Acc_3")

# Masks and units of the literature, written out once more, by label: (mask of g, what becomes of (p, g), has ratios)
same = lambda p, g, m: (p, g)  # noqa: E731
MEANT = {
    "flyingthings": {
        "gt > 0": (lambda g: g > 0, same, True),
        "10 <= gt <= 100": (lambda g: (g >= 10) & (g <= 100), same, True),
    },
    "middlebury": {
        "gt > 0": (lambda g: g > 0, same, True),
        "10 <= gt <= 60": (lambda g: (g >= 10) & (g <= 60), same, True),
        "gt > 0, affine": (lambda g: g > 0, lambda p, g, m: (np.polyval(np.polyfit(p[m], g[m], 1), p), g), True),
        "gt > 0, mapped": (lambda g: g > 0, lambda p, g, m: (10 + (p - 10) * 50 / 90, g), True),
    },
    "hci": {
        "gt > -3.6": (lambda g: g > -3.6, same, False),
        "-2.5 <= gt <= 2.5": (lambda g: (g >= -2.5) & (g <= 2.5), same, False),
        "-2.5 < gt <= 2.5, unit q + 2.5": (
            lambda g: (g > -2.5) & (g <= 2.5), lambda p, g, m: (p + 2.5, g + 2.5), True,
        ),
    },
    "ddff12": {
        "gt > 0": (lambda g: g > 0, same, True),
        "0.0202 <= gt <= 0.2825": (lambda g: (g >= 0.0202) & (g <= 0.2825), same, True),
    },
    "fod500": {
        "gt > 0": (lambda g: g > 0, same, True),
        "0 < gt <= 2": (lambda g: (g > 0) & (g <= 2), same, True),
        "0.1 <= gt <= 1.5": (lambda g: (g >= 0.1) & (g <= 1.5), same, True),
        "gt > 0, clipped to [0, 1.5]": (
            lambda g: g > 0, lambda p, g, m: (np.clip(p, 0, 1.5), np.clip(g, 0, 1.5)), True,
        ),
    },
}  # fmt: skip


def reference(p, g, mask, ratios):
    """One stack in float64, as the literature defines it; what is negative, zero or missing as `metrics` says."""
    names = [name for name in metrics.METRICS if name != "bumpiness"]  # checked in test_metrics
    if not mask.any():
        return dict.fromkeys(names)
    p, g = p[mask], g[mask]
    if not np.isfinite(p).all():
        return {name: None if name in RATIOS and not ratios else math.nan for name in names}
    found = {"MAE": np.abs(p - g).mean(), "MSE": ((p - g) ** 2).mean(), "RMS": np.sqrt(((p - g) ** 2).mean())}
    found["BadPix"], found["Corr"] = 100 * (np.abs(p - g) > 0.07).mean(), np.corrcoef(p, g)[0, 1]
    c = np.maximum(p, 1e-6)
    if ratios:
        found["logRMS"] = np.sqrt(((np.log(c) - np.log(g)) ** 2).mean())
        found["AbsRel"], found["SqRel"] = (np.abs(p - g) / g).mean(), ((p - g) ** 2 / g).mean()
        for k in (1, 2, 3):
            found[f"Acc_{k}"] = 100 * ((np.maximum(c / g, g / c) < 1.25**k) & (p > 0)).mean()
    return dict.fromkeys(RATIOS) | found


def stacks(name):
    """Prediction, truth and mask [6,H,W]: plain, negative truth, answers <= 0, NaN, infinite, empty mask."""
    rng = np.random.default_rng(len(name))
    low, high = RANGES[name]
    span = high - low
    g = rng.uniform(low - 0.5 * span, high + 0.4 * span, (6, 17, 23)).astype(np.float32)
    g = g if name == "hci" else np.abs(g)
    p = (g + rng.normal(0, 0.1 * span, g.shape)).astype(np.float32)
    mask = rng.random(g.shape) > 0.2
    g[0, :, 0], g[0, :, 1], mask[0, :, :2] = low, high, True  # exactly at the bounds
    g[1, :4] *= -1
    p[2, :3], p[2, 3:6] = 0, -0.3 * span
    mask[3, 5, 5] = mask[4, 5, 5] = True
    g[3:5, 5, 5] = low + 0.5 * span
    p[3, 5, 5], p[4, 5, 5] = np.nan, np.inf
    mask[5] = False
    return p, np.where(mask, g, 0), mask


measure = jax.jit(conventions.measure, static_argnames="convention")


@functools.cache
def measured(name):
    p, g, mask = stacks(name)
    focus = np.tile(np.float32(RANGES[name]), (len(p), 1))
    variants = CONVENTIONS[name].variants
    sums = jax.device_get(measure(p, g, mask, focus, convention=CONVENTIONS[name]))
    found = zip(variants, sums, strict=False)
    return {v.label: metrics.finalize(metrics.concatenate([one]), v.ratios) for v, one in found}


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_agrees_with_the_reference(name):
    assert set(MEANT[name]) == set(measured(name))
    p, g, mask = stacks(name)
    for label, (inside, convert, ratios) in MEANT[name].items():
        for i, found in enumerate(measured(name)[label]):
            region = mask[i] & inside(g[i].astype(np.float64))
            with np.errstate(all="ignore"):
                ok = region & np.isfinite(p[i])
                a, b = (p[i].astype(np.float64), g[i].astype(np.float64))
                if ok.any():
                    finite = np.isfinite(a)
                    x, y = convert(np.where(finite, a, 0), b, ok)
                    a, b = np.where(finite, x, a), y
                expected = reference(a, b, region, ratios)
            assert found["valid_pixels"] == region.sum(), (label, i)
            for metric, value in expected.items():
                where = f"{label}, stack {i}, {metric}"
                if value is None:
                    assert found[metric] is None, where
                else:
                    np.testing.assert_allclose(found[metric], value, rtol=3e-4, atol=1e-4, err_msg=where)


def test_the_cases_are_what_they_should_be():
    """Each edge is really there: an empty mask, failed answers, wrong signs, bounds that are hit."""
    for name in NAMES:
        p, g, mask = stacks(name)
        assert not mask[5].any() and not np.isfinite(p[3:5][mask[3:5]]).all() and (p[2][mask[2]] <= 0).any()
        assert (g[1][mask[1]] < 0).any() and np.isin(np.float32(RANGES[name]), g[0, :, :2]).all()
        (first, *_) = measured(name).values()
        assert first[5]["MAE"] is None and math.isnan(first[3]["MAE"]) and math.isnan(first[4]["MAE"])


def test_clipping_does_not_hide_a_failure():
    found = measured("fod500")["gt > 0, clipped to [0, 1.5]"]
    assert math.isnan(found[4]["MAE"]) and found[4]["nonfinite_pixels"] == 1


def test_bounds_in_metres_survive_the_way_through_diopters():
    bounds = np.float32([0.1, 1.5, 2.0])
    back = 1 / (1 / bounds)
    nudged = np.float32([np.nextafter(x, d) for x, d in zip(back, (0, 9, 9), strict=True)])  # the wrong way
    one = CONVENTIONS["fod500"]
    for g, expected in ((back, (3, 3, 2, 3)), (nudged, (3, 3, 2, 3))):
        truth, mask = np.zeros((2, 6, 17, 23), np.float32)  # of the others' shape
        truth[0, 0, :3], mask[0, 0, :3] = g, 1
        sums = measure(truth, truth, mask > 0, np.tile(np.float32([0.1, 1.5]), (6, 1)), convention=one)
        assert tuple(int(s.pixels[0]) for s in sums) == expected


def test_signed_disparity_has_ratios_only_in_the_shifted_unit():
    estimator, _ = fake_estimator()
    batch = loaded_batch(["a", "b"])
    shift = 30.0  # the fake answers 100 * red - offset: a truth from -25 to 30 that is answered as well as before
    mask = batch.batch.mask
    moved = batch.batch._replace(
        focus=batch.batch.focus * 0.125 - 3.75, depth=np.where(mask, (batch.batch.depth - shift) / 10, 0).astype("f4"),
        frames=batch.batch.frames.copy(),
    )  # fmt: skip
    moved.frames[:, 0, ..., 0] = (np.float32(10) * batch.batch.frames[:, 0, ..., 0] - 3) / 100
    moved.depth[1] = np.where(mask[1], np.abs(moved.depth[1]) + 0.1, 0)  # a stack without a negative value
    data = [batch._replace(batch=moved)]
    found = evaluate(estimator, VARIABLES, data, baselines=False, convention=CONVENTIONS["hci"])
    for row in found.rows.values():
        assert row["MAE"] is not None
        assert all(row[m] is row["pooled"][m] is row["in_range"][m] is None for m in RATIOS)
    plain, in_range, shifted = found.literature.values()
    assert all(plain["final"][m] is None and in_range["final"][m] is None for m in RATIOS)
    assert all(shifted["final"][m] is not None for m in RATIOS)
    assert "q + 2.5" in list(found.literature)[2]
    truth, answer = moved.depth, 100 * moved.frames[:, 0, ..., 0] - 1
    inside = [m & (g > -2.5) & (g <= 2.5) for m, g in zip(mask, truth, strict=True)]
    relative = [np.mean(np.abs(p - g)[m] / (g[m] + 2.5)) for p, g, m in zip(answer, truth, inside, strict=True)]
    assert shifted["final"]["AbsRel"] == pytest.approx(np.mean(relative), rel=1e-3)
    regions = {one["region"] for one in found.per_stack}
    assert regions == {"all", "in_range", *found.literature}
    text = tables.summary(tables.report(found, label="x", dataset="y", unit="disparity", iterations=2))
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| -2.5 < gt <= 2.5, unit q + 2.5")]
    assert len(lines) == 1 and "-" not in [cell.strip() for cell in lines[0][3:-1]]
    assert "truth is signed in this unit" in text and "compare them with nothing" in text


def test_conventions_are_found_by_name_and_unit():
    assert conventions.find(None).name == "default" and not conventions.find("default", "metre").variants
    assert conventions.find("fod500", "metre").unit == "metre"
    with pytest.raises(InputError, match="choose one of default, flyingthings"):
        conventions.find("kitti")
    with pytest.raises(InputError, match="fod500 measures in metre, but the data are in disparity"):
        conventions.find("fod500", "disparity")


def test_datasets_name_conventions_that_exist_and_fit_their_unit():
    from dff_jax.data import datasets

    every = [dataset.facts for dataset in datasets.all_datasets().values()]
    seen = {conventions.find(facts.convention, facts.unit).name for facts in every}
    assert seen == set(CONVENTIONS)
