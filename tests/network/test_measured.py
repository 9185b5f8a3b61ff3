"""Measured candidates inside the network, and weights of one run as the beginning of another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.errors import ConfigError, WeightsError
from dff_jax.estimators.weights import read, save_weights
from dff_jax.network.measured import measure
from dff_jax.network.refiner import GAP_SCALE, between_settings
from dff_jax.optics.scenes import make_stack
from dff_jax.training.initial_weights import load_matching
from dff_jax.training.loop import train
from dff_jax.unroll import Problem, initial_depth

PLAIN = dataclasses.replace(configs.tiny(), width=0.125, head_width=0.125, num_iterations=1, num_planes=5)
MODEL = dataclasses.replace(PLAIN, measured_candidates=True, refiner_inputs="depth_volume_candidates")
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
def network(stack):
    estimator = estimators.build(MODEL)
    return estimator, estimator.init(jax.random.key(0), *stack[:2])


def silent(variables):
    """The last layers of the attention and of the residual heads at rest."""

    def rest(path, x):
        names = [p.key for p in path]
        last = names[:2] == ["params", "candidates"] and names[3] == "Conv_2"
        return jnp.zeros_like(x) if last and (names[-1] == "kernel" or "residual" in names[2]) else x

    return jax.tree_util.tree_map_with_path(rest, variables)


def test_an_untrained_head_weighs_measured_candidates_as_measuring_does(stack, network):
    frames, focus, truth = stack
    estimator, variables = network
    found = jax.jit(estimator.apply)(silent(variables), frames, focus)[0].history
    t = (focus - focus[:, :1]) / (focus[:, -1:] - focus[:, :1])
    want = jax.jit(measure)(frames, t)
    assert found.candidates.shape == (1, 64, 64, 3 + 9)
    np.testing.assert_allclose(found.candidates[..., 3:], 10 + 50 * want.depth, atol=1e-3)
    # softplus(x) is exp(x) for the small, and never above it
    logits = jnp.log(want.weights + 1e-3)
    np.testing.assert_allclose(found.weights[..., 3:], jax.nn.softplus(logits), rtol=1e-4)
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


def test_measured_beside_a_candidate_of_each_scale(stack):
    frames, focus, _ = stack
    estimator = estimators.build(dataclasses.replace(MODEL, candidate_source="per_scale", num_candidates=2))
    variables = jax.eval_shape(estimator.init, jax.random.key(0), frames, focus)
    found = jax.eval_shape(estimator.apply, variables, frames, focus)
    assert found[0].history.candidates.shape == found[0].history.weights.shape == (1, 64, 64, 2 + 9)


@pytest.mark.slow
def test_it_learns_from_what_is_measured(stack, network):
    """Gradients are finite, and reach the head that weighs measured candidates."""
    frames, focus, truth = stack
    estimator, variables = network

    def loss(params):
        found, _ = estimator.apply({**variables, "params": params}, frames, focus, train=True)
        return jnp.mean(jnp.abs(found.depth - truth[None]))

    slope = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    last = slope["candidates"]["attention"]["Conv_2"]["Conv_0"]["kernel"]
    assert np.abs(last[..., 3:]).max() > 0


def test_measured_candidates_need_the_unit_coordinate():
    with pytest.raises(ConfigError, match="model.measured_candidates: needs coordinate=unit"):
        dataclasses.replace(configs.paper(), measured_candidates=True)


# Beginning with weights -------------------------------------------------------------------------------------------


def test_what_fits_is_taken_and_the_rest_is_named(tmp_path, network, stack):
    _, variables = network
    plain = estimators.build(PLAIN).init(jax.random.key(9), *stack[:2])
    save_weights(tmp_path / "plain.safetensors", PLAIN, jax.tree.map(np.asarray, plain), {})
    begun, new = load_matching(tmp_path / "plain.safetensors", variables)
    assert "params/candidates/attention/" in new
    flat, theirs, before = (flatten_dict(x, sep="/") for x in (begun, plain, variables))
    taken, more = 0, []
    for key, x in flat.items():
        fits = key in theirs and theirs[key].shape == x.shape
        want = theirs[key] if fits else before[key]
        if key in theirs and key.endswith("kernel") and x.shape[-1] == theirs[key].shape[-1] and not fits:
            inputs = theirs[key].shape[2]  # a kernel with more of them
            want = jnp.zeros_like(x).at[:, :, :inputs].set(theirs[key])
            more.append(key.split("/")[1:3])
        np.testing.assert_array_equal(x, want, err_msg=key)
        taken += fits
    assert len(flat) > taken > len(flat) // 2
    assert ["refiner", "Conv_0"] in more and ["candidates", "attention"] in more and len(more) == 5
    _, new = load_matching(tmp_path / "plain.safetensors", plain)
    assert new == ""


def test_a_refiner_that_sees_the_settings_begins_as_one_that_does_not(tmp_path, stack):
    frames, focus, _ = stack
    before, after = (estimators.build(dataclasses.replace(PLAIN, refiner_inputs=x)) for x in
                     ("depth_volume_candidates", "with_settings"))  # fmt: skip
    variables = before.init(jax.random.key(9), frames, focus)
    save_weights(tmp_path / "before.safetensors", PLAIN, jax.tree.map(np.asarray, variables), {})
    begun, new = load_matching(tmp_path / "before.safetensors", after.init(jax.random.key(3), frames, focus))
    assert new == ""
    answers = [jax.jit(x.apply)(v, frames, focus)[0].depth for x, v in ((before, variables), (after, begun))]
    np.testing.assert_allclose(answers[0], answers[1], atol=2e-3)


def test_where_a_depth_lies_between_settings():
    t = jnp.array([[0.0, 0.2, 1.0]])
    found = between_settings(jnp.array([[[-0.1, 0.05, 0.1, 0.2, 0.4, 1.3]]]), t)[0, 0] / GAP_SCALE
    expected = [[0, 0.2, 0.2], [0.2, 0, 0.2], [0, -0.2, 0.2], [0, 0.8, 0.8], [0.8, 0, 0.8], [0, 0.8, 0.8]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_weights_with_nothing_in_common_are_refused(tmp_path):
    save_weights(tmp_path / "other.safetensors", PLAIN, {"params": {"a": np.zeros(2, np.float32)}}, {})
    with pytest.raises(WeightsError, match="other.safetensors: has no array of this network's"):
        load_matching(tmp_path / "other.safetensors", {"params": {"a": jnp.zeros(3)}, "batch_stats": {}})
    with pytest.raises(WeightsError, match="none.safetensors: no such weights file"):
        load_matching(tmp_path / "none.safetensors", {"params": {"a": jnp.zeros(3)}})


def test_a_run_begins_with_another_and_reads_it_only_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimators, "build", fakes.build)
    first = fakes.small_config(fakes.write_stacks(tmp_path / "data"), num_steps=3)
    train(first, tmp_path / "first")
    training = dataclasses.replace(first.training, num_steps=1, initial_weights=str(tmp_path / "first"))
    second = dataclasses.replace(
        first, training=training, optimizer=dataclasses.replace(first.optimizer, peak_learning_rate=1e-12)
    )
    train(second, tmp_path / "second")
    assert f"begins with {tmp_path / 'first'}" in capsys.readouterr().err
    a, b = (read(tmp_path / name / "weights.safetensors")[1] for name in ("first", "second"))
    for key, x in a.items():
        if key.startswith("params/"):
            np.testing.assert_allclose(b[key], x, atol=1e-9, err_msg=key)
    (tmp_path / "first" / "weights.safetensors").unlink()
    train(second, tmp_path / "second")  # goes on, and needs it no more
    with pytest.raises(ConfigError, match="training.encoder_weights: give these or initial_weights"):
        dataclasses.replace(training, encoder_weights="encoder.safetensors")
