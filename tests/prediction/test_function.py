"""`depth_function`: every form of the input, the transformations of JAX, gradients, and programs in a file."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import export
from networks import variables as random_variables

import dff_jax
from dff_jax import config, estimators
from dff_jax.errors import InputError
from dff_jax.estimators.weights import save_weights

SHAPE = (2, 4, 32, 32, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Weights of a small network with a median behind it, and the same ones without: {sharpen: file}."""
    folder = tmp_path_factory.mktemp("weights")
    model = dataclasses.replace(
        config.tiny(), width=0.0625, head_width=0.125, num_planes=5, num_iterations=0, sharpen="weighted_median"
    )
    given = random_variables(estimators.build(model), SHAPE)
    found = {}
    for sharpen in ("weighted_median", "none"):
        found[sharpen] = folder / f"{sharpen}.safetensors"
        save_weights(found[sharpen], dataclasses.replace(model, sharpen=sharpen), given, {})
    return found


@pytest.fixture(scope="module")
def stack():
    """Random bytes, and settings in ascending order."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, SHAPE, dtype=np.uint8), np.array([[1, 2, 4, 5], [10, 20, 25, 40.0]], np.float32)


@pytest.fixture(scope="module")
def answer(saved, stack):
    return jax.jit(dff_jax.depth_function(saved["weighted_median"]))(*stack)


def test_type_and_order_do_not_matter(saved, stack, answer):
    frames, focus = stack
    depth_of = jax.jit(dff_jax.depth_function(saved["weighted_median"]))
    assert answer.depth.shape == (2, 32, 32) and answer.history is not None
    floats = depth_of(np.float32(frames) / 255, focus).depth
    np.testing.assert_allclose(floats, answer.depth, atol=1e-3)
    mixed = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(depth_of(np.float32(frames[:, mixed]) / 255, focus[:, mixed]).depth, floats, atol=1e-4)


def test_vmap_is_a_batch(saved, stack, answer):
    one = lambda x, s: dff_jax.depth_function(saved["weighted_median"])(x[None], s[None]).depth[0]  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(*stack), answer.depth, atol=1e-3)


def test_the_gradient_passes_by_the_median(saved, stack):
    frames, focus = np.float32(stack[0]) / 255, stack[1]
    rng = np.random.default_rng(1)
    target = np.float32(rng.normal(size=(2, 32, 32)))

    def loss_of(path):
        depth_of = dff_jax.depth_function(path)
        return lambda x: (depth_of(x, focus).depth * target).sum() / 100

    losses = {name: loss_of(path) for name, path in saved.items()}
    slopes = {name: jax.jit(jax.grad(loss))(frames) for name, loss in losses.items()}
    np.testing.assert_allclose(slopes["weighted_median"], slopes["none"], atol=1e-6)
    plain = jax.jit(losses["none"])
    direction = slopes["none"] / slopes["none"].std()  # uphill, where rounding matters least
    step = 2e-5
    change = (plain(frames + step * direction) - plain(frames - step * direction)) / (2 * step)
    assert float((slopes["none"] * direction).sum()) == pytest.approx(float(change), rel=0.05)


def test_a_program_in_a_file_gives_the_same(saved, stack, answer):
    exported = export.export(jax.jit(dff_jax.depth_function(saved["weighted_median"])))(*stack)
    again = export.deserialize(exported.serialize()).call(*stack)
    assert type(again) is type(answer)
    np.testing.assert_allclose(again.depth, answer.depth, atol=1e-5)


def test_wrong_arrays_are_named(saved, stack):
    frames, focus = stack
    depth_of = dff_jax.depth_function(saved["none"])
    for given, words in (
        ((frames[0], focus), r"frames: shape \(4, 32, 32, 3\); must be \[B,Z,H,W,3\]"),
        ((frames, focus[0]), r"focus: shape \(4,\); must be \[B,Z\], \(2, 4\)"),
        ((frames.astype(np.int32), focus), "frames: of type int32"),
        ((frames, focus * 0), "focus: settings that repeat"),
    ):
        with pytest.raises(InputError, match=words):
            depth_of(*given)
