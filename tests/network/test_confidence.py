"""The head that learns the error to expect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import LossConfig
from dff_jax.errors import ConfigError
from dff_jax.training.objective import objective
from dff_jax.types import CONFIDENCE_SCALE, Prediction, confidence_of_error, error_of_confidence

MODEL = dataclasses.replace(
    configs.tiny(), width=0.125, head_width=0.125, num_iterations=1, num_planes=4, uncertainty="learned"
)


def test_confidence_and_expected_error_are_two_names_of_one_thing():
    errors = jnp.array([1e-3, 0.01, 0.1, 1.0])
    np.testing.assert_allclose(error_of_confidence(confidence_of_error(errors)), errors, rtol=1e-4)
    assert float(confidence_of_error(jnp.float32(CONFIDENCE_SCALE))) == pytest.approx(np.exp(-1))


def test_the_likelihood_is_best_where_the_expected_error_is_the_real_one():
    batch = jax.tree.map(jnp.asarray, fakes.batch(2))
    span = (batch.focus[:, -1] - batch.focus[:, 0])[:, None, None]
    depth = batch.depth + 0.03 * span

    def loss(expected):
        confidence = jnp.full(depth.shape, confidence_of_error(expected))
        found = Prediction(depth, confidence, jnp.zeros(depth.shape), jnp.zeros((*depth.shape, 3)))
        config = LossConfig(penalty="l1", uncertainty=0.5)
        return objective(found, batch, config, "unit")

    best = loss(jnp.float32(0.03))
    plain = 0.03 * best.count
    want = plain + 0.5 * best.count * (1 + np.log(0.03))  # |e| / b + log b
    np.testing.assert_allclose(best.loss, want, rtol=1e-3)
    for other in (0.02, 0.028, 0.032, 0.05):
        assert loss(jnp.float32(other)).loss > best.loss
    slope = jax.grad(lambda b: loss(b).loss)(jnp.float32(0.03)) / best.count
    assert abs(slope) < 1e-2


@pytest.fixture(scope="module")
def network():
    estimator = estimators.build(MODEL)
    batch = jax.tree.map(jnp.asarray, fakes.batch(1, num_frames=4, side=32))
    variables = estimator.init(jax.random.key(0), batch.frames, batch.focus)
    return estimator, variables, batch


def test_the_head_changes_nothing_but_confidence_and_learns_alone(network):
    estimator, variables, batch = network
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def gradient(params, weight):
        def loss(params, weight):
            given = {"params": params, "batch_stats": stats}
            found, _ = estimator.apply(given, batch.frames, batch.focus, train=True)
            plain = objective(found, batch, LossConfig(), "unit").loss
            with_it = objective(found, batch, LossConfig(uncertainty=1.0), "unit").loss
            return plain + weight * (with_it - plain), found

        return jax.grad(loss, has_aux=True)(params, weight)

    (without, found), (with_it, _) = gradient(params, 0.0), gradient(params, 1.0)
    own = ("expected_error",)
    for name in params:
        same = [np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in
                zip(jax.tree.leaves(without[name]), jax.tree.leaves(with_it[name]), strict=True)]  # fmt: skip
        assert all(same) != (name in own), name
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(without["expected_error"]))
    assert np.isfinite(found.confidence).all() and 0 < found.confidence.min() and found.confidence.max() < 1
    np.testing.assert_allclose(found.confidence, confidence_of_error(0.001 + 0.999 * jax.nn.sigmoid(-3.0)), rtol=1e-4)


def test_raw_coordinates_have_no_learned_uncertainty():
    with pytest.raises(ConfigError, match="model.uncertainty"):
        dataclasses.replace(configs.paper(), uncertainty="learned")
