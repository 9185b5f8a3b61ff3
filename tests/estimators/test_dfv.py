"""DFV: its numbers are those of the published architecture, for any stack, and it learns."""

import dataclasses
import functools
import math

import jax
import numpy as np
import published_numpy
import pytest
from flax.traverse_util import flatten_dict
from networks import on_host, trained
from torch_layouts import dfv_shapes, wave_stacks, waves

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.estimators.dfv import torch_key
from dff_jax.estimators.torch_weights import network_shapes, place
from dff_jax.network.focus_volume import pool_bins
from dff_jax.network.layers import DEVICE_AXIS, TorchBatchNorm
from dff_jax.types import Batch

# Of `waves` at width 0.125, by a PyTorch implementation of the published architecture in double precision:
# depths at three pixels of `wave_stacks(1, 3, 60, 75)`, and their mean
INFERENCE = {
    "fv": ([47.4805, 50.6240, 50.0955], 50.9516),
    "diff": ([48.4152, 48.3651, 49.8279], 51.3189),
}
# four scales of `wave_stacks(2, 3, 64, 64)` when training: one pixel of the second stack, and means
TRAINING = {
    "fv": ([48.8639, 43.5143, 54.3603, 50.8138], [51.0078, 51.0275, 49.1328, 50.4147]),
    "diff": ([52.5259, 54.3953, 46.5797, 50.8331], [50.7984, 51.0390, 49.7770, 49.6987]),
}
# running statistics after that step, the first three channels
RUNNING = {
    "fv": {
        "feature_extraction.encoder.bn1.running_mean": [-0.078719, 0.167434, 0.034928],
        "feature_extraction.encoder.bn1.running_var": [1.134838, 0.491407, 0.778659],
        "decoder5.pool_convs.0.1.running_mean": [-0.182519, 0.118058, 0.075793],
        "decoder5.pool_convs.0.1.running_var": [0.619879, 1.285893, 1.082803],
        "decoder3.classify.0.1.running_var": [0.771284, 1.010126, 1.555798],
    },
    "diff": {
        "feature_extraction.encoder.bn1.running_var": [1.134838, 0.491407, 0.778659],
        "decoder5.pool_convs.0.1.running_var": [0.620729, 1.285313, 1.082975],
        "decoder3.classify.0.1.running_var": [0.770712, 0.983297, 1.558714],
    },
}


def narrow(volume="fv", **fields):
    return dataclasses.replace(configs.dfv_fv(), volume=volume, width=0.125, **fields)


@pytest.fixture(scope="module")
def variables():
    return place("waves", waves(dfv_shapes(0.125)), network_shapes(narrow()), "dfv")[0]


@functools.cache
def compiled(volume="fv", **fields):
    return on_host(estimators.build(narrow(volume, **fields)).apply)


@pytest.mark.parametrize("volume", ["fv", "diff"])
def test_numbers_at_inference(variables, volume):
    frames, focus = wave_stacks(1, 3, 60, 75)
    found, stats = compiled(volume)(variables, frames, focus)
    pixels, mean = INFERENCE[volume]
    np.testing.assert_allclose(found.depth[0, [0, 17, 59], [0, 40, 74]], pixels, atol=2e-3)
    np.testing.assert_allclose(found.depth.mean(), mean, atol=2e-3)
    assert found.scales.shape == (1, 60, 75, 1)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, 4), (0, 21), (0, 0)), mode="reflect")
    want = published_numpy.dfv(waves(dfv_shapes(0.125)), padded, focus, volume == "diff")[0]
    np.testing.assert_allclose(found.depth, want[:, :60, :75], atol=2e-3)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


@pytest.mark.parametrize("volume", ["fv", "diff"])
def test_numbers_in_training(variables, volume):
    frames, focus = wave_stacks(2, 3, 64, 64)
    apply = estimators.build(narrow(volume)).apply
    found, stats = on_host(lambda *given: apply(*given, train=True))(variables, frames, focus)
    depths = found.scales
    # BatchNorm over two values amplifies: frames changed by 1e-7 of themselves move a pixel by 0.1
    np.testing.assert_allclose(depths[1, 33, 20], TRAINING[volume][0], atol=0.2)
    np.testing.assert_allclose(depths.mean((0, 1, 2)), TRAINING[volume][1], atol=2e-3)
    np.testing.assert_array_equal(found.depth, depths[..., 0])
    by_key = {torch_key(f"batch_stats/{path}"): x for path, x in flatten_dict(stats, sep="/").items()}
    for key, values in RUNNING[volume].items():
        np.testing.assert_allclose(by_key[key][:3], values, rtol=1e-4, atol=5e-5)


