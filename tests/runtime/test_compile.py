"""`compilation.jit` is `jax.jit` but for the compiler's options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.runtime import compile as compilation


@pytest.fixture
def no_memory():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_same_results_static_arguments_and_lowering(key):
    @functools.partial(compilation.jit, static_argnames="power")
    def raised(x, power):
        assert isinstance(power, int)
        return x**power

    x = jax.random.normal(key, (3, 4))
    np.testing.assert_allclose(raised(x, power=3), x**3, rtol=1e-6)
    assert raised.__name__ == "raised"
    assert raised.lower(x, power=2).compile()(x).shape == (3, 4)


def test_options_reach_the_compiler_on_cpu(key):
    if compilation.compiler_options() is None:
        pytest.skip("this XLA does not know the option")
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME")  # noqa: E731
    x, kernel = jnp.ones((1, 8, 16, 16)), jnp.ones((8, 8, 3, 3))
    assert "ynn" not in compilation.jit(convolve).lower(x, kernel).compile().as_text()


def test_without_options_on_other_devices_and_on_an_xla_that_knows_none(no_memory, monkeypatch):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_no_such_option": ""})
    assert compilation.compiler_options() is None
    compilation.compiler_options.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() is None
