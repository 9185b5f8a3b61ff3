import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import on_host

from dff_jax import estimators
from dff_jax.classical import disc_ring_difference
from dff_jax.config import model_preset
from dff_jax.data.live import make_batch
from dff_jax.estimators.rfvr_like import (
    VolumeProblem,
    guided_similarity,
    regularize_volume,
    volume_energy,
)
from dff_jax.optics import render_stack

METHODS = ("rdf", "rfvr_like")


@pytest.mark.parametrize("sizes", [(0, 1, 3), (1, 3, 5)])
def test_ring_difference_equals_a_loop(sizes):
    disc, gap, ring = sizes
    image = np.random.default_rng(0).random((9, 12))
    padded = np.pad(image, ring, mode="edge")
    offsets = [(y, x) for y in range(-ring, ring + 1) for x in range(-ring, ring + 1)]
    inner = [o for o in offsets if np.hypot(*o) <= disc]
    outer = [o for o in offsets if gap < np.hypot(*o) <= ring]
    expected = np.empty_like(image)
    for y, x in np.ndindex(image.shape):
        mean = lambda some: np.mean([padded[ring + y + dy, ring + x + dx] for dy, dx in some])  # noqa: B023, E731
        expected[y, x] = abs(mean(inner) - mean(outer))
    answer = disc_ring_difference(jnp.asarray(image, jnp.float32)[None, None], disc, gap, ring)
    np.testing.assert_allclose(answer[0, 0], expected, atol=1e-5)


def problem_of(key, shape=(4, 5, 6), strength=0.7):
    """Of random volumes; nu large enough that psi is far from a parabola."""
    f, c, g = (jax.random.uniform(k, shape) for k in jax.random.split(key, 3))
    focus = jnp.array([1.0, 2.0, 4.0, 4.5])[: shape[0]]
    return VolumeProblem(f, c[:1] + 0.05, guided_similarity(g, focus, strength, 5.0), 8.0)


def test_similarity_counts_gaps_of_the_focus_axis():
    along, down, across = guided_similarity(jnp.zeros((3, 2, 2)), jnp.array([0.0, 1.0, 4.0]), 2.0, 5.0)
    np.testing.assert_allclose(along[:, 0, 0], [2 * 2 / 1, 2 * 2 / 3], rtol=1e-6)
    assert (down == 2.0).all() and (across == 2.0).all()
    stepped = guided_similarity(jnp.zeros((1, 1, 2)).at[..., 1].set(0.3), jnp.array([0.0]), 2.0, 5.0)[2]
    assert stepped[0, 0, 0] == pytest.approx(2 * np.exp(-5 * 0.09), rel=1e-5)


