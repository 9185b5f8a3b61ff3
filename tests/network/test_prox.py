"""The proximal networks (18-25) and what they see (17)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import on_host, random_like

from dff_jax import config as cfg
from dff_jax.network.prox import (
    LOOKUP_REACH,
    NETWORKS,
    Context,
    ContextHeads,
    Gate,
    GatedProximalNetwork,
    RecurrentUpdate,
    ResidualCnn,
    learned_prox,
    look_up,
    prox_inputs,
    static_inputs,
)
from dff_jax.unroll import Problem, initial_depth

TINY = dataclasses.replace(cfg.tiny(), head_width=0.125, prox_levels=1)


def conv(p, x):
    y = lax.conv_general_dilated(x, p["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p["Conv_0"]["bias"].reshape(1, 1, 1, -1)


def test_the_inputs_of_equation_17(key):
    """z, eta, lambda, D(k-1) change; F and what is said of the candidates do not."""
    draw = lambda i, *shape: jax.random.uniform(jax.random.key(i), (2, 5, 6, *shape))  # noqa: E731
    context = Context(draw(0, 7), draw(1, 2))
    weight = jnp.array([0.1, 0.3])[:, None, None]
    problem = Problem(draw(2, 3), draw(3, 3), weight, context, previous=draw(4))
    found = prox_inputs(draw(5), problem, jnp.float32(0.5))
    whole = jnp.broadcast_to(weight, (2, 5, 6))
    np.testing.assert_array_equal(found, jnp.stack([draw(5), jnp.full((2, 5, 6), 0.5), whole, draw(4)], -1))
    np.testing.assert_array_equal(static_inputs(context), jnp.concatenate([draw(0, 7), draw(1, 2)], -1))
    np.testing.assert_array_equal(static_inputs(context._replace(confidence=None)), draw(0, 7))
    evidence = problem._replace(context=context._replace(evidence=draw(6, 9)))
    np.testing.assert_allclose(prox_inputs(draw(5), evidence, draw(7))[..., 4:], look_up(draw(6, 9), draw(4)))


def test_looking_up_is_linear_interpolation_around_the_depth(key):
    evidence, t = jax.random.normal(key, (1, 3, 4, 9)), jax.random.uniform(key, (1, 3, 4), minval=-0.2, maxval=1.2)
    found = look_up(evidence, t)
    for offset in range(-LOOKUP_REACH, LOOKUP_REACH + 1):
        for y in range(3):
            for x in range(4):
                want = np.interp(t[0, y, x] * 8 + offset, np.arange(9), evidence[0, y, x])
                np.testing.assert_allclose(found[0, y, x, offset + LOOKUP_REACH], want, atol=1e-5)


@pytest.mark.parametrize("prox", list(NETWORKS))
def test_the_static_convolution_is_part_of_the_first(prox, key):
    """Shared before the loop, or made in each iteration: the same; and it matters."""
    config = dataclasses.replace(TINY, prox=prox, prox_inputs="with_confidence")
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (1, 8, 8, *shape))  # noqa: E731
    hidden = jnp.tanh(draw(4, 4)) if prox == "gru" else None
    problem = Problem(draw(2, 3), jnp.abs(draw(3, 3)), 0.1, Context(draw(0, 7), draw(1, 2), hidden=hidden))
    problem = problem._replace(previous=initial_depth(problem))
    made, init = learned_prox(config)
    params, apply = random_like(jax.eval_shape(init, key, problem)), jax.jit(lambda *given: made(*given))
    assert set(params) > {"static"}
    z = draw(5)
    alone = apply(params, z, problem, jnp.float32(0.5))
    by_hand = conv({"Conv_0": {**params["static"]["Conv_0"], "bias": jnp.zeros(4)}}, static_inputs(problem.context))
    shared = problem._replace(context=problem.context._replace(static=by_hand))
    np.testing.assert_allclose(apply(params, z, shared, jnp.float32(0.5)), alone, rtol=1e-4, atol=1e-4)
    moved = problem._replace(context=problem.context._replace(features=draw(9, 7)))
    assert jnp.abs(apply(params, z, moved, jnp.float32(0.5)) - alone).max() > 1e-2


def test_the_first_two_kernels_start_as_one(key):
    """Together they have the variance of He's initialisation over all inputs."""
    config = dataclasses.replace(TINY, head_width=1.0)
    draw = lambda *shape: jnp.ones((1, 4, 4, *shape))  # noqa: E731
    problem = Problem(draw(3), draw(3), 0.1, Context(draw(18), draw(2), draw(15)))
    params = on_host(learned_prox(config)[1])(key, problem)
    static, changing = params["static"], params["phi1"]["Conv_0"]
    for kernel, inputs in ((static["Conv_0"]["kernel"], 20), (changing["Conv_0"]["kernel"], 9)):
        assert kernel.shape == (3, 3, inputs, 32)
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 29)), rtol=0.05)
    assert not params["output"]["Conv_0"]["kernel"].any()


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


