import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import optics
from dff_jax.config import WorldConfig
from dff_jax.optics.render import blur_kernels, continue_behind


def test_circle_of_confusion_is_zero_in_focus_and_linear_in_inverse_depth():
    f, n, s = 0.05, 2.0, 2.0
    assert optics.circle_of_confusion(jnp.array(s), jnp.array(s), f, n) == 0
    distance = jnp.array([0.5, 1.0, 4.0, 50.0])
    coc = optics.circle_of_confusion(distance, jnp.array(s), f, n)
    slope = coc / jnp.abs(1 / distance - 1 / s)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-4)
    pitch = 5e-6
    radius = optics.blur_radius(1 / distance, jnp.array(1 / s), optics.blur_per_diopter(s, f, n, pitch))
    np.testing.assert_allclose(radius, coc / 2 / pitch, rtol=1e-4)


def test_srgb_round_trip_and_anchor():
    x = jnp.linspace(0, 1, 50)
    np.testing.assert_allclose(optics.linear_to_srgb(optics.srgb_to_linear(x)), x, atol=1e-5)
    np.testing.assert_allclose(optics.srgb_to_linear(jnp.array(0.5)), 0.21404, atol=1e-4)


def test_blur_kernels_are_normalised_and_grow():
    kernels = blur_kernels(jnp.array([0.0, 0.5, 2.0, 4.0, 99.0]), 5)
    np.testing.assert_allclose(kernels.sum((0, 1)), 1.0, rtol=1e-5)
    assert kernels[5, 5, 0] == 1 and kernels[5, 5, 1] == 1
    width = [(kernels[..., i] > 1e-6).sum() for i in range(5)]
    assert width[0] == 1 and width[2] < width[3] < width[4]


def image(key, h=24, w=30):
    return 0.2 + 0.6 * jax.random.uniform(key, (h, w, 3))


def test_a_plane_in_focus_renders_unchanged(key):
    rgb, depth = image(key), jnp.full((24, 30), 40.0)
    frames = optics.render_stack(rgb, depth, jnp.array([40.0, 90.0]), blur_per_q=0.1, max_radius=6, num_layers=5)
    np.testing.assert_allclose(frames[0], rgb, atol=1e-5)
    assert jnp.abs(frames[1] - rgb).mean() > 0.05


def test_uniform_light_is_conserved_at_any_depth(key):
    depth = 10 + 80 * jax.random.uniform(key, (24, 30))
    rgb = jnp.full((24, 30, 3), 0.4)
    frames = optics.render_stack(rgb, depth, jnp.linspace(10, 90, 5), blur_per_q=0.08, max_radius=6, num_layers=9)
    np.testing.assert_allclose(frames, 0.4, atol=1e-4)


def test_blur_grows_with_defocus(key):
    rgb, depth = image(key), jnp.full((24, 30), 50.0)
    focus = jnp.array([50.0, 60.0, 75.0, 100.0])
    frames = optics.render_stack(rgb, depth, focus, blur_per_q=0.1, max_radius=6, num_layers=3)
    contrast = frames.std((1, 2, 3))
    assert (contrast[:-1] > contrast[1:]).all()


def test_fft_and_direct_blur_agree(key):
    """Large blurs are done by FFT; the same radii must give the same picture."""
    rgb, depth = image(key), jnp.broadcast_to(jnp.linspace(20, 60, 30), (24, 30))
    focus = jnp.array([20.0, 40.0, 70.0])
    frames = [
        optics.render_stack(rgb, depth, focus, blur_per_q=0.07, max_radius=r, num_layers=8) for r in (4, 5)
    ]
    np.testing.assert_allclose(frames[0], frames[1], atol=2e-4)


def test_sharp_foreground_keeps_its_edge_and_blurred_foreground_reveals_background():
    """A black near square before white: in focus it stays black; out of focus its inside edge turns grey."""
    rgb = jnp.ones((40, 40, 3)).at[12:28, 12:28].set(0.0)
    depth = jnp.full((40, 40), 20.0).at[12:28, 12:28].set(80.0)
    focus = jnp.array([20.0, 80.0])
    far, near = optics.render_stack(rgb, depth, focus, blur_per_q=0.07, max_radius=5, num_layers=13)
    assert jnp.abs(near[14:26, 14:26]).max() < 0.02
    assert 0.2 < far[20, 12, 0] < 0.95  # just inside the blurred edge
    assert 0.2 < far[20, 11, 0] < 0.99  # just outside
    assert (jnp.diff(far[20, :21, 0]) <= 1e-3).all()  # no step at the edge: monotone from white to black


def test_continue_behind_fills_only_the_hidden(key):
    values = jax.random.uniform(key, (16, 16, 2))
    seen = jnp.ones((16, 16, 1)).at[4:12, 4:12].set(0.0)
    filled, reach = jax.jit(continue_behind, static_argnums=2)(values, seen, 4)
    np.testing.assert_allclose(jnp.where(seen > 0, filled - values, 0.0), 0.0, atol=1e-5)
    assert reach.min() == 1
    assert (filled >= values.min() - 1e-5).all() and (filled <= values.max() + 1e-5).all()


def test_rendering_is_differentiable_in_depth(key):
    rgb, focus = image(key, 20, 20), jnp.array([20.0, 50.0])
    # the corner fixes the layers: were the square the nearest of all, it would lie on one, where the slope is undefined
    plane = lambda q: jnp.full((20, 20), 30.0).at[6:14, 6:14].set(q).at[:3, :3].set(60.0)  # noqa: E731

    def loss(q):
        frames = optics.render_stack(rgb, plane(q), focus, blur_per_q=0.1, max_radius=5, num_layers=7)
        return (frames**2).sum()

    gradient, step = jax.grad(loss)(43.0), 0.1
    numeric = (loss(43.0 + step) - loss(43.0 - step)) / (2 * step)
    assert abs(gradient) > 1e-3
    np.testing.assert_allclose(gradient, numeric, rtol=0.1)


def test_sensor_noise_has_the_given_strength(key):
    noisy = optics.add_sensor_noise(key, jnp.full((4, 50, 50, 3), 0.5), 0.02)
    np.testing.assert_allclose(noisy.std(), 0.02, rtol=0.05)


def test_worlds_are_deterministic_different_and_leave_the_focus_range(small_world):
    make = jax.jit(lambda key: optics.make_stack(key, small_world))
    a, b, c = make(jax.random.key(1)), make(jax.random.key(1)), make(jax.random.key(2))
    np.testing.assert_array_equal(a.frames, b.frames)
    assert jnp.abs(a.depth - c.depth).max() > 1
    assert a.frames.shape == (7, 64, 64, 3) and a.frames.min() >= 0 and a.frames.max() <= 1
    np.testing.assert_allclose(a.focus, jnp.linspace(10, 100, 7), rtol=1e-6)
    depths = jnp.stack([optics.make_world(jax.random.key(i), small_world).depth for i in range(12)])
    outside = ((depths < 10) | (depths > 100)).mean()
    assert 0.01 < outside < 0.4
    assert depths.min() >= 4 and depths.max() <= 110


@pytest.mark.slow
def test_vmapped_worlds_equal_single_ones():
    world = WorldConfig(height=32, width=32, num_frames=3, num_objects=2, max_blur_radius=3, num_layers=4)
    keys = jax.random.split(jax.random.key(3), 2)
    batch = jax.vmap(lambda k: optics.make_stack(k, world))(keys)
    single = optics.make_stack(keys[1], world)
    np.testing.assert_allclose(batch.frames[1], single.frames, atol=1e-5)
    np.testing.assert_allclose(batch.depth[1], single.depth, atol=1e-4)