def test_a_step_equals_a_dense_solve(key):
    problem = problem_of(key)
    f = np.asarray(problem.measured, np.float64)
    index = np.arange(f.size).reshape(f.shape)
    matrix = np.diag(np.broadcast_to(np.asarray(problem.reliability, np.float64), f.shape).ravel())
    data = matrix @ f.ravel()
    for axis, weight in enumerate(problem.similarity):
        one = np.take(index, range(f.shape[axis] - 1), axis).ravel()
        other = np.take(index, range(1, f.shape[axis]), axis).ravel()
        values = np.asarray(weight, np.float64).ravel()
        for i, j, w in zip(one, other, values, strict=True):
            w = w * np.exp(-problem.nu * (f.ravel()[i] - f.ravel()[j]) ** 2)
            matrix[[i, j], [i, j]] += w
            matrix[[i, j], [j, i]] -= w
    expected = np.linalg.solve(matrix, data).reshape(f.shape)
    np.testing.assert_allclose(regularize_volume(problem, 1, 200), expected, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_energy_never_rises_however_few_iterations_the_solver_has(key, iterations):
    problem = problem_of(key, (4, 9, 11))
    energy = [float(volume_energy(problem, regularize_volume(problem, k, iterations))) for k in range(7)]
    assert all(np.diff(energy) <= 1e-5 * energy[0]) and energy[-1] < 0.9 * energy[0]


def test_energy_is_its_formula(key):
    problem = problem_of(key, (2, 3, 2))
    u = np.asarray(jax.random.uniform(jax.random.key(5), (2, 3, 2)))
    expected = (np.asarray(problem.reliability) * (u - np.asarray(problem.measured)) ** 2).sum()
    for axis, weight in enumerate(problem.similarity):
        expected += (np.asarray(weight) * (1 - np.exp(-8.0 * np.diff(u, axis=axis) ** 2)) / 8.0).sum()
    assert float(volume_energy(problem, jnp.asarray(u))) == pytest.approx(expected, rel=1e-5)


def test_no_strength_and_a_constant_volume_change_nothing(key):
    none = problem_of(key, strength=0.0)
    np.testing.assert_array_equal(regularize_volume(none, 3, 5), none.measured)
    flat = problem_of(key)._replace(measured=jnp.full((4, 5, 6), 0.3))
    np.testing.assert_array_equal(regularize_volume(flat, 3, 5), flat.measured)


@functools.cache
def applied(name):
    return on_host(lambda frames, focus: estimators.build(model_preset(name)).apply({}, frames, focus)[0])


@pytest.mark.parametrize("name", METHODS)
def test_any_length_and_size_and_a_batch_is_one_by_one(name, key):
    apply = applied(name)
    frames = jax.random.uniform(key, (2, 5, 21, 27, 3))
    focus = jnp.array([[1.0, 2.0, 3.0, 5.0, 5.5], [10.0, 11.0, 12.0, 14.0, 20.0]])
    both = apply(frames, focus)
    assert both.depth.shape == (2, 21, 27) and both.all_in_focus.shape == (2, 21, 27, 3)
    assert both.history.iterates.shape == (2, 1, 21, 27) and both.history.candidates.shape == (2, 21, 27, 1)
    assert (both.depth >= focus[:, :1, None]).all() and (both.depth <= focus[:, -1:, None]).all()
    assert (both.confidence >= 0).all() and (both.confidence <= 1).all()
    one = apply(frames[1:], focus[1:])
    np.testing.assert_allclose(both.depth[1:], one.depth, atol=1e-3)
    two = apply(frames[:1, :2], focus[:1, :2])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((both, two)))
    grey = apply(jnp.full((1, 3, 9, 7, 3), 0.5), focus[:1, :3])  # nothing to see
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grey)) and (grey.confidence == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_answer_follows_the_focus_axis(name, key):
    apply = applied(name)
    frames = jax.random.uniform(key, (1, 5, 21, 27, 3))
    focus = np.float32([[1.0, 2.0, 3.0, 5.0, 5.5]])
    moved = apply(frames, 7 + 3 * focus).depth
    off = np.abs(moved - (7 + 3 * apply(frames, focus).depth))
    assert np.quantile(off, 0.99) < 1e-2  # a tie of two frames may be broken otherwise


@pytest.fixture(scope="module")
def plane():
    """A slanted textured plane over uneven focus settings: frames, focus, depth."""
    rgb = 0.25 + 0.5 * jax.random.uniform(jax.random.key(0), (64, 96, 3))
    depth = jnp.broadcast_to(jnp.linspace(20.0, 80.0, 96), (64, 96))
    focus = jnp.linspace(10.0, 100.0, 15) + jnp.sin(jnp.arange(15.0))
    return render_stack(rgb, depth, focus, blur_per_q=0.12, max_radius=10, num_layers=48), focus, depth


@pytest.mark.parametrize("name", METHODS)
def test_a_slanted_plane_is_recovered_within_a_quarter_of_a_slice(name, plane):
    frames, focus, depth = plane
    answer = applied(name)(frames[None], focus[None])
    error = jnp.abs(answer.depth[0] - depth)[8:-8, 8:-8]
    assert jnp.mean(error) < 90.0 / 14 / 4


def test_both_are_better_than_sml_on_most_noisy_worlds(small_world):
    worlds = make_batch(jax.random.split(jax.random.key(3), 6), small_world, noise=0.03)
    mae = {
        name: jnp.abs(applied(name)(worlds.frames, worlds.focus).depth - worlds.depth).mean((1, 2))
        for name in (*METHODS, "sml")
    }
    assert (mae["rdf"] < mae["sml"]).sum() >= 4  # its wider window also sees the blur of an edge from further off
    assert (mae["rfvr_like"] < mae["sml"]).all()
