"""Large pictures in pieces: no seams, within bounds, on several devices."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from dff_jax import config, estimators
from dff_jax.errors import InputError
from dff_jax.prediction import tiled, tiles
from dff_jax.prediction.tiles import TilingOptions, split
from dff_jax.types import Estimator, FocalStack, Prediction


def local(radius=3):
    """An estimator that sees `radius` pixels: the mean around, times the last focus setting."""

    def apply(variables, frames, focus, *, train=False, num_iterations=None):
        mean = frames.mean(axis=(1, 4))
        for axis in (1, 2):
            size = mean.shape[axis]
            padded = jnp.pad(mean, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="edge")
            shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * radius + 1)]
            mean = sum(shifted) / (2 * radius + 1)
        return Prediction(mean * focus[0, -1], mean, mean**2, frames[:, 0]), {}

    return Estimator(lambda key, frames, focus: {}, apply)


def estimate(estimator, variables, stack, *, available=np.inf, **options):
    """`tiled.estimate` with small tiles unless told otherwise."""
    return tiled.estimate(
        estimator, variables, stack, TilingOptions(**({"tile": 512, "overlap": 64} | options)), available=available
    )


def noise_stack(*shape, kind=np.uint8, seed=1):
    frames = np.random.default_rng(seed).random((*shape, 3))
    frames = frames.astype(np.float32) if kind is np.float32 else (frames * np.iinfo(kind).max).astype(kind)
    return FocalStack(frames, np.arange(1.0, shape[0] + 1), "disparity")


def scene(height, width, count=3):
    """A plane that is nearer to the right, where it has less texture, photographed at `count` settings."""
    noise = np.random.default_rng(0).random((height + 40, width + 40, 3)) - 0.5
    noise = 0.5 + noise * np.linspace(1, 0.1, width + 40)[:, None]
    steps = [noise]
    for _ in range(1, 4 * count):
        previous = steps[-1]
        steps.append(sum(np.roll(previous, d, axis) for d in (-1, 1) for axis in (0, 1)) / 8 + previous / 2)
    steps = np.stack(steps)[:, 20:-20, 20:-20]
    depth = np.broadcast_to(np.linspace(0, count - 1, width), (height, width))
    frames = []
    for z in range(count):
        blur = np.rint(4 * np.abs(depth - z)).astype(int)
        frames.append(np.take_along_axis(steps, blur[None, ..., None], 0)[0])
    return FocalStack(np.rint(255 * np.stack(frames)).astype(np.uint8), np.arange(float(count)), "index")


# Where tiles lie ------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 333), (97, 640), (129, 1000), (193, 195), (500, 64), (384, 1024)])
@pytest.mark.parametrize(("tile", "overlap"), [(128, 16), (128, 64), (161, 8)])
def test_tiles_cover_once_have_one_shape_and_keep_the_phase(size, tile, overlap):
    total = np.zeros(size)
    found = split(*size, tile, overlap)
    for part in found:
        assert part.weight.min() >= 0 and part.weight.shape == part.shape
        assert part.rows.start % 32 == part.columns.start % 32 == 0
        total[part.rows, part.columns] += part.weight
        assert total[part.rows, part.columns].shape == part.shape
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    (shape,) = {part.shape for part in found}
    assert shape == size or max(shape) <= tile
    for one, other in zip(found, found[1:], strict=False):
        if one.rows == other.rows:
            assert one.columns.stop - other.columns.start >= overlap
    assert (found[-1].rows.stop, found[-1].columns.stop) == size  # not beyond: the border is the picture's own


def test_small_pictures_stay_whole():
    assert len(split(768, 768, 512, 64)) == 1
    assert len(split(769, 768, 512, 64)) > 1


# What comes out ------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_tiled_equals_untiled_for_what_looks_near(kind):
    stack, estimator = noise_stack(3, 193, 333, kind=kind), local(radius=7)  # 7/16 of the overlap
    whole, work = estimate(estimator, {}, stack, tile=512)
    assert work.tiles == 1 and work.tile == (193, 333)
    parts, work = estimate(estimator, {}, stack, tile=128, overlap=16)
    assert work.tiles > 4
    for a, b in zip(whole, parts, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert 0.3 < whole.confidence.mean() < 0.7  # scaled to [0,1] whatever the type
    far = local(radius=30)
    parts, whole = (estimate(far, {}, stack, tile=tile, overlap=16)[0].depth for tile in (128, 512))
    assert np.abs(parts - whole).max() > 1e-4


def differences(estimator, variables, stack, monkeypatch, **options):
    """|tiled - untiled| of depth in shares of the focus range, [H,W], of a picture cut across its width."""
    whole, _ = estimate(estimator, variables, stack)
    monkeypatch.setattr(tiles, "WHOLE", 0)
    parts, work = estimate(estimator, variables, stack, **options)
    assert work.tiles > 1
    return np.abs(whole.depth - parts.depth) / (stack.focus[-1] - stack.focus[0])


@pytest.mark.parametrize(("method", "overlap"), [("sml", 32), pytest.param("classical", 128, marks=pytest.mark.slow)])
def test_no_seams_without_training(method, overlap, monkeypatch):
    estimator, stack = estimators.build(config.model_preset(method)), scene(60, 500)
    assert differences(estimator, {}, stack, monkeypatch, tile=256, overlap=overlap).max() < 1e-4
    monkeypatch.undo()
    if method == "classical":  # a tile for itself does not know what is typical of the picture
        alone = estimator._replace(global_statistics=None)
        assert differences(alone, {}, stack, monkeypatch, tile=256, overlap=overlap).max() > 3e-4


def random_network(model, count):
    """Its variables, with batch statistics as if it had been trained."""
    estimator = estimators.build(model)
    given = networks.variables(estimator, (1, count, 64, 64))
    rng = np.random.default_rng(3)
    stats = jax.tree.map(lambda x: np.float32(np.abs(x + 0.3 * rng.standard_normal(x.shape))), given["batch_stats"])
    return estimator, {**given, "batch_stats": stats}


@pytest.mark.slow
def test_no_seams_of_a_network(monkeypatch):
    """A network's tiles differ near their borders only if each pixel has the phase that it has in the whole picture."""
    stack = scene(40, 862)
    estimator, variables = random_network(dataclasses.replace(config.tiny(), width=0.125, head_width=0.25), 3)
    found = differences(estimator, variables, stack, monkeypatch, tile=512, overlap=128)
    first, second = split(40, 862, 512, 128, may_be_whole=False)
    inside = np.ones(found.shape, bool)
    inside[:, first.columns.stop - 352 : second.columns.start + 352] = False  # so far it sees
    assert inside.mean() > 0.3 and found[inside].max() < 1e-4
    monkeypatch.undo()
    odd = slice(second.columns.start - 16, second.columns.stop - 16)  # a place where no tile may lie
    whole, _ = estimate(estimator, variables, stack)
    part, _ = estimate(estimator, variables, stack._replace(frames=stack.frames[:, :, odd]))
    assert np.abs(part.depth - whole.depth[:, odd])[:, 352:].max() > 1e-3