def test_size_of_the_published_network():
    shapes = network_shapes(configs.dfv_fv())
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"])) == 18_988_484
    assert jax.tree.structure(shapes) == jax.tree.structure(network_shapes(configs.dfv_diff()))


def test_pool_bins_are_those_of_linspace():
    for most in range(2, 200):
        assert pool_bins(most, 200) == [int(x) for x in np.linspace(1, most // 2, 4)]


def test_any_stack(variables):
    apply = compiled("diff")
    for z, h, w in ((2, 64, 64), (5, 30, 97)):  # the second too low to be reflected
        frames, focus = wave_stacks(1, z, h, w)
        found, _ = apply(variables, frames, focus)
        assert found.depth.shape == (1, h, w) and found.all_in_focus.shape == (1, h, w, 3)
        assert focus.min() <= found.depth.min() and found.depth.max() <= focus.max()
        assert np.isfinite(found.confidence).all() and found.confidence.min() > 0


def test_near_first(variables):
    """Descending frames: as ascending ones turned around by hand, and the answer is in q as ever."""
    frames, focus = wave_stacks(1, 3, 60, 75)
    apply = compiled()
    turned, _ = compiled(frame_order="descending")(variables, frames, focus)
    plain, _ = apply(variables, frames[:, ::-1], focus[:, ::-1])
    np.testing.assert_allclose(turned.depth, plain.depth, atol=1e-3)
    np.testing.assert_allclose(turned.scales[..., 0], plain.depth, atol=1e-3)
    np.testing.assert_allclose(turned.all_in_focus, plain.all_in_focus, atol=1e-5)
    assert 0 < turned.confidence.min() and turned.confidence.max() <= 1
    ascending, _ = apply(variables, frames, focus)
    assert np.abs(turned.depth - ascending.depth).max() > 0.1


@pytest.mark.slow
def test_initial_weights():
    """Conv3d: N(0, 2/(k^3 cout)); 2-D convolutions: U(+-1/sqrt(fan_in)); encoder: N(0, 2/fan_out)."""

    def some(key):  # of hundreds of tensors, which take long to compile
        params = estimators.build(narrow()).init(key, *wave_stacks(1, 2, 64, 64))["params"]
        return [
            params["decoder4"]["Residual3d_0"]["Conv3d_0"]["kernel"],
            params["decoder3"]["Residual3d_0"]["Conv3d_2"]["kernel"],
            params["top_down"]["merge3"]["Conv_0"]["Conv_0"]["kernel"],
            params["encoder"]["layer3_0"]["conv1"]["Conv_0"]["kernel"],
            params["decoder1"]["Conv3d_1"]["bias"],
        ]

    conv3d, skip, merge, encoder, bias = on_host(some)(jax.random.key(0))
    np.testing.assert_allclose(conv3d.std(), math.sqrt(2 / (27 * 16)), rtol=0.05)
    np.testing.assert_allclose(np.abs(skip).max(), 1 / math.sqrt(16), rtol=0.05)
    np.testing.assert_allclose(np.abs(merge).max(), 1 / math.sqrt(9 * 64), rtol=0.02)
    np.testing.assert_allclose(encoder.std(), math.sqrt(2 / (9 * 32)), rtol=0.05)
    assert not bias.any()


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 6)).astype(np.float32)
    norm = TorchBatchNorm()
    variables = norm.init(jax.random.key(0), x, False)
    one, stats = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(stats["batch_stats"]["var"], 0.9 + 0.1 * x.reshape(-1, 6).var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(stats["batch_stats"]["mean"], 0.1 * x.mean((0, 1)), rtol=1e-5)
    apply = jax.pmap(lambda x: norm.apply(variables, x, True, mutable=["batch_stats"]), DEVICE_AXIS)
    two, stats_two = apply(x.reshape(2, 2, 5, 6))
    np.testing.assert_allclose(two.reshape(x.shape), one, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5), stats_two, stats)


@pytest.mark.slow
def test_learns(variables):
    """The published loss, on one small batch: down within a few steps."""
    model = narrow("diff")
    loss = configs.LossConfig(
        kind="multi_scale", scale_weights=(8 / 15, 4 / 15, 2 / 15, 1 / 15), penalty="smooth_l1", region="in_range"
    )
    frames, focus = wave_stacks(2, 3, 64, 64)
    depth = np.tile(np.linspace(5, 60, 64, dtype=np.float32), (2, 64, 1))
    batch = Batch(frames, focus, depth, np.ones(depth.shape, bool))
    _, losses = trained(estimators.build(model), variables, model, [batch] * 8, loss, 3e-3)
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
