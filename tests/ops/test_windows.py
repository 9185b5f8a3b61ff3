"""Window operations by doubling against their plain forms and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import maximum_filter, uniform_filter

from dff_jax.ops.windows import box_mean, box_mean_by_lax, window_max, window_max_by_lax, window_sum


@pytest.mark.parametrize("window", [1, 3, 9, 21])
def test_box_mean_equals_its_plain_form_and_scipy(key, window):
    x = jax.random.uniform(key, (2, 30, 41))
    found = box_mean(x, window)
    np.testing.assert_allclose(found, box_mean_by_lax(x, window), atol=5e-6)  # it adds 441 numbers one by one
    np.testing.assert_allclose(found, uniform_filter(np.asarray(x), (1, window, window), mode="nearest"), atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_window_max_equals_its_plain_form_and_scipy(key, window):
    x = jax.random.normal(key, (2, 11, 13))
    found = window_max(x, window)
    np.testing.assert_array_equal(found, window_max_by_lax(x, window))
    start = window // 2  # scipy's window begins so far before its pixel
    expected = maximum_filter(np.asarray(x), (1, window, window))
    np.testing.assert_array_equal(found, expected[:, start : start + 12 - window, start : start + 14 - window])


@pytest.mark.parametrize("window", [1, 4, 7])
def test_window_sum_equals_a_convolution_with_ones(window):
    x = np.arange(20.0, dtype=np.float32) ** 2
    np.testing.assert_allclose(window_sum(jnp.asarray(x), window, 0), np.convolve(x, np.ones(window), "valid"))
