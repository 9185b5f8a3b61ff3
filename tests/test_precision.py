"""bfloat16 in the networks, float32 around them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import estimators
from dff_jax.config import aifdnet, dfv_diff, dwild, tiny
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", [lambda: dataclasses.replace(tiny(), num_iterations=1), dfv_diff, aifdnet, dwild],
    ids=["tiny", "dfv_diff", "aifdnet", "dwild"],
)  # fmt: skip
def test_answers_are_float32_and_near(key, preset):
    frames = jax.random.uniform(key, (1, 4, 32, 32, 3))
    model = dataclasses.replace(preset(), width=0.1)
    single = estimators.build(model)
    half = estimators.build(dataclasses.replace(model, dtype="bfloat16"))
    variables = single.init(key, frames, FOCUS)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), e.init(key, frames, FOCUS)) for e in (single, half)]
    assert shapes[0] == shapes[1]

    def depth(estimator):
        answer = jax.jit(lambda v: estimator.apply(v, frames, FOCUS)[0])(variables)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(answer))
        return answer.depth

    apart = np.abs(depth(half) - depth(single))
    assert 0 < apart.max() and apart.mean() < 0.02 * 90