def test_the_gated_unet_is_its_equations(key):
    """(18-25), one level: e1, e2, e3; d2 from e3 enlarged and e2 gated; d1 from d2 and e1 gated."""
    config = dataclasses.replace(cfg.paper(), head_width=0.125)
    z, static = jax.random.normal(key, (1, 6, 8, 5)), jax.random.normal(jax.random.key(1), (1, 6, 8, 4))
    net = GatedProximalNetwork(config)
    p = random_like(jax.eval_shape(net.init, key, z, static)["params"])

    def phi(name, x, added=0.0):
        return nn.relu(conv(p[name]["Conv_1"], nn.relu(conv(p[name]["Conv_0"], x) + added)))

    def gate(name, e, u):
        return Gate("relu").apply({"params": p[name]}, e, u)

    e1 = phi("phi1", z, static)
    e2 = phi("phi2", e1)
    e3 = phi("phi3", e2.reshape(1, 3, 2, 4, 2, -1).max((2, 4)))
    u2 = jax.image.resize(e3, (1, 6, 8, e3.shape[-1]), "bilinear")
    d2 = phi("phi_d2", jnp.concatenate([u2, gate("gate_e2", e2, u2)], -1))
    d1 = phi("phi_d1", jnp.concatenate([d2, gate("gate_e1", e1, d2)], -1))
    found = net.apply({"params": p}, z, static)
    np.testing.assert_allclose(found, conv(p["output"], d1)[..., 0], rtol=1e-3, atol=1e-4)


def test_recurrent_update_is_a_convolutional_gru(key):
    x, h = jax.random.normal(key, (1, 6, 7, 5)), jnp.tanh(jax.random.normal(key, (1, 6, 7, 4)))
    static = jax.random.normal(jax.random.key(1), (1, 6, 7, 4))
    net = RecurrentUpdate(dataclasses.replace(TINY, activation="relu"))
    p = random_like(jax.eval_shape(net.init, key, x, static, h)["params"])
    answer, new = net.apply({"params": p}, x, static, h)
    e = nn.relu(conv(p["encode"], x) + static)
    u, r = jnp.split(jax.nn.sigmoid(conv(p["gates"], jnp.concatenate([h, e], -1))), 2, -1)
    q = jnp.tanh(conv(p["propose"], jnp.concatenate([r * h, e], -1)))
    expected = h + u * (q - h)
    np.testing.assert_allclose(new, expected, atol=1e-5)
    np.testing.assert_allclose(answer, conv(p["output"], nn.relu(conv(p["head"], expected)))[..., 0], atol=1e-5)


def test_residual_cnn_is_four_convolutions(key):
    z = jax.random.normal(key, (1, 20, 20, 5))
    static = jax.random.normal(jax.random.key(1), (1, 20, 20, 32))
    net = ResidualCnn(dataclasses.replace(TINY, activation="relu", head_width=1.0))
    p = random_like(jax.eval_shape(net.init, key, z, static)["params"])
    x = z
    for i in range(3):
        assert p[f"Conv_{i}"]["Conv_0"]["kernel"].shape[-1] == 32
        x = nn.relu(conv(p[f"Conv_{i}"], x) + (static if i == 0 else 0.0))
    np.testing.assert_allclose(net.apply({"params": p}, z, static), conv(p["output"], x)[..., 0], rtol=1e-4, atol=1e-4)


def test_pixel_maps_start_at_the_configured_values_and_follow_the_features(key):
    config = dataclasses.replace(
        TINY, step_size="per_pixel", regularization="per_pixel", step_size_init=0.7, regularization_init=0.02
    )
    features = jax.random.normal(key, (1, 9, 8, 5))
    net = ContextHeads(config)
    params = jax.jit(net.init)(key, features)["params"]
    maps = net.apply({"params": params}, features)
    u = jax.nn.softplus(maps.step_size)
    np.testing.assert_allclose(u / (1 + u), 0.7, rtol=1e-5)  # eta where S = 1
    np.testing.assert_allclose(jax.nn.softplus(maps.regularization), 0.02, rtol=1e-4)
    assert maps.hidden is None
    moved = net.apply({"params": random_like(params)}, features)
    assert moved.step_size.std() > 1e-3 and moved.regularization.std() > 1e-3
