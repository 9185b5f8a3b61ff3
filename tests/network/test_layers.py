"""The layers that the networks share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import on_host

from dff_jax.network.layers import Conv, TorchBatchNorm, resize, torch_bias, torch_default


def test_torch_batch_norm_keeps_the_unbiased_variance(key):
    x = 3 + 2 * jax.random.normal(key, (2, 1, 2, 2, 3))
    norm = TorchBatchNorm()
    variables = norm.init(key, x, False)
    y, changed = norm.apply(variables, x, True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64).reshape(-1, 3)
    expected = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 3), expected, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-5)


def test_torchs_default_initialisation(key):
    kernel, bias = torch_default(key, (3, 4, 4, 8, 500)), torch_bias(3 * 4 * 4 * 8)(key, (5000,))
    for values in (kernel, bias):
        bound = (3 * 4 * 4 * 8) ** -0.5
        assert 0.99 * bound < float(jnp.abs(values).max()) <= bound
        assert float(jnp.std(values)) == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("kernel", "stride", "bias", "upsample"),
    [(3, 1, True, False), (1, 1, True, False), (3, 2, False, False), (3, 1, False, True)],
)
def test_convolution_of_parts_is_that_of_what_they_are_side_by_side(key, kernel, stride, bias, upsample, monkeypatch):
    layer = Conv(4, kernel, stride, use_bias=bias, bias_init=jax.nn.initializers.normal(), upsample=upsample)
    parts = [jax.random.normal(jax.random.fold_in(key, c), (2, 3, 6, 8, c)) for c in (5, 1, 3)]
    together = jnp.concatenate(parts, -1)
    flat = together.reshape(6, 6, 8, 9)
    init = on_host(layer.init)
    params = init(key, flat)
    chex.assert_trees_all_equal(params, init(key, *(p.reshape(6, 6, 8, -1) for p in parts)))

    def whole(params):
        return layer.apply(params, flat)

    def summed(params):
        y = layer.apply(params, *parts)
        return y.reshape(6, *y.shape[2:])

    def value_and_gradient(f):
        return jax.jit(lambda params: (f(params), jax.grad(lambda params: jnp.sin(f(params)).sum())(params)))(params)

    expected, gradient = value_and_gradient(whole)
    got, gradient_of_parts = value_and_gradient(summed)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    chex.assert_trees_all_close(gradient_of_parts, gradient, atol=1e-4)
    mixed = [part.astype(jnp.bfloat16 if i == 0 else jnp.float32) for i, part in enumerate(parts)]
    assert layer.apply(params, *mixed).dtype == jnp.bfloat16
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layer.apply(params, *mixed).dtype == jnp.bfloat16
    np.testing.assert_allclose(layer.apply(params, *parts).reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 15), (9, 20), (7, 4), (3, 5)])  # by shifts, then by matrices; nothing to do
def test_resize_is_bilinear(key, size):
    x = jax.random.normal(key, (2, 3, 5, 4))
    expected = jax.image.resize(x, (2, *size, 4), "bilinear", antialias=False)
    np.testing.assert_allclose(resize(x, *size), expected, atol=1e-5)
