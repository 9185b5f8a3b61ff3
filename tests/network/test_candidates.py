"""Candidates and weights (6, 7, 14), learned and measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import on_host, random_like

from dff_jax import config as configs
from dff_jax.errors import ConfigError
from dff_jax.network.candidates import Candidates, measure, normalize_weights, propose
from dff_jax.network.planes import VolumeFeatures
from dff_jax.optics.scenes import make_stack
from dff_jax.unroll import Problem, initial_depth

PLAIN = dataclasses.replace(configs.tiny(), head_width=0.125, num_planes=5)
MODEL = dataclasses.replace(PLAIN, measured_candidates=True)
WORLD = configs.WorldConfig(
    height=64, width=64, num_frames=7, focus_range=(10.0, 60.0), depth_range=(12.0, 58.0), num_objects=1,
    blur_per_disparity=(0.1, 0.1), max_blur_radius=6, noise=(0.0, 0.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def stack():
    """A textured wall, and something before it."""
    stack = make_stack(jax.random.key(4), WORLD)
    return stack.frames[None], stack.focus[None], stack.depth


@pytest.fixture(scope="module")
def seen():
    """What some volume says of the stack."""
    draw = lambda i, *shape: jax.random.uniform(jax.random.key(i), (1, 64, 64, *shape))  # noqa: E731
    return VolumeFeatures(draw(0, 8), draw(1), draw(2, 2), 0.1 * draw(3), draw(4, 3))


def random_params(config, seen, stack):
    measured = measure(*unit(stack)) if config.measured_candidates else None
    if config.candidate_source != "per_scale":
        seen = seen._replace(per_scale=None)
    shapes = jax.eval_shape(Candidates(config).init, jax.random.key(0), seen, measured)
    return random_like(shapes)["params"]


def unit(stack):
    frames, focus, _ = stack
    return frames, (focus - focus[:, :1]) / (focus[:, -1:] - focus[:, :1])


def at_rest(params):
    """The last layers of the attention and of the residual heads at rest, but for the attention's bias."""

    def rest(path, x):
        names = [p.key for p in path]
        if names[1] != "Conv_2":
            return x
        return np.zeros_like(x) if names[-1] == "kernel" or "residual" in names[0] else np.full_like(x, -1.0)

    return jax.tree_util.tree_map_with_path(rest, params)


def test_weight_norms(key):
    logits = jax.random.normal(key, (4, 3))
    softmax = normalize_weights(logits, "softmax")
    np.testing.assert_allclose(softmax.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(normalize_weights(logits, "softmax_squared"), softmax**2, rtol=1e-6)
    np.testing.assert_allclose(normalize_weights(logits, "sigmoid"), 1 / (1 + jnp.exp(-logits)), rtol=1e-5)
    np.testing.assert_allclose(normalize_weights(logits, "softplus"), jnp.log1p(jnp.exp(logits)), rtol=1e-5)


def test_learned_candidates_are_dbar_and_a_residual_of_each_head(stack, seen):
    frames, focus, _ = stack
    seen = seen._replace(per_scale=None)
    params = random_params(PLAIN, seen, stack)
    run = on_host(propose, static_argnums=0)
    candidates, weights = run(PLAIN, params, seen, frames, focus)
    assert candidates.shape == weights.shape == (1, 64, 64, 3) and (weights > 0).all()
    for i in range(3):  # a head without its last layer leaves Dbar, and the others as they are
        one = {**params, f"residual{i}": jax.tree.map(np.zeros_like, params[f"residual{i}"])}
        found, same = run(PLAIN, one, seen, frames, focus)
        np.testing.assert_array_equal(found[..., i], seen.expected)
        np.testing.assert_allclose(np.delete(found, i, -1), np.delete(candidates, i, -1), atol=1e-6)
        np.testing.assert_allclose(same, weights, atol=1e-6)
        assert jnp.abs(candidates[..., i] - seen.expected).max() > 1e-3


def test_an_untrained_head_weighs_measured_candidates_as_measuring_does(stack, seen):
    frames, focus, truth = stack
    seen = seen._replace(per_scale=None)
    params = at_rest(random_params(MODEL, seen, stack))
    candidates, weights = jax.jit(lambda: propose(MODEL, params, seen, frames, focus))()
    want = jax.jit(measure)(*unit(stack))
    assert candidates.shape == (1, 64, 64, 3 + 9)
    np.testing.assert_allclose(candidates[..., 3:], want.depth, atol=2e-5)
    # softplus(x) is exp(x) for the small, and never above it
    logits = jnp.log(want.weights + 1e-3)
    np.testing.assert_allclose(weights[..., 3:], jax.nn.softplus(logits), rtol=1e-4)
    alone = 10 + 50 * initial_depth(Problem(want.depth, want.weights, 0.0))[0]
    assert jnp.median(jnp.abs(alone - truth)) < 0.8  # of 8.3 between two frames
    assert (want.sharpness >= 0).all() and (want.sharpness < 1).all()


def test_measuring_sends_no_gradient_back(stack):
    frames, focus, _ = stack
    t = (focus - focus[:, :1]) / (focus[:, -1:] - focus[:, :1])
    slope = jax.jit(jax.grad(lambda x: sum(jnp.sum(part) for part in measure(x, t))))(frames)
    assert not np.any(slope)


def test_a_crop_finds_what_the_whole_finds(stack):
    frames, focus, _ = stack
    t = (focus - focus[:, :1]) / (focus[:, -1:] - focus[:, :1])
    whole, crop = jax.jit(measure)(frames, t), jax.jit(measure)(frames[:, :, :, :60], t)
    for a, b in zip(whole, crop, strict=True):  # within the reach of its windows a border is felt
        np.testing.assert_allclose(a[:, 2:-2, :12], b[:, 2:-2, :12], atol=1e-4)


def test_measured_beside_a_candidate_of_each_scale(stack, seen):
    frames, focus, _ = stack
    config = dataclasses.replace(MODEL, candidate_source="per_scale", num_candidates=2)
    params = random_params(config, seen, stack)
    candidates, weights = on_host(propose, static_argnums=0)(config, params, seen, frames, focus)
    assert set(params) == {"attention"} and candidates.shape == weights.shape == (1, 64, 64, 2 + 9)
    np.testing.assert_array_equal(candidates[..., :2], seen.per_scale)


def test_it_learns_from_what_is_measured(stack, seen):
    """Gradients are finite, and reach the head that weighs measured candidates."""
    frames, focus, truth = stack
    seen = seen._replace(per_scale=None)

    def loss(params):
        problem = Problem(*propose(MODEL, params, seen, frames, focus), 0.0)
        return jnp.mean(jnp.abs(10 + 50 * initial_depth(problem) - truth[None]))

    slope = jax.jit(jax.grad(loss))(random_params(MODEL, seen, stack))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    assert np.abs(slope["attention"]["Conv_2"]["Conv_0"]["kernel"][..., 3:]).max() > 0


def test_measured_candidates_need_the_unit_coordinate():
    with pytest.raises(ConfigError, match="model.measured_candidates: needs coordinate=unit"):
        dataclasses.replace(configs.paper(), measured_candidates=True)
