"""bfloat16 in the networks, float32 around them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import estimators
from dff_jax.config import DTYPES, AiFDNet, DWild, dfv_diff, physical, tiny
from dff_jax.network.layers import Conv, Conv3d, ConvTranspose3d, Norm

FOCUS = jnp.linspace(10.0, 100.0, 4)[None]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv(5), (2, 4, 6, 3)), (Conv(5, upsample=True, use_bias=False), (2, 4, 6, 3)),
        (Conv3d(5, use_bias=True), (1, 3, 4, 6, 3)), (ConvTranspose3d(5, use_bias=True), (1, 3, 4, 6, 3)),
    ],
)  # fmt: skip
def test_layers_compute_in_the_type_of_their_input(key, layer, shape):
    x = jax.random.normal(key, shape)
    variables = layer.init(key, x)
    half = layer.apply(variables, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    np.testing.assert_allclose(half.astype(jnp.float32), layer.apply(variables, x), atol=0.05)


@pytest.mark.parametrize("kind", ["batch", "torch_batch", "group"])
def test_norms_keep_float32_statistics(key, kind):
    x = 100 + jax.random.normal(key, (2, 8, 8, 8))  # in bfloat16 the mean of these would be off by a tenth
    x = x.astype(jnp.bfloat16)
    norm = Norm(kind)
    variables = norm.init(key, x, False)
    y, changed = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    for name, value in jax.tree_util.tree_leaves_with_path(changed):
        assert value.dtype == jnp.float32
        if "mean" in jax.tree_util.keystr(name):
            np.testing.assert_allclose(value, 0.1 * np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-4)


def measured():
    return dataclasses.replace(tiny(), measured_candidates=True)


@pytest.mark.parametrize("preset", [tiny, measured, physical, dfv_diff, AiFDNet, DWild], ids=lambda f: f.__name__)
def test_answers_and_variables_are_float32(key, preset):
    frames = jax.ShapeDtypeStruct((1, 4, 64, 64, 3), jnp.float32)
    half = estimators.build(dataclasses.replace(preset(), dtype="bfloat16"))
    variables = jax.eval_shape(half.init, key, frames, FOCUS)
    for train in (False, True):
        apply = functools.partial(half.apply, train=train)
        for leaf in jax.tree.leaves((variables, jax.eval_shape(apply, variables, frames, FOCUS))):
            assert leaf.dtype == jnp.float32 or not jnp.issubdtype(leaf.dtype, jnp.floating)


@pytest.mark.slow
def test_answers_are_near_those_of_float32(key):
    frames = jax.random.uniform(key, (1, 4, 32, 32, 3))
    model = dataclasses.replace(tiny(), num_iterations=1, prox_levels=1)
    single, half = (estimators.build(dataclasses.replace(model, dtype=dtype)) for dtype in DTYPES)
    variables = single.init(key, frames, FOCUS)
    depths = [jax.jit(lambda v, e=e: e.apply(v, frames, FOCUS)[0].depth)(variables) for e in (single, half)]
    apart = np.abs(depths[1] - depths[0])
    assert 0 < apart.max() and apart.mean() < 0.02 * 90
