"""Refocusing: shifts against closed forms and NumPy, planes and slopes that are sharp where they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.optics import light_field
from dff_jax.optics.light_field import refocus


def waves(y, x):
    """A smooth picture [H,W,3] in [0,1], known between the pixels too."""
    planes = [0.5 + 0.2 * np.sin(0.9 * x + 0.5 * y + k) + 0.2 * np.cos(0.4 * x - 1.1 * y + 2 * k) for k in range(3)]
    return np.stack(planes, -1)


def plane_views(d, rows=5, columns=5, h=24, w=30, centre=None):
    """Views [R,C,H,W,3] of a fronto-parallel plane: (y, x) of the centre lies at (y - d(r-r0), x - d(c-c0))."""
    r0, c0 = centre or ((rows - 1) / 2, (columns - 1) / 2)
    y, x = np.mgrid[:h, :w].astype(float)
    return np.stack(
        [[waves(y + d * (r - r0), x + d * (c - c0)) for c in range(columns)] for r in range(rows)]
    ).astype(np.float32)


def mean_of_shifted(views, s):
    """`refocus` for a whole number s, by slicing: [H,W,3], the mean over those views that see the place."""
    rows, columns, h, w, _ = views.shape
    total, seen = np.zeros((h, w, 3)), np.zeros((h, w, 1))
    for r in range(rows):
        for c in range(columns):
            dy, dx = -s * (r - rows // 2), -s * (c - columns // 2)
            for y in range(h):
                for x in range(w):
                    if 0 <= y + dy < h and 0 <= x + dx < w:
                        total[y, x] += views[r, c, y + dy, x + dx]
                        seen[y, x] += 1
    return total / seen


@pytest.mark.parametrize("d", [0.0, 1.0, -2.0, 0.5, -0.75, 1.3])
def test_a_plane_refocused_at_its_disparity_is_the_centre_view(d):
    views = plane_views(d)
    frame = np.asarray(refocus(views, jnp.array([d]))[0])
    error = np.abs(frame - views[2, 2])
    assert error[4:-4, 4:-4].max() < 0.01
    # at the border the kernel's taps meet the continued edge, for shifts between pixels
    assert error.max() < (1e-5 if float(d).is_integer() else 0.12)


def test_a_plane_is_sharp_exactly_at_its_disparity():
    d, settings = 0.6, np.linspace(-2.4, 2.4, 25)
    views = plane_views(d, h=40, w=40)
    frames = np.asarray(refocus(views, jnp.array(settings)))
    contrast = frames[:, 8:-8, 8:-8].std((1, 2, 3))
    assert settings[contrast.argmax()] == pytest.approx(d)
    assert (np.diff(contrast[11:16]) > 0).all() and (np.diff(contrast[15:20]) < 0).all()
    off = ((frames - views[2, 2]) ** 2)[:, 8:-8, 8:-8].mean((1, 2, 3))
    np.testing.assert_allclose(off[12:15], off[18:15:-1], rtol=0.1)  # blur depends on |d - s|


@pytest.mark.parametrize("s", [1, -3])
def test_whole_shifts_are_the_mean_over_the_views_that_see_the_place(s):
    views = np.random.default_rng(0).random((3, 5, 9, 14, 3)).astype(np.float32)
    frame = np.asarray(refocus(views, jnp.array([float(s)]))[0])
    np.testing.assert_allclose(frame, mean_of_shifted(views, s), atol=1e-5)


def test_nothing_wraps_around_and_far_shifts_leave_the_centre_view():
    views = np.zeros((3, 3, 12, 12, 3), np.float32)
    views[..., :2, :] = 1.0  # bright left edge in every view
    frame = np.asarray(refocus(views, jnp.array([3.0]))[0])
    assert frame[:, 6:].max() < 1e-6
    views = np.random.default_rng(1).random((3, 3, 12, 12, 3)).astype(np.float32)
    far = np.asarray(refocus(views, jnp.array([500.0, -13.0])))
    np.testing.assert_allclose(far, np.stack([views[1, 1]] * 2), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("amount", [0.37, -2.5, 4.0, -0.999])
def test_shift_equals_the_continuous_picture_and_scipys_spline(axis, amount):
    from scipy.ndimage import shift as spline_shift

    y, x = np.mgrid[:30, :34].astype(float)
    image = waves(y, x).astype(np.float32)
    samples, inside = light_field.shift(jnp.asarray(image), jnp.float32(amount), axis)
    true = waves(y + amount, x) if axis == 0 else waves(y, x + amount)
    spline = spline_shift(image.astype(float), [-amount if a == axis else 0 for a in range(3)], order=5, mode="nearest")
    keep = np.zeros((30, 34), bool)
    keep[9:-9, 9:-9] = True
    assert np.abs(np.asarray(samples) - true)[keep].max() < 4e-3
    assert np.abs(np.asarray(samples) - spline)[keep].max() < 4e-3
    place = np.arange(image.shape[axis]) + amount
    np.testing.assert_array_equal(np.asarray(inside) > 0, (place >= 0) & (place <= image.shape[axis] - 1))
    assert not np.moveaxis(np.asarray(samples), axis, 0)[np.asarray(inside) == 0].any()


def test_the_centre_may_be_another_view():
    views = plane_views(1.0, 3, 4, centre=(0, 1))
    frame = np.asarray(refocus(views, jnp.array([1.0]), (0, 1))[0])
    np.testing.assert_allclose(frame, views[0, 1], atol=1e-5)


def test_bytes_and_floats_agree():
    views = np.random.default_rng(2).integers(0, 256, (3, 3, 10, 11, 3), np.uint8)
    settings = jnp.array([-0.4, 1.0])
    np.testing.assert_allclose(refocus(views, settings), refocus(views / np.float32(255), settings), atol=1e-6)


def test_gradients_reach_the_disparity():
    views = jnp.asarray(plane_views(0.6, h=20, w=20))
    loss = lambda s: ((refocus(views, s)[0] - views[2, 2]) ** 2)[4:-4, 4:-4].sum()  # noqa: E731
    at = jnp.array([0.9])
    gradient = jax.grad(loss)(at)[0]
    numeric = (loss(at + 0.01) - loss(at - 0.01)) / 0.02
    assert gradient > 0.1  # towards the plane
    np.testing.assert_allclose(gradient, numeric, rtol=0.02)


def test_depth_from_focus_recovers_two_planes():
    """Left half at -1, right half at 1.4, textured: the plain focus measure finds both."""
    from dff_jax import classical

    rng = np.random.default_rng(3)
    texture = rng.random((64, 96, 3)).astype(np.float32)
    texture = sum(np.roll(texture, (a, b), (0, 1)) for a in (0, 1) for b in (0, 1)) / 4
    move = jax.jit(lambda dy, dx: light_field.shift(light_field.shift(texture, dy, 0)[0], dx, 1)[0][16:48, 16:80])
    views = np.empty((5, 5, 32, 64, 3), np.float32)
    for r in range(5):
        for c in range(5):
            views[r, c, :, :32] = move(-1.0 * (r - 2), -1.0 * (c - 2))[:, :32]
            views[r, c, :, 32:] = move(1.4 * (r - 2), 1.4 * (c - 2))[:, 32:]
    settings = jnp.linspace(-2.5, 2.5, 10)
    luma = classical.luminance(refocus(views, settings))[None]
    measure = classical.box_mean(classical.gradient_magnitude(luma), 5)
    depth = np.asarray(classical.gaussian_peak(measure, settings[None])[0])
    assert np.median(np.abs(depth[4:-4, 4:26] + 1.0)) < 0.1
    assert np.median(np.abs(depth[4:-4, 38:-4] - 1.4)) < 0.1
