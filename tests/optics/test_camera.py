"""What cameras do to frames, and the worlds that they photograph."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.config import CameraConfig, WorldConfig
from dff_jax.errors import ConfigError
from dff_jax.optics import camera
from dff_jax.optics.render import (
    MOST_VIEWS,
    Aperture,
    blur_kernels,
    linear_to_srgb,
    render_stack,
    srgb_to_linear,
)
from dff_jax.optics.scenes import LAYER_STEP, draw_lens, make_stack

MOVE = jax.jit(camera._move, static_argnums=(2, 3))


@pytest.fixture
def frames(key):
    grey, colour = jax.random.uniform(key, (3, 8, 10, 1)), jax.random.uniform(key, (3, 8, 10, 3))
    smooth = 0.85 * grey + 0.15 * colour
    return jax.image.resize(smooth, (3, 40, 48, 3), "cubic").clip(0.1, 0.9)


def test_a_perfect_camera_changes_nothing(key, frames):
    np.testing.assert_array_equal(camera.apply_camera_faults(key, frames, CameraConfig()), frames)
    faulty = CameraConfig(share=0.0, shift=2.0, vignetting=0.5, exposure=0.3, softness=1.0)
    np.testing.assert_array_equal(camera.apply_camera_faults(key, frames, faulty), frames)


def test_a_share_of_stacks_has_all_faults_one_after_the_other_and_half_are_compressed(frames):
    config = CameraConfig(share=0.5, shift=1.0, breathing=0.01, vignetting=0.3, exposure=0.1, softness=0.7)
    hits, photographed = [], jax.jit(partial(camera.apply_camera_faults, config=config))

    @jax.jit
    def all_faults(key, frames):
        _, k_move, k_light, k_soft = jax.random.split(key, 4)
        lit = camera._light(k_light, camera._move(k_move, frames, 1.0, 0.01), 0.3, 0.1)
        return camera._soften(lit, 0.7 * jax.random.uniform(k_soft))

    for seed in range(24):
        key = jax.random.key(seed)
        found = photographed(key, frames)
        hits.append(bool((found != frames).any()))
        if hits[-1]:
            np.testing.assert_allclose(found, all_faults(key, frames), atol=1e-5)
    assert 2 < sum(hits) < 22
    small = frames[:1]
    compress = jax.jit(camera.compress, static_argnums=2)
    found = [np.asarray(compress(jax.random.key(seed), small, (50, 50))) for seed in range(24)]
    changed = [(x != small).any() for x in found]
    assert 2 < sum(changed) < 22
    np.testing.assert_allclose(found[changed.index(True)], camera.jpeg(small, 50.0), atol=1e-5)
    keys = jax.vmap(jax.random.key)(jnp.arange(4))  # as on an accelerator
    at_once = jax.jit(jax.vmap(partial(camera.apply_camera_faults, config=config), (0, None)))(keys, frames)
    for seed in range(4):
        np.testing.assert_allclose(at_once[seed], photographed(jax.random.key(seed), frames), atol=1e-5)


def test_frames_move_by_no_more_than_told_and_the_middle_of_the_stack_hardly_breathes(key):
    y, x = jnp.mgrid[:60, :80].astype(jnp.float32)
    ramp = jnp.broadcast_to(jnp.stack([x / 80, y / 60, 0 * x], -1), (5, 60, 80, 3))  # pictures of their own coordinates
    farthest = 0.0
    for seed in range(20):
        moved = MOVE(jax.random.key(seed), ramp, 1.5, 0.0)
        by = np.stack([80 * (moved - ramp)[..., 0], 60 * (moved - ramp)[..., 1]], -1)[:, 5:-5, 5:-5]
        assert np.abs(by).max() <= 1.5 + 1e-3 and np.ptp(by, axis=(1, 2)).max() < 1e-3
        farthest = max(farthest, np.abs(by).max())
        grown = MOVE(jax.random.key(seed), ramp, 0.0, 0.02)
        scale = np.diff(80 * np.asarray(grown)[:, 30, 10:70, 0], axis=1).mean(1)
        assert np.abs(scale - 1).max() <= 0.0101 and abs(scale[2] - 1) < 1e-4
    assert farthest > 0.8


def test_light_falls_off_to_the_corners_and_exposure_is_one_number_a_frame(key):
    grey = jnp.full((4, 31, 41, 3), linear_to_srgb(jnp.float32(0.4)))
    light = np.asarray(srgb_to_linear(camera._light(key, grey, 0.5, 0.2)))[..., 0]
    centre = light[:, 15, 20]
    assert (np.abs(np.log(centre / 0.4)) <= 0.2 + 1e-4).all() and np.ptp(centre) > 1e-4
    fall = light / centre[:, None, None]
    np.testing.assert_allclose(fall, np.broadcast_to(fall[:1], fall.shape), rtol=2e-3)
    assert 0.5 <= fall[0, 0, 0] < 1 and fall[0].max() == pytest.approx(1, abs=1e-3)


def test_softening_is_a_gaussian():
    point = jnp.zeros((1, 11, 11, 3)).at[:, 5, 5].set(1.0)
    np.testing.assert_allclose(camera._soften(point, jnp.float32(0.0)), point, atol=1e-6)
    soft = np.asarray(camera._soften(point, jnp.float32(0.7)))[0, ..., 0]
    assert soft.sum() == pytest.approx(1, abs=1e-5)
    assert soft[5, 6] / soft[5, 5] == pytest.approx(np.exp(-0.5 / 0.49), rel=1e-4)


def test_jpeg_is_close_to_a_real_encoder(frames):
    import io

    from PIL import Image

    noisy = np.clip(np.asarray(frames) + np.random.default_rng(0).normal(0, 0.03, frames.shape), 0, 1)
    for quality in (50, 75, 95):
        ours = np.asarray(camera.jpeg(jnp.asarray(noisy, jnp.float32), float(quality)))
        for frame, got in zip(noisy, ours, strict=True):
            file = io.BytesIO()
            Image.fromarray(np.rint(frame * 255).astype(np.uint8)).save(file, "jpeg", quality=quality, subsampling=2)
            theirs = np.asarray(Image.open(file)) / 255
            lost = np.sqrt(np.mean((theirs - frame) ** 2))
            # another way to enlarge the colours, and no rounding in between: not the same, but as lossy, and alike
            assert np.sqrt(np.mean((got - frame) ** 2)) == pytest.approx(lost, rel=0.25)
            assert np.sqrt(np.mean((got - theirs) ** 2)) < 0.6 * lost


def test_jpeg_of_any_size_and_of_the_best_quality(key):
    picture = jnp.repeat(jax.image.resize(jax.random.uniform(key, (3, 4, 1)), (21, 27, 1), "linear"), 3, -1)
    found = camera.jpeg(picture, 100.0)
    assert found.shape == picture.shape
    assert np.abs(found - picture).mean() < 0.003


@pytest.mark.parametrize("field, bad", [("share", 1.5), ("shift", -1.0), ("jpeg", (0, 50)), ("jpeg", (90, 50))])
def test_wrong_cameras_are_refused(field, bad):
    with pytest.raises(ConfigError, match=f"data.camera.{field}"):
        CameraConfig(**{field: bad})


# Apertures -------------------------------------------------------------------------------------------------------


def test_apertures_have_the_area_of_the_disc_and_sum_to_one():
    radii = jnp.array([0.0, 3.0, 6.0])
    disc = np.asarray(blur_kernels(radii, 9))
    np.testing.assert_allclose(blur_kernels(radii, 9, Aperture()), disc, atol=1e-6)  # the general form of the same
    for blades in (3.0, 5.0, 6.0, 9.0):
        kernels = np.asarray(blur_kernels(radii, 9, Aperture(blades, 0.3)))
        np.testing.assert_allclose(kernels.sum((0, 1)), 1, rtol=1e-5)
        np.testing.assert_allclose(kernels.max((0, 1)), disc.max((0, 1)), rtol=0.08)  # as high, so as large
        assert kernels[9, 9, 0] == pytest.approx(1)
    y, x = np.mgrid[-9:10, -9:10]
    spread = lambda k: (k[..., 2] * np.hypot(x, y)).sum()  # noqa: E731
    bell, ring = (blur_kernels(radii, 9, Aperture(rim=rim)) for rim in (-0.7, 0.7))
    assert spread(np.asarray(bell)) < spread(disc) < spread(np.asarray(ring))
    assert spread(np.asarray(blur_kernels(radii, 9, Aperture(softness=1.0)))) > spread(disc)


def test_points_of_a_light_field():
    kernels = np.asarray(blur_kernels(jnp.array([0.0, 3.0, 4.0]), 5, Aperture(views=3.0)))
    np.testing.assert_allclose(kernels.sum((0, 1)), 1, rtol=1e-6)
    assert kernels[5, 5, 0] == 1
    for i, radius in ((1, 3), (2, 4)):
        want = np.zeros((11, 11))
        want[5 - radius : 6 + radius : radius, 5 - radius : 6 + radius : radius] = 1 / 9
        np.testing.assert_allclose(kernels[..., i], want, atol=1e-7)
    between = np.asarray(blur_kernels(jnp.array([2.5]), 5, Aperture(views=2.0)))[..., 0]  # points between two pixels
    np.testing.assert_allclose(between[5], 0)
    np.testing.assert_allclose(between[2], [0, 0, 1 / 16, 1 / 16, 0, 0, 0, 1 / 16, 1 / 16, 0, 0])


def test_fewer_layers_where_they_would_be_close():
    rgb, depth = jax.random.uniform(jax.random.key(0), (24, 24, 3)), jnp.linspace(0.0, 40.0, 24 * 24).reshape(24, 24)
    focus = jnp.array([0.0, 20.0, 40.0])
    render = partial(render_stack, rgb, depth, focus, blur_per_q=0.1, max_radius=4)
    np.testing.assert_allclose(render(num_layers=30, layer_step=0.5), render(num_layers=9), atol=1e-5)
    np.testing.assert_allclose(render(num_layers=9, layer_step=0.1), render(num_layers=9), atol=1e-5)


# Worlds ----------------------------------------------------------------------------------------------------------

VARIED = WorldConfig(
    height=40, width=48, num_frames=6, num_objects=4, num_layers=6, noise=(0.0, 0.0), blur_radius=(1.0, 4.0),
    max_blur_radius=5, textures="natural", apertures="varied", settings="varied",
)  # fmt: skip


def test_varied_lenses_keep_to_their_limits():
    low, high = VARIED.depth_range
    shares, uneven, blades, views = [], [], set(), set()
    for seed in range(60):
        lens = draw_lens(jax.random.key(seed), VARIED)
        focus = np.asarray(lens.focus)
        assert (np.diff(focus) > 0).all()
        assert low - 0.03 * (high - low) <= focus[0] <= low + 0.21 * (high - low)
        assert high - 0.21 * (high - low) <= focus[-1] <= high + 0.03 * (high - low)
        radius = float(lens.blur_per_disparity) * np.ptp(focus)
        assert 1.0 <= radius * 1.001 and radius <= 4.001
        squeeze = np.asarray(lens.squeeze)
        ends = squeeze[0] + squeeze[1] * np.array([low, high])
        assert low - 1e-3 <= ends[0] < ends[1] <= high + 1e-3
        shares.append(squeeze[1])
        uneven.append(np.diff(focus).std() / np.diff(focus).mean())
        blades.add(int(lens.aperture.blades))
        views.add(int(lens.aperture.views))
    assert min(shares) < 0.6 and max(shares) == 1 and min(uneven) < 1e-4 and max(uneven) > 0.3
    assert blades >= {0, 5, 7, 9} and 0 in views and len(views) > 3 and views - {0} <= set(range(5, MOST_VIEWS + 1))


def test_a_varied_world_is_a_function_of_its_key_and_its_truth_is_what_was_rendered(key):
    stack = make_stack(key, VARIED)
    again = make_stack(key, VARIED)
    for a, b in zip(stack, again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    lens = draw_lens(jax.random.split(key, 3)[1], VARIED)
    frames = render_stack(
        stack.all_in_focus, stack.depth, stack.focus, blur_per_q=lens.blur_per_disparity, max_radius=5, num_layers=6,
        aperture=lens.aperture, layer_step=LAYER_STEP,
    )  # fmt: skip
    np.testing.assert_allclose(frames, stack.frames, atol=1e-5)


def test_natural_worlds_have_the_spectrum_of_photographs():
    """Power falls as about 1/f^2 with frequency, as in natural images (Field, 1987)."""
    world = dataclasses.replace(VARIED, height=64, width=64, num_objects=6)
    power = 0.0
    for seed in range(12):
        grey = np.asarray(make_stack(jax.random.key(seed), world).all_in_focus).mean(-1)
        window = np.outer(np.hanning(64), np.hanning(64))
        power = power + np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    rings = [(frequency >= low) & (frequency < high) for low, high in ((0.05, 0.08), (0.1, 0.16), (0.2, 0.32))]
    levels = np.log2([power[ring].mean() for ring in rings])
    slope = -(levels[2] - levels[0]) / 2
    assert 1.2 < slope < 3.2


def test_wrong_blur_is_refused():
    with pytest.raises(ConfigError, match="blur_radius"):
        WorldConfig(blur_radius=(0.0, 3.0))
