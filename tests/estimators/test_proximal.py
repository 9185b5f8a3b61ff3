"""The whole estimator against what method.md says follows from the equations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import on_host, random_like

from dff_jax import config as cfg
from dff_jax import estimators
from dff_jax.errors import ConfigError

TINY = dataclasses.replace(cfg.tiny(), width=0.13, head_width=0.13, prox_levels=1)


def stack(key, z=4, h=64, w=64, b=1):
    frames = jax.random.uniform(key, (b, z, h, w, 3))
    focus = jnp.broadcast_to(jnp.linspace(10.0, 100.0, z), (b, z))
    return frames, focus


@pytest.fixture(scope="module")
def tiny():
    estimator = estimators.build(TINY)
    frames, focus = stack(jax.random.key(0))
    shapes = jax.eval_shape(estimator.init, jax.random.key(1), frames, focus)
    return estimator, random_like(shapes), on_host(estimator.apply, static_argnames=("train", "num_iterations"))


def test_shapes_for_odd_sizes_and_any_number_of_frames(tiny):
    _, given, apply = tiny
    frames, focus = stack(jax.random.key(2), z=3, h=45, w=77, b=2)
    prediction, _ = apply(given, frames, focus)
    N, K, T = TINY.num_candidates, TINY.num_iterations, TINY.refiner_steps
    assert prediction.depth.shape == prediction.confidence.shape == prediction.disagreement.shape == (2, 45, 77)
    assert prediction.all_in_focus.shape == (2, 45, 77, 3)
    h = prediction.history
    assert h.candidates.shape == h.weights.shape == (2, 45, 77, N)
    assert h.iterates.shape == (2, K + 1, 45, 77) and h.refined.shape == (2, T, 45, 77)
    assert np.isfinite(prediction.depth).all()
    assert prediction.confidence.min() >= 0 and prediction.confidence.max() <= 1
    assert prediction.disagreement.min() >= 0


def test_untrained_physical_network_returns_d0(tiny):
    """Residual prox and refiner start at zero (method.md 3.8), so K may be anything."""
    _, given, apply = tiny
    frames, focus = stack(jax.random.key(2))
    params = given["params"]
    for name in ("prox", "refiner"):  # their own tests say that they begin so
        params = {**params, name: {**params[name], "output": jax.tree.map(np.zeros_like, params[name]["output"])}}
    given = {**given, "params": params}
    for more in ({"num_iterations": 0}, {}, {"num_iterations": 5}):
        prediction, _ = apply(given, frames, focus, **more)
        np.testing.assert_allclose(prediction.depth, prediction.history.iterates[:, 0], atol=2e-4)


def test_k_zero_is_d0_bit_for_bit_and_three_iterations_are_a_prefix_of_five(tiny):
    _, given, apply = tiny
    frames, focus = stack(jax.random.key(2))
    plain = estimators.build(dataclasses.replace(TINY, refiner_steps=0))
    params = {name: x for name, x in given["params"].items() if name != "refiner"}
    zero, _ = on_host(lambda given: plain.apply(given, frames, focus, num_iterations=0))({**given, "params": params})
    np.testing.assert_array_equal(zero.depth, zero.history.iterates[:, 0])
    h = zero.history
    expected = (h.weights * h.candidates).sum(-1) / h.weights.sum(-1)
    np.testing.assert_allclose(zero.depth, expected, rtol=1e-4)
    assert TINY.num_iterations == 3
    three, five = (apply(given, frames, focus, **more)[0].history.iterates for more in ({}, {"num_iterations": 5}))
    np.testing.assert_allclose(three, five[:, :4], atol=1e-3)
    assert np.abs(five[:, 5] - zero.depth).max() > 1e-2  # the prox does something


def test_affine_change_of_the_focus_axis_changes_the_output_by_the_same_map(tiny):
    _, given, apply = tiny
    frames, focus = stack(jax.random.key(2))
    one, _ = apply(given, frames, focus)
    two, _ = apply(given, frames, 3.0 * focus - 7.0)
    np.testing.assert_allclose(two.depth, 3.0 * one.depth - 7.0, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(two.confidence, one.confidence, atol=1e-4)
    np.testing.assert_allclose(two.disagreement, 9.0 * one.disagreement, rtol=1e-2, atol=1e-4)


def test_odd_sizes_are_padded_and_cropped_back(tiny):
    """Rows below the picture are a continuation of its edge: written out by hand they change nothing."""
    _, given, apply = tiny
    frames, focus = stack(jax.random.key(2), h=64, w=50)
    by_hand = jnp.pad(frames, ((0, 0), (0, 0), (0, 0), (0, 14), (0, 0)), mode="edge")
    cropped, _ = apply(given, frames, focus)
    full, _ = apply(given, by_hand, focus)
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


def test_untied_layers_of_equal_weights_equal_tied(tiny):
    _, given, apply = tiny
    untied = estimators.build(dataclasses.replace(TINY, tied=False))
    frames, focus = stack(jax.random.key(2))
    copied = jax.tree.map(lambda x: np.broadcast_to(x, (3, *x.shape)), given["params"]["prox"])
    one, _ = apply(given, frames, focus)
    two, _ = on_host(untied.apply)({**given, "params": {**given["params"], "prox": copied}}, frames, focus)
    np.testing.assert_allclose(one.depth, two.depth, atol=1e-3)


def test_training_updates_batch_statistics_and_evaluation_does_not(tiny):
    _, given, apply = tiny
    frames, focus = stack(jax.random.key(2))
    _, trained = apply(given, frames, focus, train=True)
    _, same = apply(given, frames, focus, train=False)

    def difference(a, b):
        return max(float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    assert difference(trained, given["batch_stats"]) > 1e-3
    assert difference(same, given["batch_stats"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"norm": "group", "volume": "diff", "measure_prior": "log_sml", "weight_norm": "sigmoid", "prox_levels": 3,
         "refiner_inputs": "depth_volume_candidates", "refiner_steps": 2, "input_range": "imagenet"},
        {"guide": "none", "measure_prior": "none", "prox_inputs": "equation_17", "step_size": "constant",
         "regularization": "learned", "num_candidates": 1},
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
    given = random_like(jax.eval_shape(estimator.init, jax.random.key(1), frames, focus))

    def loss(params):
        prediction, _ = estimator.apply({**given, "params": params}, frames, focus, train=True)
        return ((prediction.depth - 40) ** 2).mean() + ((prediction.history.iterates - 40) ** 2).mean()

    gradients = jax.tree_util.tree_leaves_with_path(on_host(jax.grad(loss))(given["params"]))
    assert all(np.isfinite(g).all() for _, g in gradients)
    dead = [jax.tree_util.keystr(path) for path, g in gradients if not np.abs(g).max() > 0]
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
    prox = shapes["params"]["prox"]
    kernels = prox["static"]["Conv_0"]["kernel"], prox["phi1"]["Conv_0"]["Conv_0"]["kernel"]
    assert [x.shape for x in kernels] == [(3, 3, 15, 32), (3, 3, z - 15, 32)]
    output = jax.eval_shape(lambda v: estimator.apply(v, frames, focus)[0], shapes)
    assert output.history.iterates.shape == (1, 4, 64, 64)


def test_unknown_scheme_is_refused_when_built():
    with pytest.raises(ConfigError, match="model.scheme"):
        estimators.build(dataclasses.replace(TINY, scheme="newton"))
