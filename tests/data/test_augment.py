"""Augmentation: what must be the same for all frames is, and truth goes along with the pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.data.augment import apply_colour, augment, crop_window, make_colour, to_float
from dff_jax.errors import ConfigError
from dff_jax.types import FocalStack


def _coordinates(height=24, width=30, frames=3):
    """A stack whose pixels say where they came from: red = row, green = column, blue = frame."""
    z, y, x = np.mgrid[:frames, :height, :width]
    stack = np.stack([y, x, z], -1).astype(np.uint8)
    depth = (1000.0 * y[0] + x[0]).astype(np.float32)
    return FocalStack(stack, np.arange(frames, dtype=float), "index", depth, (y + x)[0] % 3 > 0, "there")


def _grey(frames=4, size=32, level=128):
    stack = np.full((frames, size, size, 3), level, np.uint8)
    return FocalStack(stack, np.arange(frames, dtype=float), "index", name="grey")


def test_depth_and_mask_go_with_the_pixels():
    stack, seen = _coordinates(), set()
    for seed in range(60):
        out = augment(stack, np.random.default_rng(seed), crop=(16, 20))
        assert out.frames.shape == (3, 16, 20, 3) and out.depth.shape == out.mask.shape == (16, 20)
        y, x, z = np.moveaxis(np.round(out.frames * 255).astype(int), -1, 0)
        assert (z == np.arange(3)[:, None, None]).all()  # frames keep their order
        assert (y == y[0]).all() and (x == x[0]).all()  # one window for all frames
        np.testing.assert_array_equal(out.depth, 1000 * y[0] + x[0])
        np.testing.assert_array_equal(out.mask, (y + x)[0] % 3 > 0)
        y, x = y[0], x[0]
        seen.add((y[1, 0] - y[0, 0], x[1, 0] - x[0, 0], y[0, 1] - y[0, 0], x[0, 1] - x[0, 0]))
    assert len(seen) == 8  # all mirrorings and transpositions


def test_no_transposition_where_the_turned_crop_does_not_fit():
    stack = _coordinates(height=16, width=30)
    for seed in range(20):
        out = augment(stack, np.random.default_rng(seed), crop=(16, 28))
        y = np.round(out.frames[0, ..., 0] * 255)
        assert out.frames.shape[1:3] == (16, 28) and (y == y[:, :1]).all()


def test_without_flips_colour_and_noise_it_is_a_window():
    stack = _coordinates()
    out = augment(stack, np.random.default_rng(0), crop=(24, 30), flips=False)
    np.testing.assert_array_equal(out.frames, stack.frames.astype(np.float32) / 255)
    np.testing.assert_array_equal(out.depth, stack.depth)
    identity = make_colour(np.random.default_rng(0).uniform(-1, 1, 6), 0.0)
    np.testing.assert_allclose(to_float(stack.frames, identity), out.frames, atol=1e-6)


def test_one_colour_change_for_all_frames():
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (1, 20, 20, 3), np.uint8)
    stack = FocalStack(np.repeat(frame, 5, 0), np.arange(5.0), "index", name="same")
    out = augment(stack, rng, crop=(20, 20), flips=False, colour=0.3)
    assert (out.frames == out.frames[:1]).all()
    assert np.abs(out.frames - stack.frames / 255.0).mean() > 0.01
    other = augment(stack, rng, crop=(20, 20), flips=False, colour=0.3)
    assert np.abs(out.frames - other.frames).mean() > 0.01  # the next stack gets another one


def test_the_picture_goes_with_the_frames_but_has_no_noise():
    rng = np.random.default_rng(4)
    picture = rng.integers(0, 256, (24, 30, 3), np.uint8)
    focus = np.arange(3.0)
    stack = FocalStack(np.repeat(picture[None], 3, 0), focus, "index", name="sharp", all_in_focus=picture)
    for _ in range(20):
        out = augment(stack, rng, crop=(16, 20), colour=0.3)
        assert out.all_in_focus.shape == (16, 20, 3) and out.all_in_focus.dtype == np.float32
        np.testing.assert_array_equal(out.frames, np.repeat(out.all_in_focus[None], 3, 0))
    noisy = augment(stack, np.random.default_rng(1), crop=(24, 30), flips=False, noise=0.1)
    np.testing.assert_array_equal(noisy.all_in_focus, picture.astype(np.float32) / np.float32(255))
    assert (noisy.frames != noisy.all_in_focus).mean() > 0.9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_looking_up_equals_computing_and_jax_equals_numpy(dtype):
    rng = np.random.default_rng(2)
    frames = rng.integers(0, np.iinfo(dtype).max + 1, (2, 8, 8, 3), dtype)
    draws = rng.uniform(-1, 1, 6)
    colour = make_colour(draws, 0.4)
    values = (frames / np.iinfo(dtype).max).astype(np.float32)
    looked_up = to_float(frames, colour)
    assert looked_up.dtype == np.float32
    np.testing.assert_allclose(looked_up, to_float(values, colour), atol=1e-6)
    jax_colour = make_colour(jnp.asarray(draws, jnp.float32), 0.4, jnp)
    gain = jax_colour.gain.reshape(1, 1, 1, 3)
    np.testing.assert_allclose(looked_up, apply_colour(jnp.asarray(values), gain, jax_colour), atol=1e-5)
    assert 0 <= looked_up.min() and looked_up.max() <= 1


def test_colour_curves_rise():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, -1)
    for seed in range(20):
        curve = to_float(levels, make_colour(np.random.default_rng(seed).uniform(-1, 1, 6), 0.3))
        assert (np.diff(curve[0], axis=0) >= 0).all()


def test_noise_is_drawn_for_every_frame_with_one_strength_a_stack():
    stack, sigmas = _grey(), []
    for seed in range(30):
        out = augment(stack, np.random.default_rng(seed), crop=(32, 32), noise=0.05)
        noise = out.frames - np.float32(128 / 255)
        per_frame = noise.std((1, 2, 3))
        np.testing.assert_allclose(per_frame, per_frame.mean(), rtol=0.1)  # one sigma for the stack
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1  # but other noise
        sigmas.append(per_frame.mean())
    assert max(sigmas) < 0.055 and min(sigmas) < 0.01 and max(sigmas) > 0.035
    bright = augment(_grey(level=255), np.random.default_rng(0), crop=(32, 32), noise=0.05).frames
    assert bright.max() == 1.0 and bright.dtype == np.float32


def test_crops_prefer_ground_truth():
    valid = np.zeros((40, 160), bool)
    valid[:, 130:] = True

    def mean_share(mask):
        shares = []
        for seed in range(200):
            window = crop_window((40, 160), (20, 20), mask, np.random.default_rng(seed))
            shares.append(valid[window].mean())
        return np.mean(shares)

    assert mean_share(valid) > 2 * mean_share(None)


def test_a_crop_that_does_not_fit_names_field_and_stack():
    with pytest.raises(ConfigError, match=r"data\.crop: 48 x 16 .*'there' of 24 x 30"):
        augment(_coordinates(), np.random.default_rng(0), crop=(48, 16))


def test_the_generator_decides():
    first, again = (augment(_coordinates(), np.random.default_rng(5), crop=(16, 16), colour=0.2, noise=0.02)
                    for _ in range(2))  # fmt: skip
    np.testing.assert_array_equal(first.frames, again.frames)
