"""The running average of what is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training_fakes as fakes
from networks import variables

from dff_jax import config as configs
from dff_jax.config import LossConfig, OptimizerConfig
from dff_jax.training import optimizer, state
from dff_jax.training.step import make_update


def test_the_average_follows_weights_and_statistics():
    estimator = fakes.build(configs.Proximal(num_iterations=1))
    tx = optimizer.build(OptimizerConfig(peak_learning_rate=1e-2), 20)
    now = state.begin(variables(estimator, fakes.batch(1).frames), tx, average=True)
    update = jax.jit(make_update(estimator, tx, LossConfig(), "unit", average=0.8))
    want = state.variables(now)
    for step in range(8):
        now, _ = update(now, jax.tree.map(jnp.asarray, fakes.batch(2, seed=step)))
        rate = 1 - min(0.8, (1 + step + 1) / (10 + step + 1))
        want = optax.incremental_update(state.variables(now), want, rate)
    for a, b in zip(jax.tree.leaves(state.outcome(now)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    moved = [np.abs(a - b).max() for a, b in
             zip(jax.tree.leaves(state.outcome(now)), jax.tree.leaves(state.variables(now)), strict=True)]  # fmt: skip
    assert max(moved) > 1e-4


def test_without_an_average_the_weights_are_the_outcome():
    estimator = fakes.build(configs.Proximal(num_iterations=1))
    now = state.begin(variables(estimator, fakes.batch(1).frames), optimizer.build(OptimizerConfig(), 20))
    assert now.average == {} and state.outcome(now)["params"] is now.params
