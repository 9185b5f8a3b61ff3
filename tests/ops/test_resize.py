"""Enlarging by whole numbers against JAX's own resize."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from dff_jax.ops.resize import enlarge_axis


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarging_equals_a_bilinear_resize(key, factor):
    x = jax.random.normal(key, (2, 3, 5, 4))
    size = (2, 3 * factor, 5 * factor, 4)

    @partial(jax.jit, static_argnums=0)
    def values(f, x):
        y, pull = jax.vjp(f, x)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) / y.size**0.5)

    by_matrices = lambda x: jax.image.resize(x, size, "bilinear", antialias=False)  # noqa: E731
    by_shifts = lambda x: enlarge_axis(enlarge_axis(x, factor, 1), factor, 2)  # noqa: E731
    chex.assert_trees_all_close(values(by_shifts, x), values(by_matrices, x), atol=1e-5)
    chex.assert_trees_all_equal(enlarge_axis(jnp.ones((1, 1, 1, 1)), factor, 1), jnp.ones((1, factor, 1, 1)))
