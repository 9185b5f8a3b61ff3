"""Layers against second implementations, and the estimators against what method.md says follows from the equations."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dff_jax import config as cfg
from dff_jax import estimators
from dff_jax.errors import ConfigError
from dff_jax.network.candidates import normalize_weights
from dff_jax.network.focus_volume import measure_logits, pool_bins, resample_planes
from dff_jax.network.prox import Gate
from dff_jax.ops.convolutions import conv3d_by_slices

TINY = dataclasses.replace(cfg.tiny(), width=0.13, head_width=0.13, prox_levels=1)


def stack(key, z=5, h=64, w=64, b=1):
    frames = jax.random.uniform(key, (b, z, h, w, 3))
    focus = jnp.broadcast_to(jnp.linspace(10.0, 100.0, z), (b, z))
    return frames, focus


def perturbed(variables, key, scale=0.05):
    """Weights away from initialisation, where zero-initialised layers hide mistakes."""
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(key, len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, moved)}


@pytest.fixture(scope="module")
def tiny():
    estimator = estimators.build(TINY)
    frames, focus = stack(jax.random.key(0))
    variables = estimator.init(jax.random.key(1), frames, focus)
    return estimator, variables, jax.jit(estimator.apply, static_argnames=("train", "num_iterations"))


@pytest.mark.parametrize("kernel", [1, 3])
def test_conv3d_by_slices_equals_lax(key, kernel):
    x = jax.random.normal(key, (2, 4, 6, 5, 3))
    weights = jax.random.normal(key, (kernel, kernel, kernel, 3, 7))
    expected = lax.conv_general_dilated(x, weights, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    np.testing.assert_allclose(conv3d_by_slices(x, weights), expected, atol=1e-4)


@pytest.mark.parametrize(
    "lengths, bins",
    [
        ((8, 8), [1, 2, 3, 4]), ((7, 7), [1, 1, 2, 3]), ((12, 18), [1, 2, 4, 6]), ((17, 30), [1, 3, 5, 8]),
        ((4, 4), [1, 1, 1, 2]), ((2, 2), [1, 1, 1, 1]), ((10, 12, 18), [1, 2, 3, 5]),
    ],
)  # fmt: skip
def test_pool_bins_are_dfvs(lengths, bins):
    assert pool_bins(*lengths) == bins


def test_resampling_to_as_many_even_planes_is_the_identity(key):
    volume = jax.random.normal(key, (2, 15, 4, 5))
    t = jnp.broadcast_to(jnp.linspace(0, 1, 15), (2, 15))
    np.testing.assert_allclose(resample_planes(volume, t, 15), jnp.moveaxis(volume, 1, -1), atol=1e-5)


def test_resampling_is_linear_interpolation(key):
    volume = jax.random.normal(key, (1, 4, 2, 3))
    t = jnp.array([[0.0, 0.1, 0.7, 1.0]])
    planes = np.linspace(0, 1, 9)
    expected = np.stack([np.interp(planes, t[0], volume[0, :, i, j]) for i in range(2) for j in range(3)])
    np.testing.assert_allclose(resample_planes(volume, t, 9)[0].reshape(6, 9), expected, atol=1e-5)


def test_measure_logits_peak_at_the_sharp_frame_and_tie_without_texture(key):
    sharp = jax.random.uniform(key, (40, 40, 3))
    blurred = sharp.mean((0, 1), keepdims=True) + 0.1 * (sharp - sharp.mean((0, 1), keepdims=True))
    frames = jnp.stack([blurred, sharp, blurred])[None]
    logits = measure_logits(frames)
    assert (logits[0, 1] > logits[0, 0] + 1).all()
    np.testing.assert_allclose(logits.sum(1), 0.0, atol=1e-4)
    np.testing.assert_allclose(measure_logits(jnp.full((1, 3, 30, 30, 3), 0.5)), 0.0, atol=1e-5)


def test_weight_norms(key):
    logits = jax.random.normal(key, (4, 3))
    softmax = normalize_weights(logits, "softmax")
    np.testing.assert_allclose(softmax.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(normalize_weights(logits, "softmax_squared"), softmax**2, rtol=1e-6)
    np.testing.assert_allclose(normalize_weights(logits, "sigmoid"), 1 / (1 + jnp.exp(-logits)), rtol=1e-5)
    np.testing.assert_allclose(normalize_weights(logits, "softplus"), jnp.log1p(jnp.exp(logits)), rtol=1e-5)


def test_gate_is_its_formula(key):
    e, u = jax.random.normal(key, (1, 4, 4, 6)), jax.random.normal(key, (1, 4, 4, 8))
    variables = Gate().init(key, e, u)
    p = variables["params"]

    def dense(name, x):
        conv = p[name]["Conv_0"]
        return x @ conv["kernel"][0, 0] + conv["bias"].reshape(1, 1, 1, -1)

    assert p["skip"]["Conv_0"]["kernel"].shape[-1] == 3  # C_e / 2
    expected = jax.nn.sigmoid(dense("project", nn.relu(dense("skip", e) + dense("up", u)))) * e
    np.testing.assert_allclose(Gate().apply(variables, e, u), expected, atol=1e-5)


def test_shapes_for_odd_sizes_and_any_number_of_frames(tiny):
    estimator, variables, apply = tiny
    frames, focus = stack(jax.random.key(2), z=3, h=45, w=77, b=2)
    prediction, _ = apply(variables, frames, focus)
    N, K, T = TINY.num_candidates, TINY.num_iterations, TINY.refiner_steps
    assert prediction.depth.shape == prediction.confidence.shape == prediction.disagreement.shape == (2, 45, 77)
    assert prediction.all_in_focus.shape == (2, 45, 77, 3)
    h = prediction.history
    assert h.candidates.shape == h.weights.shape == (2, 45, 77, N)
    assert h.iterates.shape == (2, K + 1, 45, 77) and h.refined.shape == (2, T, 45, 77)
    assert jnp.isfinite(prediction.depth).all()
    assert prediction.confidence.min() >= 0 and prediction.confidence.max() <= 1
    assert prediction.disagreement.min() >= 0


def test_untrained_physical_network_returns_d0(tiny):
    """Residual prox and refiner start at zero (method.md 3.8), so K may be anything."""
    _, variables, apply = tiny
    frames, focus = stack(jax.random.key(2))
    for K in (0, 3, 6):
        prediction, _ = apply(variables, frames, focus, num_iterations=K)
        np.testing.assert_allclose(prediction.depth, prediction.history.iterates[:, 0], atol=2e-4)


def test_k_zero_is_d0_bit_for_bit_and_three_iterations_are_a_prefix_of_five():
    config = dataclasses.replace(TINY, refiner_steps=0)
    estimator = estimators.build(config)
    frames, focus = stack(jax.random.key(2))
    variables = perturbed(estimator.init(jax.random.key(1), frames, focus), jax.random.key(5))
    apply = jax.jit(estimator.apply, static_argnames=("train", "num_iterations"))
    zero, _ = apply(variables, frames, focus, num_iterations=0)
    np.testing.assert_array_equal(zero.depth, zero.history.iterates[:, 0])
    h = zero.history
    expected = (h.weights * h.candidates).sum(-1) / h.weights.sum(-1)
    np.testing.assert_allclose(zero.depth, expected, rtol=1e-4)
    three, _ = apply(variables, frames, focus, num_iterations=3)
    five, _ = apply(variables, frames, focus, num_iterations=5)
    np.testing.assert_allclose(three.history.iterates, five.history.iterates[:, :4], atol=1e-3)
    assert jnp.abs(five.depth - zero.depth).max() > 1e-2  # the prox does something


def test_affine_change_of_the_focus_axis_changes_the_output_by_the_same_map(tiny):
    _, variables, apply = tiny
    variables = perturbed(variables, jax.random.key(5))
    frames, focus = stack(jax.random.key(2))
    one, _ = apply(variables, frames, focus)
    two, _ = apply(variables, frames, 3.0 * focus - 7.0)
    np.testing.assert_allclose(two.depth, 3.0 * one.depth - 7.0, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(two.confidence, one.confidence, atol=1e-4)
    np.testing.assert_allclose(two.disagreement, 9.0 * one.disagreement, rtol=1e-2, atol=1e-4)


def test_odd_sizes_are_padded_and_cropped_back(tiny):
    """Rows below the picture are a continuation of its edge: written out by hand they change nothing."""
    _, variables, apply = tiny
    variables = perturbed(variables, jax.random.key(5))
    frames, focus = stack(jax.random.key(2), h=64, w=50)
    by_hand = jnp.pad(frames, ((0, 0), (0, 0), (0, 0), (0, 14), (0, 0)), mode="edge")
    cropped, _ = apply(variables, frames, focus)
    full, _ = apply(variables, by_hand, focus)
    np.testing.assert_allclose(cropped.depth, full.depth[:, :, :50], atol=1e-4)


def test_permuting_candidates_with_their_weights_changes_nothing(key):
    from dff_jax.unroll import Problem, identity, initial_depth, proximal_gradient, solve

    k1, k2 = jax.random.split(key)
    candidates, weights = jax.random.normal(k1, (1, 4, 5, 3)), jax.random.uniform(k2, (1, 4, 5, 3))
    order = jnp.array([2, 0, 1])
    scheme = proximal_gradient(identity)
    run = lambda p: solve(scheme, p, initial_depth(p) + 1, step_size=0.3, num_iterations=3)[0]  # noqa: E731
    np.testing.assert_allclose(
        run(Problem(candidates, weights)), run(Problem(candidates[..., order], weights[..., order])), atol=1e-6
    )


def test_untied_layers_differ_and_equal_weights_equal_tied():
    untied = estimators.build(dataclasses.replace(TINY, tied=False))
    tied = estimators.build(TINY)
    frames, focus = stack(jax.random.key(2))
    variables = tied.init(jax.random.key(1), frames, focus)
    other = untied.init(jax.random.key(1), frames, focus)
    kernel = other["params"]["prox"]["phi1"]["Conv_0"]["Conv_0"]["kernel"]
    assert kernel.shape[0] == 3 and jnp.abs(kernel[0] - kernel[1]).max() > 1e-3
    variables = perturbed(variables, jax.random.key(5))
    copied = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *x.shape)), variables["params"]["prox"])
    one, _ = jax.jit(tied.apply)(variables, frames, focus)
    two, _ = jax.jit(untied.apply)({**variables, "params": {**variables["params"], "prox": copied}}, frames, focus)
    np.testing.assert_allclose(one.depth, two.depth, atol=1e-3)


def test_training_updates_batch_statistics_and_evaluation_does_not(tiny):
    _, variables, apply = tiny
    frames, focus = stack(jax.random.key(2))
    _, trained = apply(variables, frames, focus, train=True)
    _, same = apply(variables, frames, focus, train=False)

    def difference(a, b):
        return max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    assert difference(trained, variables["batch_stats"]) > 1e-3
    assert difference(same, variables["batch_stats"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"norm": "group", "volume": "diff", "measure_prior": "log_sml", "weight_norm": "sigmoid"},
        {"guide": "none", "measure_prior": "none", "prox_inputs": "equation_17", "step_size": "constant",
         "regularization": "learned", "num_candidates": 1},
        {"prox_levels": 3, "refiner_inputs": "depth_volume_candidates", "refiner_steps": 2, "input_range": "imagenet"},
        {"num_planes": None, "prox_inputs": "with_confidence", "pooling": "pyramid", "prox_output": "direct",
         "activation": "relu", "weight_norm": "softmax_squared"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_switch_trains(change):
    """Each value of each switch gives finite gradients, and every parameter gets one."""
    config = dataclasses.replace(TINY, num_iterations=1, **change)
    estimator = estimators.build(config)
    frames, focus = stack(jax.random.key(2), z=4)
    variables = perturbed(estimator.init(jax.random.key(1), frames, focus), jax.random.key(5), 0.02)

    def loss(params):
        prediction, _ = estimator.apply({**variables, "params": params}, frames, focus, train=True)
        return ((prediction.depth - 40) ** 2).mean() + ((prediction.history.iterates - 40) ** 2).mean()

    gradients = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables["params"]))
    assert all(jnp.isfinite(g).all() for _, g in gradients)
    dead = [jax.tree_util.keystr(path) for path, g in gradients if not jnp.abs(g).max() > 0]
    # a single candidate is D(0) whatever its weight, and a ReLU of four channels may be dead from the start
    assert not dead or config.num_candidates == 1 or config.activation == "relu", dead


@pytest.mark.slow
def test_paper_preset_has_dfvs_parameters_and_answers_in_dataset_units():
    estimator = estimators.build(cfg.paper())
    frames, focus = stack(jax.random.key(0), z=15)
    shapes = jax.eval_shape(lambda k: estimator.init(k, frames, focus), jax.random.key(0))
    count = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(shapes["params"]["volume"]) == 18_988_484  # DFV without its idle classifier
    assert set(shapes["params"]) == {"volume", "candidates", "prox", "refiner", "unroll"}
    z = 15 + 4
    assert shapes["params"]["prox"]["phi1"]["Conv_0"]["Conv_0"]["kernel"].shape == (3, 3, z, 32)
    output = jax.eval_shape(lambda v: estimator.apply(v, frames, focus)[0], shapes)
    assert output.history.iterates.shape == (1, 4, 64, 64)


def test_unknown_scheme_is_refused_when_built():
    with pytest.raises(ConfigError, match="model.scheme"):
        estimators.build(dataclasses.replace(TINY, scheme="newton"))
