"""Convolutions and poolings of volumes: what runs on a CPU against XLA's own."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dff_jax.ops import convolutions


def same_values_and_gradients(f, g, *args):
    @partial(jax.jit, static_argnums=0)
    def values(f, *args):
        y, pull = jax.vjp(f, *args)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) / y.size**0.5)

    chex.assert_trees_all_close(values(f, *args), values(g, *args), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "height"),
    [
        ((3, 3, 3), 1, 1, 5), ((3, 3, 3), 2, 1, 6), ((7, 7, 7), 2, 1, 8), ((1, 9, 9), 1, 2, 6),
        ((1, 3, 3), 1, 2, 5), ((3, 1, 1), 1, 1, 4), ((1, 1, 1), 1, 1, 4),
    ],
)  # fmt: skip
def test_convolution_by_slices_equals_xlas(key, size, stride, dilation, height):
    x = jax.random.normal(key, (2, 4, height, 6, 3))
    kernel = jax.random.normal(key, (*size, 3, 5)) / np.prod(size) ** 0.5 / 3**0.5
    options = {"stride": stride, "dilation": dilation}
    by_lax = lambda x, kernel: convolutions.conv3d_by_lax(x, kernel, **options)  # noqa: E731
    for lowered in (convolutions.conv3d_by_slices, convolutions.conv3d):
        same_values_and_gradients(lambda x, kernel, f=lowered: f(x, kernel, **options), by_lax, x, kernel)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "channels"),
    [
        ((3, 3), 1, ((1, 1), (1, 1)), (3, 5)), ((3, 3), 1, ((1, 1), (1, 1)), (8, 2)),  # few outputs: another product
        ((3, 3), 2, ((1, 1), (1, 1)), (3, 5)), ((7, 7), 2, ((3, 3), (3, 3)), (3, 4)),
        ((2, 2), 1, ((1, 1), (1, 1)), (4, 3)), ((3, 5), 1, ((0, 1), (2, 2)), (2, 2)),
    ],
)  # fmt: skip
def test_convolution_with_gradients_by_products_equals_xlas(key, size, stride, padding, channels):
    x = jax.random.normal(key, (2, 7, 9, channels[0]))
    kernel = jax.random.normal(key, (*size, *channels)) / np.prod(size)

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)

    by_products = lambda x, kernel: convolutions.conv_by_products(x, kernel, stride, padding)  # noqa: E731
    same_values_and_gradients(by_products, plain, x, kernel)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_large_batches_image_by_image(key, stride, monkeypatch):
    x, kernel = jax.random.normal(key, (3, 6, 8, 4)), jax.random.normal(key, (3, 3, 4, 5)) / 9
    f = lambda x, kernel: convolutions.conv_by_products(x, kernel, stride, ((1, 1), (1, 1)))  # noqa: E731
    expected, pull = jax.vjp(f, x, kernel)
    at_once = pull(expected)
    monkeypatch.setattr(convolutions, "_AT_ONCE", 10)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "scan" in str(jax.make_jaxpr(lambda x, k: jax.vjp(f, x, k)[1](expected))(x, kernel))
    for a, b in zip(jax.vjp(f, x, kernel)[1](expected), at_once, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("outputs", [2, 32])  # the three taps as one convolution, and as three
def test_convolution_by_taps_equals_xlas(key, outputs):
    x = jax.random.normal(key, (2, 4, 5, 6, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 3, outputs)) / 9
    same_values_and_gradients(convolutions.conv3d_by_slices, convolutions.conv3d_by_lax, x, kernel)


def test_convolution_of_an_enlarged_image_by_phases(key):
    x = jax.random.normal(key, (2, 3, 5, 4))
    kernel = jax.random.normal(key, (3, 3, 4, 6)) / 6

    def enlarged_first(x, kernel):
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    same_values_and_gradients(convolutions.conv_upsampled, enlarged_first, x, kernel)


@pytest.mark.parametrize("size", [(3, 3, 3), (3, 4, 4)])
def test_transposed_convolution_by_slices_equals_xlas_and_scatters(key, size):
    x = jax.random.normal(key, (1, 4, 3, 5, 3))
    kernel = jax.random.normal(key, (*size, 2, 3)) / 6
    same_values_and_gradients(
        convolutions.conv_transpose3d_by_slices, convolutions.conv_transpose3d_by_lax, x, kernel
    )
    # Its meaning: each voxel adds its kernel, two pixels from that of the next one; one voxel at the edges is cut
    whole = np.zeros((1, 4 + 2, 2 * 3 + 4, 2 * 5 + 4, 2))
    for z, i, j in np.ndindex(4, 3, 5):
        part = np.einsum("bc,zyxoc->bzyxo", x[:, z, i, j], kernel)
        whole[:, z : z + size[0], 2 * i : 2 * i + size[1], 2 * j : 2 * j + size[2]] += part
    found = convolutions.conv_transpose3d(x, kernel)
    np.testing.assert_allclose(found, whole[:, 1:5, 1:7, 1:11], atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), [((3, 3, 3), 1), ((1, 3, 3), 2), ((1, 2, 2), 2)])
def test_max_pool_equals_xlas_where_values_tie_too(key, window, stride):
    x = jax.random.randint(key, (2, 3, 6, 8, 2), -3, 3).astype(jnp.float32)
    padding = [(0, 0), *((k // 2 * (k % 2),) * 2 for k in window), (0, 0)]
    by_lax = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, 1, stride, stride, 1), padding)  # noqa: E731
    same_values_and_gradients(lambda x: convolutions.max_pool3d(x, window, stride), by_lax, x)
