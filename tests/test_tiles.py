"""Large pictures in pieces: no seams."""

import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.prediction import estimate
from dff_jax.tiles import split
from dff_jax.types import Estimator, FocalStack, Prediction


def local(radius=3):
    """An estimator that sees `radius` pixels: the mean around, times the last focus setting."""

    def apply(variables, frames, focus, *, train=False, num_iterations=None):
        gray = frames.mean(axis=(1, 4))
        padded = jnp.pad(gray, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
        h, w = gray.shape[1:]
        size = 2 * radius + 1
        mean = sum(padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)) / size**2
        return Prediction(mean * focus[0, -1], mean, mean**2, frames[:, 0]), {}

    return Estimator(lambda key, frames, focus: {}, apply)


@pytest.mark.parametrize("size", [(200, 333), (97, 640), (65, 1000), (129, 131), (500, 64)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, 32), (96, 8)])
def test_tiles_cover_once_and_have_one_shape(size, tile, overlap):
    total = np.zeros(size)
    shapes = set()
    for part in split(*size, tile, overlap):
        assert part.weight.min() >= 0
        shapes.add(part.weight.shape)
        total[part.rows, part.columns] += part.weight
        assert total[part.rows, part.columns].shape == part.weight.shape
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    (shape,) = shapes
    assert shape == size or max(shape) <= tile


def test_small_pictures_stay_whole():
    assert len(list(split(768, 768, 512, 64))) == 1
    assert len(list(split(769, 768, 512, 64))) > 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_tiled_equals_untiled_for_what_looks_near(kind):
    frames = np.random.default_rng(1).random((3, 150, 230, 3))
    frames = frames.astype(np.float32) if kind is np.float32 else (frames * np.iinfo(kind).max).astype(kind)
    stack = FocalStack(frames, np.array([1.0, 2.0, 5.0]), "disparity")
    estimator = local(radius=4)  # a quarter of the overlap
    whole = estimate(estimator, {}, stack, tile=512)
    tiled = estimate(estimator, {}, stack, tile=64, overlap=16)
    for a, b in zip(whole, tiled, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert 0.3 < whole[1].mean() < 0.7  # scaled to [0,1] whatever the type
