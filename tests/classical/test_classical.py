"""Focus measures, peaks, aggregation and candidates against closed forms and rendered scenes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import classical, estimators
from dff_jax.classical import (
    Candidates,
    aggregation,
    gradient_magnitude,
    luminance,
    modified_laplacian,
    peak_confidence,
    ring_difference,
    sharp_composite,
)
from dff_jax.classical.candidates import MEASURES, SCALES
from dff_jax.classical.peak import interpolation_weights
from dff_jax.config import SML, Classical
from dff_jax.ops.windows import box_mean
from dff_jax.optics import add_sensor_noise, render_stack
from dff_jax.unroll import energies

# compiled whole: operation by operation they take several times as long
gaussian_peak = jax.jit(classical.gaussian_peak)
symmetric_peak = jax.jit(classical.symmetric_peak)
measure_candidates = jax.jit(classical.measure_candidates)
candidate_weights = jax.jit(classical.candidate_weights)


def guided_mean(volume, guide, radius, epsilon):
    return jax.jit(partial(classical.guided_mean, radius=radius, epsilon=epsilon))(volume, guide)


def test_modified_laplacian_closed_forms():
    y, x = jnp.mgrid[:12, :15].astype(jnp.float32)
    inside = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(modified_laplacian(3 * x + 2 * y)[inside], 0.0, atol=1e-4)
    np.testing.assert_allclose(modified_laplacian(x**2 - 2 * y**2)[inside], 2.0 + 4.0, atol=1e-3)


@pytest.mark.parametrize("spacing", ["even", "uneven"])
def test_gaussian_peak_recovers_a_gaussian_exactly(spacing):
    q = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]) if spacing == "even" else jnp.array([1.0, 1.7, 3.1, 4.0, 5.5])
    truth = jnp.linspace(1.9, 4.4, 6).reshape(1, 2, 3)
    measure = jnp.exp(-((q[None, :, None, None] - truth[:, None]) ** 2) / 1.5)
    np.testing.assert_allclose(gaussian_peak(measure, q[None], floor=0.0), truth, atol=2e-4)


def test_gaussian_peak_at_the_ends_and_in_flat_curves_returns_a_setting():
    q = jnp.array([[1.0, 2.0, 4.0]])
    rising = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert gaussian_peak(rising, q)[0, 0, 0] == 4.0
    assert gaussian_peak(rising[:, ::-1], q)[0, 0, 0] == 1.0
    assert jnp.isfinite(gaussian_peak(jnp.zeros((1, 3, 1, 1)), q)).all()
    assert gaussian_peak(rising[:, :2], q[:, :2])[0, 0, 0] == 2.0


def test_interpolation_weights_read_the_axis_back():
    focus = jnp.array([[1.0, 2.0, 5.0, 5.5]])
    depth = jnp.array([1.0, 1.4, 3.3, 5.1, 5.5, 9.0, -3.0]).reshape(1, 1, 7)
    weights = interpolation_weights(depth, focus)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    read = jnp.einsum("bzhw,bz->bhw", weights, focus)
    np.testing.assert_allclose(read, jnp.clip(depth, 1.0, 5.5), atol=1e-5)
    frames = jnp.broadcast_to(focus[..., None, None, None], (1, 4, 1, 7, 3))
    np.testing.assert_allclose(sharp_composite(frames, depth, focus)[..., 0], read, atol=1e-5)


def test_confidence_is_high_where_there_is_a_peak():
    flat, peaked = jnp.full((5,), 0.1), jnp.array([0.0, 0.02, 0.3, 0.02, 0.0])
    measure = jnp.stack([flat, peaked], -1).reshape(1, 5, 1, 2)
    low, high = peak_confidence(measure)[0, 0]
    assert low < 0.05 < 0.6 < high <= 1


def test_gradient_magnitude_and_ring_difference_closed_forms():
    y, x = jnp.mgrid[:16, :20].astype(jnp.float32)
    inside = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(gradient_magnitude(3 * x + 4 * y)[inside], 5.0, rtol=1e-5)
    np.testing.assert_allclose(ring_difference(3 * x + 4 * y)[inside], 0.0, atol=1e-4)
    # the mean of x^2 over offsets -3..3 and -1..1 in a square: (49 * 4 - 9 * 2/3) / 40
    np.testing.assert_allclose(ring_difference(x**2)[inside], (49 * 4 - 6) / 40, rtol=1e-3)
    dot = jnp.zeros((16, 20)).at[8, 10].set(1.0)
    ring = ring_difference(dot)
    assert ring[8, 10] == pytest.approx(1.0, abs=1e-6) and ring[8, 11] == pytest.approx(0.0, abs=1e-6)  # in the gap
    assert ring[8, 12] == pytest.approx(1 / 40, abs=1e-6) and ring[8, 14] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("spacing", ["even", "uneven"])
def test_symmetric_peak_recovers_a_gaussian_between_frames(spacing):
    q = jnp.linspace(10.0, 60.0, 15)
    if spacing == "uneven":
        q = q + jnp.sin(7 * q)
    truth = jnp.linspace(22.0, 48.0, 12).reshape(1, 3, 4)
    measure = 0.02 * jnp.exp(-0.5 * ((q[None, :, None, None] - truth[:, None]) / 6.0) ** 2)
    found = symmetric_peak(measure, q[None])
    np.testing.assert_allclose(found.position, truth, atol=0.07)  # flanks are read linearly; frames are 3.6 apart
    np.testing.assert_allclose(
        found.prominence, (measure.max(1) - measure.mean(1)) / measure.mean(1), rtol=1e-5
    )


def test_symmetric_peak_finds_the_middle_of_a_plateau_where_three_samples_follow_the_noise(key):
    """Depth of field: five frames are equally sharp, up to noise."""
    q = jnp.linspace(0.0, 14.0, 15)
    curve = 1 / (1 + jnp.maximum(jnp.abs(q - 7.0) - 2.4, 0.0) ** 2)
    measure = curve[None, :, None, None] * (1 + 0.02 * jax.random.normal(key, (1, 15, 20, 20)))
    fitted = jnp.abs(symmetric_peak(measure, q[None]).position - 7.0).mean()
    assert fitted < 0.1 < 0.8 < jnp.abs(gaussian_peak(measure, q[None]) - 7.0).mean()


def test_symmetric_peak_is_not_drawn_to_the_nearest_of_few_frames():
    """Photographed texture: sharpness falls from a sharp summit in a straight line, in its logarithm, or flatter."""
    q = jnp.linspace(10.0, 60.0, 5)
    truth = jnp.linspace(22.5, 47.5, 41)
    off = jnp.abs(q[:, None] - truth[None]) / 12.5
    for curve, most, least in ((0.02 + jnp.exp(-3 * off), 0.35, 0.8), ((1 + 6 * off**2) ** -1.5, 0.6, 1.2)):
        measure = curve[None, :, :, None]
        error = lambda peak: jnp.abs(peak[0, :, 0] - truth).max()  # noqa: E731
        assert error(symmetric_peak(measure, q[None]).position) < most
        assert error(gaussian_peak(measure, q[None])) > least


def test_symmetric_peak_beside_the_ends_of_few_frames():
    q = jnp.linspace(10.0, 60.0, 5)
    truth = jnp.array([8.0, 10.0, 13.0, 15.0, 55.0, 57.0, 60.0, 63.0])
    measure = jnp.exp(-2.5 * jnp.abs(q[:, None] - truth[None]) / 12.5)[None, :, :, None]
    found = symmetric_peak(measure, q[None]).position[0, :, 0]
    np.testing.assert_allclose(found, jnp.clip(truth, 10.0, 60.0), atol=0.3)
    dense = jnp.linspace(10.0, 60.0, 40)  # three frames that are about equally sharp say nothing
    flat = (1 / (1 + ((dense - 62.0) / 12) ** 2)).reshape(1, 40, 1, 1)
    assert symmetric_peak(flat, dense[None]).position[0, 0, 0] == 60.0


@pytest.mark.parametrize("before", [(), (0.05,), (0.6,), (0.9,), (0.4, 0.7, 0.85)])
def test_symmetric_peak_moves_smoothly_where_two_frames_tie(before):
    """Also at an end, and when both are equal to the last bit."""
    near_one = np.float32(1) + np.float32([-1e-4, -1e-6, -1.2e-7, 0, 1.2e-7, 1e-6, 1e-4])
    for after in ((), (0.9, 0.7), (0.5, 0.1)):
        curves = [[*before, 1.0, y, *after] for y in near_one]
        num = len(curves[0])
        if num < 3:
            continue
        measure, q = jnp.array(curves).T[None, :, :, None], jnp.arange(num * 1.0)[None]
        for way in (1, -1):
            found = symmetric_peak(measure[:, ::way], q).position[0, :, 0]
            assert np.ptp(found) < 2e-3
            if not before or not after:  # nothing speaks against the middle of the two
                middle = len(before) + 0.5
                np.testing.assert_allclose(found, middle if way == 1 else num - 1 - middle, atol=2e-3)


def test_symmetric_peak_at_an_end_where_the_curve_is_round():
    q = jnp.linspace(0.0, 1.0, 41)
    truth = jnp.array([-0.02, 0.0, 0.004, 0.008, 0.5])
    curve = jnp.exp(-4 * (q[:, None] - truth[None]) ** 2)[None, :, :, None]
    found = symmetric_peak(curve, q[None]).position[0, :, 0]
    np.testing.assert_allclose(found, jnp.clip(truth, 0.0, 1.0), atol=1e-3)


def test_symmetric_peak_keeps_to_its_own_summit_and_to_the_frames():
    q = jnp.linspace(0.0, 14.0, 15)
    bump = lambda at, height: height * jnp.exp(-0.5 * (q - at) ** 2)  # noqa: E731
    two = (bump(3.3, 1.0) + bump(10.0, 0.8)).reshape(1, 15, 1, 1)
    assert symmetric_peak(two, q[None]).position[0, 0, 0] == pytest.approx(3.3, abs=0.05)
    rising = jnp.exp(0.3 * q).reshape(1, 15, 1, 1)
    assert symmetric_peak(rising, q[None]).position[0, 0, 0] == pytest.approx(14.0, abs=0.5)
    steep = jnp.exp(3.0 * q[:4]).reshape(1, 4, 1, 1)  # one frame reaches the height that is fitted
    for scale in (1.0, 1.0000001, 0.3333333, 7.77):
        assert symmetric_peak(scale * steep, q[None, :4]).position[0, 0, 0] == pytest.approx(3.0, abs=0.02)
        assert symmetric_peak(scale * steep[:, ::-1], q[None, :4]).position[0, 0, 0] == pytest.approx(0.0, abs=0.02)
    for num in (2, 3):
        flat = symmetric_peak(jnp.zeros((1, num, 1, 2)), q[None, :num])
        assert jnp.isfinite(flat.position).all() and (flat.prominence == 0).all()
    assert symmetric_peak(rising[:, :2], q[None, :2]).position[0, 0, 0] == 1.0


def test_guided_mean_keeps_to_the_edges_of_its_guide(key):
    guide = jnp.broadcast_to((jnp.arange(40) >= 20) * 0.8, (1, 30, 40))
    noise = jax.random.uniform(key, (1, 2, 30, 40))
    volume = jnp.where(guide[:, None] > 0, 5.0, 1.0) + 0.5 * noise
    mean = guided_mean(volume, guide, 4, 1e-3)
    assert jnp.abs(mean[..., 18:20] - 1.25).max() < 0.2 and jnp.abs(mean[..., 20:22] - 5.25).max() < 0.2
    assert jnp.abs(box_mean(volume, 9)[..., 19:21] - 3.25).max() < 0.6  # a box mixes the two
    assert mean[..., 22:].std() < 0.3 * volume[..., 22:].std()  # and it does average
    np.testing.assert_allclose(guided_mean(jnp.full((1, 2, 30, 40), 3.0), guide, 4, 1e-3), 3.0, rtol=1e-5)


def test_guided_mean_frame_by_frame_is_the_same(key, monkeypatch):
    volume, guide = jax.random.uniform(key, (2, 3, 20, 30)), jax.random.uniform(key, (2, 20, 30))
    together = guided_mean(volume, guide, 3, 1e-3)
    monkeypatch.setattr(aggregation, "_AT_ONCE", 0)
    np.testing.assert_allclose(guided_mean(volume, guide, 3, 1e-3), together, rtol=1e-5)


def test_weights_are_near_zero_without_texture_and_not_with_it(key):
    frames = jax.random.uniform(key, (1, 15, 48, 48))
    curve = jnp.exp(-0.5 * ((jnp.arange(15) - 7) / 3.0) ** 2)[None, :, None, None]
    frames = 0.5 + 0.3 * curve * (jax.random.uniform(jax.random.key(1), (1, 1, 48, 48)) - 0.5)
    frames = frames.at[..., 24:].set(0.5)
    frames = frames + 0.004 * jax.random.normal(key, frames.shape)
    focus = jnp.linspace(0.0, 1.0, 15)[None]
    found = measure_candidates(frames, focus, frames[:, 7])
    S = candidate_weights(found, jnp.full((1, 1, 1), 0.1)).sum(-1)
    textured, empty = S[0, 6:-6, 6:14], S[0, 6:-6, -12:-4]
    assert textured.min() > 0.03 and empty.mean() < 0.05 * textured.mean()
    assert (S >= 0).all() and (S <= 1).all()


def test_noise_alone_has_about_the_prominence_that_is_taken_off(key):
    frames = 0.5 + 0.01 * jax.random.normal(key, (1, 15, 64, 64))
    found = measure_candidates(frames, jnp.linspace(0.0, 1.0, 15)[None], jnp.full((1, 64, 64), 0.5))
    ratio = found.prominence.mean((0, 1, 2)) / found.noise
    assert ratio.shape == (len(MEASURES) * len(SCALES),)
    assert (ratio > 0.2).all() and (ratio < 2.0).all()


def test_candidate_weights_distrust_the_one_that_contradicts_the_others():
    num = len(MEASURES) * len(SCALES)
    depth = jnp.full((1, 4, 4, num), 0.3).at[..., 1].set(0.9)
    candidates = Candidates(depth, jnp.ones((1, 4, 4, num)), jnp.zeros(num))
    weights = candidate_weights(candidates, jnp.full((1, 1, 1), 0.1))[0, 0, 0]
    assert weights[1] < 0.05 * weights[0] and weights[0] == weights[2]
    assert weights[3] == pytest.approx(float(weights[0]) / 8, rel=1e-4)  # twice the scale, fine first
    moved = candidate_weights(candidates._replace(depth=10 + 50 * depth), jnp.full((1, 1, 1), 5.0))[0, 0, 0]
    np.testing.assert_allclose(moved, weights, rtol=1e-3)  # whatever the unit


def scene(key, shape=(96, 128)):
    """A slanted background behind a nearer plane, all textured but for a bare patch in the latter; noise."""
    rgb = 0.25 + 0.5 * jax.random.uniform(key, (*shape, 3))
    depth = jnp.broadcast_to(jnp.linspace(20.0, 40.0, shape[1]), shape)
    depth = depth.at[20:76, 40:100].set(52.0)
    rgb = rgb.at[20:76, 40:100].multiply(0.5).at[36:56, 60:80].set(0.3)
    focus = jnp.linspace(10.0, 60.0, 15)
    frames = render_stack(rgb, depth, focus, blur_per_q=0.1, max_radius=6, num_layers=24)
    return add_sensor_noise(key, frames, 1 / 255), focus, depth


@pytest.mark.slow
def test_classical_is_better_than_sml_and_its_solver_lowers_the_energy(key):
    frames, focus, depth = scene(key)
    estimator, plain = estimators.build(Classical()), estimators.build(SML())
    apply = jax.jit(estimator.apply, static_argnames="num_iterations")
    answer, _ = apply({}, frames[None], focus[None], num_iterations=5)
    mae = lambda d: float(jnp.abs(d[0] - depth).mean())  # noqa: E731
    reference = jax.jit(plain.apply)({}, frames[None], focus[None])[0].depth
    stages = [mae(answer.history.iterates[:, k]) for k in range(6)]
    assert stages[-1] < 0.7 * mae(reference) and stages[-1] < 1.01 * stages[0]
    patch = (slice(40, 52), slice(64, 76))
    bare = jnp.abs(answer.history.iterates[0] - depth[None])[:, *patch].mean((1, 2))
    assert bare[-1] < 0.95 * bare[0]  # total variation helps where nothing is seen
    assert jnp.abs(answer.depth[0] - depth)[patch].mean() < 3.0 < jnp.abs(reference[0] - depth)[patch].mean()
    assert answer.confidence[0][patch].mean() < 0.75 * answer.confidence[0].mean()

    h = answer.history
    assert h.candidates.shape == (1, 96, 128, 9) == h.weights.shape and h.iterates.shape == (1, 6, 96, 128)
    np.testing.assert_array_equal(answer.depth, h.iterates[:, -1])
    D0 = (h.weights * h.candidates).sum(-1) / h.weights.sum(-1)
    np.testing.assert_allclose(h.iterates[:, 0], D0, atol=1e-2)
    spread = 0.5 * (h.weights * (h.candidates - D0[..., None]) ** 2).sum(-1)
    np.testing.assert_allclose(answer.disagreement, spread, rtol=0.02, atol=1e-3)
    energy = energies(h.trace)[:, 0]
    assert (jnp.diff(energy) <= 1e-5 * energy[0]).all() and energy[-1] < 0.95 * energy[0]


@pytest.mark.slow
def test_classical_takes_any_size_and_unit_and_no_iterations(key):
    estimator = estimators.build(Classical())
    apply = jax.jit(estimator.apply, static_argnames="num_iterations")
    frames = jax.random.uniform(key, (2, 4, 33, 45, 3))
    focus = jnp.array([[1.0, 2.0, 3.0, 5.0], [10.0, 11.0, 12.0, 14.0]])
    answer, _ = apply({}, frames, focus, num_iterations=0)
    assert answer.depth.shape == (2, 33, 45) and answer.history.iterates.shape == (2, 1, 33, 45)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(answer))
    assert (answer.depth >= focus[:, :1, None]).all() and (answer.depth <= focus[:, -1:, None]).all()
    moved, _ = apply({}, frames, 7 + 3 * focus, num_iterations=0)
    np.testing.assert_allclose(moved.depth, 7 + 3 * answer.depth, atol=1e-2)
    np.testing.assert_allclose(moved.disagreement, 9 * answer.disagreement, rtol=0.05, atol=1e-3)
    two, _ = jax.jit(estimator.apply)({}, frames[:, :2], focus[:, :2])
    assert jnp.isfinite(two.depth).all()


def test_luminance_weights_sum_to_one():
    assert luminance(jnp.ones((1, 3)))[0] == pytest.approx(1.0)


def test_rendered_slanted_plane_is_recovered_within_a_quarter_of_a_slice():
    rgb = jax.random.uniform(jax.random.key(0), (96, 128, 3))
    rgb = 0.5 * rgb + 0.25
    depth = jnp.broadcast_to(jnp.linspace(20.0, 80.0, 128), (96, 128))
    focus = jnp.linspace(10.0, 100.0, 15)
    frames = render_stack(rgb, depth, focus, blur_per_q=0.12, max_radius=10, num_layers=48)
    estimator = estimators.build(SML())
    prediction, _ = jax.jit(estimator.apply)({}, frames[None], focus[None])
    error = jnp.abs(prediction.depth[0] - depth)[8:-8, 8:-8]
    slice_width = 90.0 / 14
    assert jnp.median(error) < slice_width / 4
    assert jnp.mean(error) < slice_width / 4
