"""The refiner (15, 16)."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from networks import random_like

from dff_jax import config as cfg
from dff_jax.network.refiner import GAP_SCALE, Refiner, between_settings, refine, refiner_features
from dff_jax.unroll import Problem


def test_where_a_depth_lies_between_settings():
    t = jnp.array([[0.0, 0.2, 1.0]])
    found = between_settings(jnp.array([[[-0.1, 0.05, 0.1, 0.2, 0.4, 1.3]]]), t)[0, 0] / GAP_SCALE
    expected = [[0, 0.2, 0.2], [0.2, 0, 0.2], [0, -0.2, 0.2], [0, 0.8, 0.8], [0.8, 0, 0.8], [0, 0.8, 0.8]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_step_adds_to_the_depth_before_it(key):
    """Dhat(t+1) = Dhat(t) + F_ref(cat(Dhat(t), F, ...)); without steps there is nothing."""
    config = dataclasses.replace(cfg.tiny(), head_width=0.125, refiner_steps=2, refiner_inputs="with_settings")
    depth, focus = jax.random.uniform(key, (1, 6, 7)), jnp.array([[10.0, 20.0, 40.0]])
    context = SimpleNamespace(features=jax.random.normal(key, (1, 6, 7, 5)))
    problem = Problem(jax.random.uniform(key, (1, 6, 7, 2)), jnp.ones((1, 6, 7, 2)), context=context)
    net, features = Refiner(config), refiner_features(config, depth, problem, focus)
    assert features.shape[-1] == 5 + 2 + 3
    shapes = jax.eval_shape(net.init, key, depth, features)
    params = {"refiner": random_like(shapes)["params"]}
    found = refine(config, params, depth, problem, focus)
    for step in (0, 1):
        before = depth if step == 0 else found[:, 0]
        features = refiner_features(config, before, problem, focus)
        by_hand = before + net.apply({"params": params["refiner"]}, before, features)
        np.testing.assert_allclose(found[:, step], by_hand, rtol=1e-4, atol=1e-5)
        assert jnp.abs(by_hand - before).max() > 1e-3
    none = refine(dataclasses.replace(config, refiner_steps=0), params, depth, problem, focus)
    assert none.shape == (1, 0, 6, 7)
    start = net.init(key, depth, features)
    assert not jnp.any(net.apply(start, depth, features))  # an untrained one adds nothing
