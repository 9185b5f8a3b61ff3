"""DWild: sizes and names of the published network, the numbers of an independent computation, training."""

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
from dff_jax.estimators.dwild import torch_key
from dff_jax.types import Batch

SMALL = dataclasses.replace(model_preset("dwild"), width=0.125)
RANGE = 90.0  # of the focus settings of `stack`


def published_keys():
    """Those of the published weights, counters left out."""
    focus = ["FM_measure.Focus_extraction.2", "FM_conv1.1", "FM_conv2.1"]
    pairs = ["FM_measure.Focus_extraction.0", "confidence.0", "dres0.0", "dres0.2", "deconv_1", "deconv_2", "deconv_3"]
    pairs += [f"{f}.Focus_Measure.conv.{i}" for f in focus for i in (0, 2)]
    pairs += [f"FM_conv{i}.0.{part}" for i in (1, 2) for part in ("stride_conv", "max_pooling.1")]
    pairs += [f"SPP_module.dres{n}_{i}.{j}" for n in (8, 16, 32) for i in (0, 1) for j in (0, 2)]
    single = ("conv2.0", "conv4.0", "conv8", "conv9", "combine1.0", "combine2.0", "redir1", "redir2", "redir3")
    pairs += [f"SPP_module.{name}" for name in single]
    glass = ("conv0.0", "conv1.0", "pre_conv.0", "conv2", "conv3.0", "conv4.0", "conv5", "conv6")
    pairs += [f"dres{i}.{name}" for i in (2, 3, 4) for name in glass]
    alone = [f"{f}.N_ch_attention.{i}" for f in focus for i in (0, 2)]
    alone += ["SPP_module.conv1", "SPP_module.conv3", "confidence.2", "classif1.0", "classif2.0", "classif3.0"]
    keys = {f"DFF_net.{pair}.0.weight" for pair in pairs} | {f"DFF_net.{name}.weight" for name in alone}
    leaves = ("weight", "bias", "running_mean", "running_var")
    return keys | {f"DFF_net.{pair}.1.{leaf}" for pair in pairs for leaf in leaves}


def state_of(variables):
    return published_numpy.published_state(flatten_dict(variables, sep="/"), torch_key)


@pytest.fixture(scope="module")
def small():
    estimator = estimators.build(SMALL)
    return estimator, filled(estimator), on_host(estimator.apply, static_argnames="train")


def test_parameters_and_their_published_names():
    estimator = estimators.build(model_preset("dwild"))
    shapes = flatten_dict(jax.eval_shape(estimator.init, jax.random.key(0), *stack(2, 32, 32)), sep="/")
    assert sum(math.prod(x.shape) for path, x in shapes.items() if path.startswith("params/")) == 4_038_832
    keys = [torch_key(path) for path in shapes]
    assert len(set(keys)) == len(keys)
    assert set(keys) == published_keys()


def test_inference_is_the_published_network(small):
    _, variables, apply = small
    frames, focus = stack(3, 40, 50, 2)
    prediction, stats = apply(variables, frames, focus)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    want = published_numpy.dwild(state_of(variables), frames, focus)
    np.testing.assert_allclose(prediction.scales[..., 0], want[0], atol=2e-6 * RANGE)
    np.testing.assert_array_equal(prediction.scales[..., 0], prediction.depth)

    assert focus.min() <= prediction.depth.min() and prediction.depth.max() <= focus.max()
    assert 0 <= prediction.confidence.min() and prediction.confidence.max() <= 1

    moved, _ = apply(variables, frames, 3 - 0.5 * focus)
    np.testing.assert_allclose(moved.depth, 3 - 0.5 * prediction.depth, atol=1e-4)


@pytest.mark.slow
def test_training_is_the_published_network(small):
    _, variables, apply = small
    given = stack(3, 40, 50, 2)
    prediction, stats = apply(variables, *given, train=True)
    state = state_of(variables)
    want = published_numpy.dwild(state, *given, train=True)
    np.testing.assert_allclose(np.moveaxis(prediction.scales, -1, 0), want, atol=2e-5 * RANGE)
    kept = state_of({"batch_stats": stats})
    assert kept.keys() == state_of({"batch_stats": variables["batch_stats"]}).keys()
    for key, x in kept.items():
        np.testing.assert_allclose(x, state[key], rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(("z", "height", "width"), [(1, 31, 17), (4, 33, 32)])
def test_any_number_of_frames_and_any_size(small, z, height, width):
    estimator, variables, _ = small
    frames, focus = stack(z, height, width)
    prediction, _ = jax.eval_shape(estimator.apply, variables, frames, focus)
    assert prediction.depth.shape == (1, height, width)
    assert prediction.all_in_focus.shape == (1, height, width, 3)


@pytest.mark.slow
def test_a_few_updates_lower_the_loss(small, key):
    estimator, *_ = small
    frames, focus = stack(3, 32, 32)
    variables = jax.device_get(estimator.init(key, frames, focus))
    truth = np.tile(np.linspace(15, 60, 32, dtype=np.float32), (1, 32, 1))
    batch = Batch(frames, focus, truth, np.ones((1, 32, 32), bool))
    loss = LossConfig(kind="multi_scale", scale_weights=(1.0, 0.7, 0.5, 0.3), penalty="mse")
    _, losses = trained(estimator, variables, SMALL, [batch] * 6, loss, 1e-3)
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