# Within bounds, on several devices ------------------------------------------------------------


def test_tiles_become_smaller_where_memory_demands_it():
    stack, estimator = noise_stack(3, 200, 300), local()
    free, wide = estimate(estimator, {}, stack, tile=192)
    assert wide.tiles == 1 and wide.memory > 2 * stack.frames.nbytes
    bound = wide.memory / 2.5
    narrow, work = estimate(estimator, {}, stack, tile=192, overlap=32, available=bound)
    assert work.tiles > 1 and work.memory <= bound and max(work.tile) < 192
    np.testing.assert_allclose(free.depth, narrow.depth, atol=1e-5)
    with pytest.raises(InputError, match="memory: tiles of .* of 3 frames need .*--memory"):
        estimate(estimator, {}, stack, available=1e5)


def normalized():
    """An estimator whose answer is relative to the mean of the whole picture."""

    def survey(frames, focus):
        return frames.mean(axis=(1, 4))[..., None]

    def apply(variables, frames, focus, *, train=False, num_iterations=None):
        grey = survey(frames, focus)[..., 0]
        depth = grey / variables.get("global_statistics", grey.mean()[None])[0]
        return Prediction(depth, grey, grey, frames[:, 0]), {}

    return Estimator(lambda key, frames, focus: {}, apply, survey)


@pytest.mark.parametrize("method", ["sml", "normalized"])
def test_several_devices_answer_as_one(method):
    estimator = normalized() if method == "normalized" else estimators.build(config.model_preset(method))
    stack = scene(120, 350)
    one, _ = estimate(estimator, {}, stack, tile=128, overlap=32)
    many, work = estimate(estimator, {}, stack, tile=128, overlap=32, devices=4)
    assert work.devices == 4 and work.tiles % 4  # the last step is not full
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    if method == "normalized":
        assert one.depth.mean() == pytest.approx(1, abs=1e-5) and estimate(estimator, {}, stack)[1].tiles == 1
        np.testing.assert_allclose(one.depth, estimate(estimator, {}, stack)[0].depth, atol=1e-5)


def test_devices_that_are_not_there():
    with pytest.raises(InputError, match="devices: must lie between 1 and the 8"):
        tiled.check_devices(9)
    with pytest.raises(InputError, match="devices"):
        tiled.check_devices(0)
