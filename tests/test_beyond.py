"""The candidate beyond the ends of the focus settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.errors import ConfigError
from dff_jax.estimators.initial_weights import place_common
from dff_jax.estimators.weights import save_weights
from dff_jax.network.beyond import STEPS, Beyond, falls, least
from dff_jax.optics.render import render_stack

PLAIN = dataclasses.replace(
    configs.tiny(), width=0.125, head_width=0.125, num_iterations=1, num_planes=5, measured_candidates=True,
    refiner_inputs="with_settings",
)  # fmt: skip
MODEL = dataclasses.replace(PLAIN, end_candidate=True)
FOCUS = jnp.linspace(0.0, 6.0, 7)
T = (FOCUS / 6)[None]


def wall(depth):
    """Smooth noise, at one depth: frames [1,7,64,64,3]."""
    picture = jax.image.resize(jax.random.uniform(jax.random.key(0), (16, 16, 3)), (64, 64, 3), "cubic").clip(0, 1)
    return render_stack(picture, jnp.full((64, 64), depth), FOCUS, blur_per_q=1.2, max_radius=10, num_layers=2)[None]


def test_the_further_beyond_the_sooner_sharpness_falls():
    """At its summit a focus curve is round, so the first step is the smallest; beyond, the end is on its flank."""
    shares = []
    for depth in (6.0, 7.0, 8.0):
        steps = falls(wall(depth), wall(depth)[:, 3], T)[1, 0, 20:-20, 20:-20, :9].reshape(-1, 3, 3).mean((0, 2))
        shares.append(float(steps[0] / steps[2]))
    assert shares[0] < 0.5 * shares[1] < 0.25 * shares[2]


def test_both_ends_are_seen_alike():
    frames, guide = wall(7.0), wall(7.0)[:, 3]
    there, back = falls(frames, guide, T), falls(frames[:, ::-1], guide, 1 - T[:, ::-1])
    np.testing.assert_allclose(there, back[::-1], atol=1e-5)
    assert there.shape == (2, 1, 64, 64, 3 * 3 + 3)
    assert not np.any(jax.grad(lambda x: falls(x, guide, T).sum())(frames))


def test_a_stack_turned_around_has_its_candidate_turned_around():
    net, rng = Beyond(MODEL), np.random.default_rng(0)
    features, guide = (rng.normal(size=(1, 8, 8, n)).astype(np.float32) for n in (5, 3))
    expected, seen = rng.random((1, 8, 8), np.float32), rng.random((2, 1, 8, 8, 12), np.float32)
    join = lambda planes: jnp.concatenate([planes, guide], -1)  # noqa: E731
    variables = net.init(jax.random.key(1), join(features), expected, seen)
    depth, logit = net.apply(variables, join(features), expected, seen)
    turned, same = net.apply(variables, join(features[..., ::-1]), 1 - expected, seen[::-1])
    np.testing.assert_allclose(turned, 1 - depth, atol=1e-5)
    np.testing.assert_allclose(same, logit, atol=1e-5)
    ends = jnp.full((1, 8, 8), 0.9), jnp.full((1, 8, 8), 0.1), jnp.full((1, 8, 8), 0.5)
    high, low, middle = (net.apply(variables, join(features), x, seen)[0] for x in ends)
    assert (high > 1).all() and (low < 0).all()
    np.testing.assert_allclose(middle, 0.5, atol=1e-6)  # where it changes sides it lies at Dbar


@pytest.mark.parametrize("count", [2, 3, 4])
def test_stacks_of_fewer_frames_than_it_looks_at(count):
    assert max(STEPS) >= count
    found = falls(wall(3.0)[:, :count], wall(3.0)[:, 1], jnp.linspace(0, 1, count)[None])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[..., 9:].sum(-1), 4.0, rtol=1e-5)  # together they reach the other end


def test_it_comes_beside_the_others_and_takes_their_weights_over(tmp_path):
    frames, focus = wall(7.0), FOCUS[None]
    plain, more = estimators.build(PLAIN), estimators.build(MODEL)
    variables = plain.init(jax.random.key(9), frames, focus)
    save_weights(tmp_path / "plain.safetensors", PLAIN, jax.tree.map(np.asarray, variables), {})
    begun, new = place_common(tmp_path / "plain.safetensors", more.init(jax.random.key(3), frames, focus))
    assert new.startswith("params/beyond/head/") and "candidates" not in new
    before, after = (jax.jit(x.apply)(v, frames, focus)[0] for x, v in ((plain, variables), (more, begun)))
    assert after.history.candidates.shape == after.history.weights.shape == (1, 64, 64, 3 + 9 + 1)
    np.testing.assert_allclose(after.history.weights[..., :12], before.history.weights, atol=1e-5)
    depth = after.history.candidates[..., 12]
    near_the_end = after.history.expected > 5.0
    assert (depth[near_the_end] > 6.0).all() and near_the_end.any()


def test_no_candidate_lies_behind_infinity():
    far = least(jnp.array([[0.5, 2.0], [10.0, 60.0], [0.0, 4.0], [-1.0, 1.0]]))[:, 0, 0]
    np.testing.assert_allclose(far, [-0.25, -0.15, -np.inf, -np.inf])  # q of 0.125 and 2.5, and no end
    frames, focus = wall(-2.0), jnp.linspace(0.2, 2.0, 7)[None]
    estimator = estimators.build(MODEL)
    variables = estimator.init(jax.random.key(0), frames, focus)
    found = jax.jit(estimator.apply)(variables, frames, focus)[0].history.candidates[..., 12]
    assert found.min() > 0.0499 and found.max() > 0.05


@pytest.mark.slow
def test_it_learns_from_two_frames_and_in_half_precision():
    frames, focus = wall(7.0)[:, -2:], FOCUS[None, -2:]
    for dtype in ("float32", "bfloat16"):
        estimator = estimators.build(dataclasses.replace(MODEL, dtype=dtype))
        variables = estimator.init(jax.random.key(0), frames, focus)

        def loss(params, estimator=estimator, variables=variables):
            found, _ = estimator.apply({**variables, "params": params}, frames, focus, train=True)
            return jnp.mean(jnp.abs(found.depth - 7.0))

        slope = jax.jit(jax.grad(loss))(variables["params"])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
        assert all(np.any(x) for x in jax.tree.leaves(slope["beyond"]))


def test_it_needs_fixed_planes_in_the_unit_coordinate():
    for change in ({"num_planes": None, "prox_inputs": "with_confidence"}, {"coordinate": "raw"}):
        with pytest.raises(ConfigError, match="model.end_candidate: needs fixed planes"):
            dataclasses.replace(configs.tiny(), end_candidate=True, **change)
