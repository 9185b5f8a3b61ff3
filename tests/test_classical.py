import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from dff_jax import estimators
from dff_jax.classical import box_mean, gaussian_peak, modified_laplacian, peak_confidence, sharp_composite
from dff_jax.classical.peak import interpolation_weights
from dff_jax.config import classical
from dff_jax.optics import render_stack


@pytest.mark.parametrize("window", [1, 3, 9, 21])
def test_box_mean_equals_scipy(window):
    x = np.random.default_rng(0).random((2, 30, 41), np.float32)
    expected = uniform_filter(x, (1, window, window), mode="nearest")
    np.testing.assert_allclose(box_mean(jnp.asarray(x), window), expected, atol=1e-6)


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


def test_rendered_slanted_plane_is_recovered_within_a_quarter_of_a_slice():
    rgb = jax.random.uniform(jax.random.key(0), (96, 128, 3))
    rgb = 0.5 * rgb + 0.25
    depth = jnp.broadcast_to(jnp.linspace(20.0, 80.0, 128), (96, 128))
    focus = jnp.linspace(10.0, 100.0, 15)
    frames = render_stack(rgb, depth, focus, blur_per_q=0.12, max_radius=10, num_layers=48)
    estimator = estimators.build(classical())
    prediction, _ = jax.jit(estimator.apply)({}, frames[None], focus[None])
    error = jnp.abs(prediction.depth[0] - depth)[8:-8, 8:-8]
    slice_width = 90.0 / 14
    assert jnp.median(error) < slice_width / 4
    assert jnp.mean(error) < slice_width / 4
