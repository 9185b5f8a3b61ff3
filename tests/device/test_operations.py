"""On the device: every way to compute a convolution, the unroll's gradients, a rendered world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_checks import convolution_error, convolve, distance, on_cpu, on_device

from dff_jax.config import WorldConfig
from dff_jax.data import live
from dff_jax.ops import convolutions
from dff_jax.studies.bench.subjects import fill
from dff_jax.unroll import Problem, initial_depth, learned_step, proximal_gradient, solve

pytestmark = pytest.mark.device

FLAT, VOLUME = ((2, 16, 20, 6), (3, 3, 6, 5)), ((2, 4, 12, 16, 8), (3, 3, 3, 8, 4))
PADDING, NUMBERS = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")


def plain(x, kernel):
    return convolutions.conv_general(x, kernel, (1, 1), PADDING, dimension_numbers=NUMBERS)


def by_products(x, kernel):
    return convolutions.conv_by_products(x, kernel, 1, PADDING)


def upsampled(x, kernel):
    return convolutions.upsampled_conv_general(x, kernel, (1, 1), PADDING, dimension_numbers=NUMBERS)


def dilated(lowering):
    return lambda x, kernel: lowering(x, kernel, 1, 2)


def enlarged(x, kernel):
    return convolve(x.repeat(2, 1).repeat(2, 2), kernel)


@pytest.mark.parametrize(
    "lowering, shapes, want",
    [
        pytest.param(plain, FLAT, convolve, id="3x3-as-this-device-does"),
        pytest.param(by_products, FLAT, convolve, id="3x3-by-products"),
        pytest.param(upsampled, FLAT, enlarged, id="enlarged-as-this-device-does"),
        pytest.param(convolutions.conv_upsampled, FLAT, enlarged, id="enlarged-by-phases"),
        pytest.param(convolutions.conv3d_by_lax, VOLUME, convolve, id="3x3x3-by-xla"),
        pytest.param(convolutions.conv3d_by_slices, VOLUME, convolve, id="3x3x3-by-slices"),
        pytest.param(
            dilated(convolutions.conv3d_by_lax), VOLUME, lambda x, k: convolve(x, k, 2), id="dilated-by-xla"
        ),
        pytest.param(
            dilated(convolutions.conv3d_by_slices), VOLUME, lambda x, k: convolve(x, k, 2), id="dilated-by-slices"
        ),
    ],
)  # fmt: skip
def test_convolutions(lowering, shapes, want, within):
    within(convolution_error(lowering, *shapes, want), 1e-5)


def test_a_wrong_convolution_is_noticed():
    error = convolution_error(lambda x, k: by_products(x, k[::-1]), (1, 8, 8, 2), (3, 3, 2, 2), convolve)
    assert error > 1e-3


def unroll_problem():
    """Learned arrays in float64, and the loss of four iterations with them."""
    shape = (2, 8, 9)
    rng = np.random.default_rng(0)
    learned = {
        "candidates": rng.random((*shape, 3)), "weights": 0.2 + rng.random((*shape, 3)), "step_size": np.float64(-1),
        "regularization": np.float64(-1.5), "prox": rng.standard_normal((3, 3)) / 3,
    }  # fmt: skip

    def prox(params, z, problem, eta):
        around = jnp.pad(z, ((0, 0), (1, 1), (1, 1)), "edge")
        seen = sum(params[i, j] * around[:, i : i + 8, j : j + 9] for i in range(3) for j in range(3))
        return z + 0.3 * eta * problem.regularization * jnp.tanh(seen)

    def loss(learned, **options):
        problem = Problem(learned["candidates"], learned["weights"], 0.1)
        shared = {name: learned[name] for name in ("prox", "step_size", "regularization")}
        options |= {"step_size": learned_step, "shared": shared, "num_iterations": 4}
        depth, _ = solve(proximal_gradient(prox), problem, initial_depth(problem) + 0.5, **options)
        return ((depth - 0.3) ** 2).sum()

    return learned, loss


def test_unroll_gradients_of_scan_remat_and_plain_steps(within):
    with jax.enable_x64(True):
        learned, loss = unroll_problem()
        ways = {"gradient": "remat"}, {"gradient": "backprop"}, {"gradient": "backprop", "unroll": True}
        found = [jax.device_get(jax.jit(jax.grad(lambda x, o=o: loss(x, **o)))(on_device(learned))) for o in ways]
    within(max(distance(found[0], found[1]), distance(found[0], found[2])), 1e-10)


def test_unroll_gradient_against_finite_differences(within):
    with jax.enable_x64(True):
        learned, loss = unroll_problem()
        value = jax.jit(loss)
        gradient = jax.device_get(jax.jit(jax.grad(loss))(on_device(learned)))
        worst = 0.0
        for seed in range(3):
            direction = fill(learned, seed)
            ends = [jax.tree.map(lambda x, d, s=s: x + s * 1e-5 * d, learned, direction) for s in (1, -1)]
            slope = float(value(on_device(ends[0])) - value(on_device(ends[1]))) / 2e-5
            exact = sum(float(np.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
            worst = max(worst, abs(slope - exact) / abs(exact))
    within(worst, 1e-6)


def test_rendered_worlds_are_those_of_the_cpu(within):
    """The error is the share of values that differ: frames by more than one of 255 levels, depth by over 0.1 %."""
    world = WorldConfig(height=32, width=32, num_frames=3, num_objects=2, max_blur_radius=5, num_layers=8)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 2))
    render = jax.jit(lambda keys: live.make_batch(jax.random.wrap_key_data(keys), world))
    ours, cpu = jax.device_get((render(on_device(keys)), render(on_cpu(keys))))
    frames = np.abs(ours.frames - cpu.frames) > 1.01 / 255
    depth = np.abs(ours.depth - cpu.depth) > 0.09
    within(float(max(frames.mean(), depth.mean())), 2e-3)
