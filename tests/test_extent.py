"""Padded pictures and the extent that tells of it: the same answers as alone, for every method."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import config, estimators, extent
from dff_jax.config import Proximal
from dff_jax.network.pyramid import pyramid_level
from dff_jax.types import Prediction

Z, FULL = 3, (96, 96)
FOCUS = jnp.stack([jnp.linspace(10.0, 40.0, Z), jnp.linspace(5.0, 35.0, Z)])
RANGE = 30.0


def narrow(preset, **fields):
    return dataclasses.replace(config.model_preset(preset), width=0.1, **fields)


def small(**fields):
    small = {"encoder": "tiny", "width": 0.1, "head_width": 0.1, "pooling": "none", "num_planes": 3}
    return Proximal(**small | {"num_iterations": 1, "prox_levels": 1} | fields)


SLOW = {
    "physical": narrow("physical", head_width=0.1, num_planes=3, num_iterations=1),
    "paper": narrow("paper", head_width=0.1, num_iterations=1),
    "dfv_fv": narrow("dfv_fv"),
    "dfv_diff": narrow("dfv_diff"),
    "aifdnet": narrow("aifdnet"),
    "dwild": narrow("dwild"),
    "groups": small(norm="group"),
    "recurrent": small(prox="gru", step_size="per_pixel", regularization="per_pixel"),
    "residual_cnn": small(prox="residual_cnn", step_size="constant", step_size_init=3.0),
    "edge_tv": small(prox="edge_tv"),
    "guided_filter": small(prox="guided_filter", scheme="fista"),
    "primal_dual": small(prox="tv", scheme="chambolle_pock"),
    "tikhonov": small(prox="tikhonov"),
    "cosines": small(prox="tikhonov", step_size="constant"),
    "measured": small(measured_candidates=True, refiner_inputs="with_settings"),
    "sharpened": small(sharpen="weighted_median"),
    "per_scale": small(candidate_source="per_scale", refiner_inputs="depth_volume_candidates"),
}
NETWORKS = {
    "tiny": narrow("tiny", head_width=0.1, num_planes=3, num_iterations=1),
    "pyramid": small(pooling="pyramid", measure_prior="none", refiner_steps=0, guide="none"),
}


@partial(jax.jit, static_argnames="estimator")
def predict(estimator, variables, frames, focus, size) -> Prediction:
    with extent.within(size, full=frames.shape[2:4]):
        return estimator.apply(variables, frames, focus)[0]


def pictures(size, seed=0, dtype=np.float32):
    """Two stacks of smooth noise, each frame of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((2, Z, size[0] // 3, size[1] // 3, 3), np.float32)
    return np.asarray(jnp.clip(jax.image.resize(coarse, (2, Z, *size, 3), "cubic"), 0, 1), dtype)


def both(estimator, variables, frames, outside, focus=FOCUS):
    """The answer for frames alone, and for frames surrounded by `outside`, cropped."""
    size = frames.shape[2:4]
    padded = np.full((2, Z, *FULL, 3), outside, frames.dtype)
    padded[:, :, : size[0], : size[1]] = frames
    alone = predict(estimator, variables, frames, focus, None)
    found = predict(estimator, variables, padded, focus, tuple(map(np.int32, size)))
    maps = lambda x: x[..., : size[0], : size[1]]  # noqa: E731
    with_channels = lambda x: x[:, : size[0], : size[1]]  # noqa: E731
    h = found.history
    h = h._replace(
        expected=maps(h.expected), candidates=with_channels(h.candidates), weights=with_channels(h.weights),
        iterates=maps(h.iterates), refined=maps(h.refined),
    )  # fmt: skip
    if h.trace is not None:
        h = h._replace(trace=h.trace._replace(depth=maps(h.trace.depth), disagreement=maps(h.trace.disagreement)))
    found = Prediction(
        maps(found.depth), maps(found.confidence), maps(found.disagreement), with_channels(found.all_in_focus), h
    )
    return alone, found


def assert_same(alone, found, share):
    """All that is predicted, within a share of the focus range (depths) or of the largest value (all else)."""
    assert jax.tree.structure(alone) == jax.tree.structure(found)
    for (path, a), b in zip(jax.tree.leaves_with_path(alone), jax.tree.leaves(found), strict=True):
        if a.size == 0:
            continue
        name = jax.tree_util.keystr(path)
        in_depth = any(part in name for part in ("depth", "expected", "candidates", "iterates", "refined"))
        scale = RANGE if in_depth and "trace" not in name else max(float(jnp.abs(a).max()), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=share * scale, err_msg=name)


def check_network(model, sizes):
    estimator = estimators.build(model)
    assert estimator.not_within is None
    rng = np.random.default_rng(0)
    shapes = jnp.zeros((1, Z, 64, 64, 3)), FOCUS[:1]
    like = jax.eval_shape(estimator.init, jax.random.key(0), *shapes)

    def value(path, x):  # compiling the real initialisation would take longer than all else here
        spread = 0.3 / np.sqrt(max(1, np.prod(x.shape[:-1]) / 8)) if x.ndim > 1 else 0.1
        drawn = spread * rng.standard_normal(x.shape) + ("scale" in path or path.endswith("measure_scale']"))
        return (np.abs(drawn) + 0.5 if "'var'" in path else drawn).astype(np.float32)

    variables = jax.tree.map_with_path(lambda path, x: value(jax.tree_util.keystr(path), x), like)
    for size in sizes:
        alone, found = both(estimator, variables, pictures(size), np.nan)
        assert jnp.std(alone.depth) > 1e-4 * RANGE
        if not model.measured_candidates:
            assert_same(alone, found, 1e-5)
            continue
        # Measured peaks are found by logarithms, which magnify rounding where a curve is flat. Energies are left out:
        # their sums include the padding to whole strides, where what is measured depends on what lies there.
        bare = [x._replace(history=x.history._replace(trace=None)) for x in (alone, found)]
        assert_same(*bare, 1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_for_the_picture_alone(name):
    check_network(NETWORKS[name], [(37, 66)])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_other_network_and_prox_does(name):
    check_network(SLOW[name], [(37, 66), (41, 33)])


@pytest.mark.parametrize("method", config.UNTRAINED)
def test_a_method_without_weights_answers_as_for_the_picture_alone(method):
    """In double precision, as a peak is found by logarithms, which magnify rounding where a curve is flat."""
    estimator = estimators.build(config.model_preset(method))
    assert estimator.not_within is None
    with jax.enable_x64(True):
        focus = jnp.asarray(np.asarray(FOCUS), jnp.float64)
        frames = pictures((37, 66), dtype=np.float64)
        alone, found = both(estimator, {}, frames, np.nan, focus)
        assert alone.depth.dtype == jnp.float64 and jnp.std(alone.depth) > 0.1 * RANGE
        assert_same(alone, found, 1e-9)


@pytest.mark.parametrize("lengths", [(2, 2), (3, 7), (6, 5), (2, 4, 3), (5, 6, 7), (4, 13, 5)])
def test_pyramid_pooling_within_an_extent(lengths):
    """All bins of all levels, also where they do not divide the picture."""
    full = (16, 14)
    x = np.random.default_rng(0).random((2, *lengths, 3), np.float32)
    padded = np.full((2, *lengths[:-2], *full, 3), np.nan, np.float32)
    padded[..., : lengths[-2], : lengths[-1], :] = x
    for level in range(4):
        alone = pyramid_level(jnp.asarray(x), level, lambda y: y**2)
        with extent.within(tuple(map(np.int32, lengths[-2:])), full):
            found = pyramid_level(jnp.asarray(padded), level, lambda y: y**2)
        np.testing.assert_allclose(found[..., : lengths[-2], : lengths[-1], :], alone, atol=1e-6)


def test_what_is_not_exact_says_so():
    assert "not of this package" in estimators.build(small(prox="test_extent:own_prox")).not_within
    assert "norm=group" in estimators.build(small(norm="group", pooling="pyramid")).not_within
    assert "prox_levels=6" in estimators.build(small(prox_levels=6)).not_within


def own_prox(params, z, problem, eta):
    return z - z.mean()


def test_fills():
    x = jnp.arange(24.0).reshape(4, 6)
    assert extent.fill(x) is x and extent.edge(x) is x and extent.reflect(x, 1) is x
    with extent.within((np.int32(3), np.int32(4)), full=(4, 6)):
        alone = np.asarray(x)[:3, :4]
        np.testing.assert_array_equal(extent.fill(x, -1.0), np.pad(alone, ((0, 1), (0, 2)), constant_values=-1))
        np.testing.assert_array_equal(extent.edge(x), np.pad(alone, ((0, 1), (0, 2)), mode="edge"))
        np.testing.assert_array_equal(extent.reflect(x, 2)[:, :6], np.pad(alone, ((0, 1), (0, 2)), mode="reflect"))
        assert extent.mean(x) == alone.mean()
        np.testing.assert_array_equal(extent.fill(x, 0, less=(1, 0))[2:], 0)
        assert extent.inside(jnp.zeros((2, 3))).tolist() == [[True, True, False], [True, True, False]]  # at stride 2
        with pytest.raises(ValueError, match="no whole stride"):
            extent.count(4, side=1)
