"""Confidence: the error to expect, from the spread or learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from networks import on_host, random_like, variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import LossConfig
from dff_jax.errors import ConfigError
from dff_jax.network.confidence import ExpectedError, confidence, error_features
from dff_jax.network.planes import VolumeFeatures
from dff_jax.training.objective import objective
from dff_jax.types import CONFIDENCE_SCALE, Prediction, confidence_of_error, error_of_confidence
from dff_jax.unroll import Problem

MODEL = dataclasses.replace(
    configs.tiny(), width=0.0625, head_width=0.125, num_iterations=1, num_planes=4, prox_levels=1, measure_prior="none",
    uncertainty="learned",
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
    count = jnp.sum(batch.mask)
    plain = 0.03 * count
    want = plain + 0.5 * count * (1 + np.log(0.03))  # |e| / b + log b
    np.testing.assert_allclose(best.loss, want, rtol=1e-3)
    for other in (0.02, 0.028, 0.032, 0.05):
        assert loss(jnp.float32(other)).loss > best.loss
    slope = jax.grad(lambda b: loss(b).loss)(jnp.float32(0.03)) / count
    assert abs(slope) < 1e-2


@pytest.fixture(scope="module")
def network():
    estimator = estimators.build(MODEL)
    batch = jax.tree.map(jnp.asarray, fakes.batch(1, num_frames=4, side=32))
    given = variables(estimator)
    head = given["params"]["expected_error"]["head"]["Conv_2"]["Conv_0"]
    head["kernel"], head["bias"] = np.zeros_like(head["kernel"]), np.full_like(head["bias"], -3.0)
    return estimator, given, batch


def test_the_head_changes_nothing_but_confidence_and_learns_alone(network):
    estimator, given, batch = network
    params, stats = given["params"], given["batch_stats"]

    @on_host
    def gradient(params, weight):
        def loss(params, weight):
            found, _ = estimator.apply({"params": params, "batch_stats": stats}, batch.frames, batch.focus, train=True)
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


def test_spread_and_learned_confidence_by_hand(key):
    """exp(-10 sqrt(spread + 2 V / S)), the second in shares of the range; a learned head starts at a twentieth."""
    draw = lambda *shape: jax.random.uniform(key, (1, 6, 7, *shape))  # noqa: E731
    seen = VolumeFeatures(draw(5), draw(), None, 0.01 * draw(), draw(3))
    problem = Problem(10 * draw(2), 0.1 + draw(2))
    D, W = np.asarray(problem.candidates), np.asarray(problem.weights)
    mean = (D * W).sum(-1) / W.sum(-1)
    variance = (W * (D - mean[..., None]) ** 2).sum(-1) / W.sum(-1)
    spread = dataclasses.replace(MODEL, uncertainty="spread")
    found = confidence(spread, {}, seen, problem, draw(), jnp.full((1, 1, 1), 20.0))
    np.testing.assert_allclose(found, np.exp(-10 * np.sqrt(seen.spread + variance / 400)), rtol=1e-4)
    features = error_features(seen, problem, draw())
    assert features[1].shape == (1, 6, 7, 5)
    params = {"expected_error": ExpectedError(MODEL).init(key, *features)["params"]}
    found = confidence(MODEL, params, seen, problem, draw(), 1.0)
    np.testing.assert_allclose(found, np.exp(-10 * (0.001 + 0.999 / (1 + np.exp(3.0)))), rtol=1e-4)
    found = confidence(MODEL, random_like(params), seen, problem, draw(), 1.0)
    assert found.std() > 0.01 * found.mean() and found.min() > 0 and found.max() < 1
