"""AiFDNet: sizes and names of the published network, PyTorch's numbers, training."""

import dataclasses
import math

import jax
import numpy as np
import published_numpy
import pytest
from flax.traverse_util import flatten_dict
from networks import on_host, trained
from published import filled, stack

from dff_jax import estimators
from dff_jax.config import LossConfig, model_preset
from dff_jax.estimators.aifdnet import torch_key
from dff_jax.types import Batch

SMALL = dataclasses.replace(model_preset("aifdnet"), width=0.125)
PIXELS = np.s_[[0, 0, 1, 1], [3, 39, 20, 7], [5, 49, 0, 31]]
RANGE = 90.0  # of the focus settings of `stack`


def published_keys():
    """Those of the published weights, counters left out."""
    mixed = [f"Mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
    ups = ["up_5c", "up_5c4f", "up_5c4f3c", "up_5c4f3c2c"]
    units = ["conv3d_1a", "conv3d_2b", "conv3d_2c", "up_4f", "up_3c", "up_2c", "up_1a"]
    units += [f"{m}.branch{b}" for m in mixed for b in ("0", "1_0", "1_1", "2_0", "2_1", "3_1")]
    units += [f"{up}.trans3d.3" for up in ups]
    pairs = [(f"{u}.conv3d.0", f"{u}.conv3d.1") for u in units] + [(f"{up}.trans3d.0", f"{up}.trans3d.1") for up in ups]
    convolutions = [c for c, _ in pairs] + ["final_up", "out"]
    keys = {f"{name}.{leaf}" for name in convolutions for leaf in ("weight", "bias")}
    return keys | {f"{n}.{leaf}" for _, n in pairs for leaf in ("weight", "bias", "running_mean", "running_var")}


@pytest.fixture(scope="module")
def small():
    estimator = estimators.build(SMALL)
    return estimator, filled(estimator), on_host(estimator.apply, static_argnames="train")


def test_parameters_and_their_published_names():
    estimator = estimators.build(model_preset("aifdnet"))
    shapes = flatten_dict(jax.eval_shape(estimator.init, jax.random.key(0), *stack(2, 32, 32)), sep="/")
    assert sum(math.prod(x.shape) for path, x in shapes.items() if path.startswith("params/")) == 16_533_873
    keys = [torch_key(path) for path in shapes]
    assert len(set(keys)) == len(keys)
    assert set(keys) == published_keys()


def test_inference_gives_pytorchs_numbers(small):
    _, variables, apply = small
    frames, focus = stack(3, 40, 50, 2)
    prediction, stats = apply(variables, frames, focus)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    assert prediction.scales.shape == (2, 40, 50, 1)
    depth = np.asarray(prediction.depth)
    np.testing.assert_allclose(depth[PIXELS], [52.491649, 52.684002, 49.161633, 51.026816], atol=1e-4 * RANGE)
    np.testing.assert_allclose([depth.mean(), depth.std()], [50.084806, 2.257621], atol=1e-5 * RANGE)
    np.testing.assert_allclose(prediction.all_in_focus.mean((0, 1, 2)), [0.532936, 0.471801, 0.490374], atol=1e-5)

    assert focus.min() <= prediction.depth.min() and prediction.depth.max() <= focus.max()
    assert 0 <= prediction.confidence.min() and prediction.confidence.max() <= 1

    moved, _ = apply(variables, frames, 3 - 0.5 * focus)
    np.testing.assert_allclose(moved.depth, 3 - 0.5 * prediction.depth, atol=1e-4)


def test_softplus_attention_and_a_channel_of_the_frames_position(small):
    """Both variants of the published network, against an independent computation."""
    model = dataclasses.replace(SMALL, attention="softplus", frame_position=True)
    estimator = estimators.build(model)
    variables, given = filled(estimator), stack(3, 40, 50, 2)
    prediction, _ = on_host(estimator.apply)(variables, *given)
    state = published_numpy.published_state(flatten_dict(variables, sep="/"), torch_key)
    want = published_numpy.aifdnet(state, *given, normalize_attention=True)
    np.testing.assert_allclose(prediction.depth, want, atol=2e-6 * RANGE)
    plain = published_numpy.aifdnet(state, *given)
    assert np.abs(plain - want).max() > 0.01 * RANGE

    _, variables, apply = small  # the plain network by the same computation
    state = published_numpy.published_state(flatten_dict(variables, sep="/"), torch_key)
    want = published_numpy.aifdnet(state, *given)
    np.testing.assert_allclose(apply(variables, *given)[0].depth, want, atol=2e-6 * RANGE)

    full = estimators.build(dataclasses.replace(model, width=1.0))
    shapes = jax.eval_shape(full.init, jax.random.key(0), *stack(2, 32, 32))["params"]
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == 16_555_825


@pytest.mark.slow
def test_training_gives_pytorchs_numbers(small):
    _, variables, apply = small
    prediction, stats = apply(variables, *stack(3, 40, 50, 2), train=True)
    depths = np.moveaxis(prediction.scales, -1, 0)
    expected = [[55.701524, 47.010114, 40.771957, 56.383675]]
    np.testing.assert_allclose([depth[PIXELS] for depth in depths], expected, atol=1e-4 * RANGE)
    moments = [[51.157923, 11.353398]]
    np.testing.assert_allclose([[d.mean(), d.std()] for d in depths], moments, atol=1e-5 * RANGE)
    kept = flatten_dict(stats, sep="/")
    assert kept.keys() == flatten_dict(variables["batch_stats"], sep="/").keys()
    for leaf, norm in (("mean", 5.0375244), ("var", 31.162116)):
        found = math.sqrt(sum(np.sum(x**2, dtype=float) for path, x in kept.items() if path.endswith(leaf)))
        assert found == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(("z", "height", "width"), [(1, 31, 17), (4, 33, 32)])
def test_any_number_of_frames_and_any_size(small, z, height, width):
    estimator, variables, _ = small
    frames, focus = stack(z, height, width)
    prediction, _ = jax.eval_shape(estimator.apply, variables, frames, focus)
    assert prediction.depth.shape == (1, height, width)
    assert prediction.all_in_focus.shape == (1, height, width, 3)


@pytest.mark.slow
def test_a_few_updates_lower_the_loss(small):
    estimator, variables, _ = small
    frames, focus = stack(3, 32, 32)
    truth = np.tile(np.linspace(15, 60, 32, dtype=np.float32), (1, 32, 1))
    batch = Batch(frames, focus, truth, np.ones((1, 32, 32), bool))
    loss = LossConfig(kind="multi_scale", scale_weights=(1.0,), penalty="l1")
    _, losses = trained(estimator, variables, SMALL, [batch] * 6, loss, 1e-3)
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
