"""PSNR and SSIM of all-in-focus images: closed forms, and SciPy's Gaussian filter."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dff_jax.evaluation import images


def by_scipy(x, y):
    """Mean SSIM of two images [H,W,C], in float64."""

    def mean(values):  # 11 taps, only windows inside
        smooth = [gaussian_filter(values[..., c], 1.5, truncate=3.5)[5:-5, 5:-5] for c in range(values.shape[-1])]
        return np.stack(smooth, -1)

    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()


def test_structural_similarity_is_scipys():
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.random((2, 20, 33, 3)), (0, 1, 1, 0)).astype(np.float32)
    y = (0.7 * x + 0.3 * rng.random(x.shape)).astype(np.float32)
    want = [by_scipy(*pair) for pair in zip(x, y, strict=True)]
    assert 0.2 < min(want) < max(want) < 0.95
    np.testing.assert_allclose(images.ssim(jnp.asarray(x), jnp.asarray(y)), want, rtol=1e-4)


def test_closed_forms():
    rng = np.random.default_rng(1)
    picture = jnp.asarray(rng.random((1, 16, 16, 3)), jnp.float32)
    a, b = jnp.full_like(picture, 0.25), jnp.full_like(picture, 0.75)
    same, constant = images.measure([picture], picture)[0], images.measure([a], b)[0]
    np.testing.assert_allclose(same, [[0.0], [1.0]], atol=1e-6)
    luminance = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    np.testing.assert_allclose(constant, [[0.25], [luminance]], rtol=1e-4)
    negative = images.ssim(picture, 1 - picture)
    assert -1 <= float(negative[0]) < -0.3
    assert np.isnan(images.ssim(picture[:, :9], picture[:, :9])).all()  # smaller than the window


def test_metrics_are_means_over_stacks():
    batches = [np.array([[[0.01, 0.0001], [0.5, 0.7]]]), np.array([[[0.001], [0.9]]])]
    found = images.summarize(["final"], batches)
    assert found == {"final": {"PSNR": pytest.approx(30.0), "SSIM": pytest.approx(0.7), "stacks": 3}}
    assert images.summarize(["final"], []) == {}
