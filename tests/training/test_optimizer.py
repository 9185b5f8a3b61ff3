"""Schedules against PyTorch's numbers; which parameters decay; what AdamW is given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dff_jax.config import OptimizerConfig
from dff_jax.training import optimizer

TORCH = OptimizerConfig(schedule="torch_onecycle", peak_learning_rate=1e-4)

# torch.optim.lr_scheduler.OneCycleLR(max_lr=1e-4) of PyTorch 2.13: step -> (learning rate x 1e6, beta1)
GOLDEN = {
    100: {
        0: (4.0, 0.95), 1: (4.2814, 0.94971), 10: (29.5164, 0.92342), 29: (100.0, 0.85), 30: (99.9497, 0.85005),
        50: (79.3893, 0.87061), 98: (0.0507, 0.94995), 99: (0.0004, 0.95),
    },
    103: {
        0: (4.0, 0.95), 10: (28.1457, 0.92485), 29: (99.7855, 0.85022), 30: (99.9995, 0.85), 50: (82.0188, 0.86798),
        101: (0.0479, 0.94995), 102: (0.0004, 0.95),
    },
}  # fmt: skip


@pytest.mark.parametrize("num_steps", GOLDEN)
def test_torch_onecycle_is_pytorchs(num_steps):
    rate = optimizer.learning_rate(TORCH, num_steps)
    beta1 = optimizer.beta1(TORCH, num_steps)
    for step, (want_rate, want_beta1) in GOLDEN[num_steps].items():
        # the golden numbers have four decimals of 1e-6: half a unit of the last is 5e-7 of the peak
        assert abs(float(rate(step)) * 1e6 - want_rate) < 1e-4, step
        assert abs(float(beta1(step)) - want_beta1) < 1e-5, step


@pytest.mark.parametrize("num_steps", [100, 103, 1000])
def test_torch_onecycle_to_a_millionth_of_the_peak(num_steps):
    """Against the closed form in float64."""
    rate = jax.jit(jax.vmap(optimizer.learning_rate(TORCH, num_steps)))(jnp.arange(num_steps))
    step, top, low = np.arange(num_steps), 0.3 * num_steps - 1, 1e-4 / 25
    up = 1e-4 + (low - 1e-4) / 2 * (1 + np.cos(np.pi * step / top))
    end = low / 1e4
    down = end + (1e-4 - end) / 2 * (1 + np.cos(np.pi * (step - top) / (num_steps - 1 - top)))
    np.testing.assert_allclose(rate, np.where(step <= top, up, down), rtol=0, atol=1e-10)


def test_optax_onecycle_peaks_one_step_later():
    config = dataclasses.replace(TORCH, schedule="optax_onecycle")
    ours, theirs = optimizer.learning_rate(config, 100), optimizer.learning_rate(TORCH, 100)
    assert int(jnp.argmax(jax.vmap(ours)(jnp.arange(100)))) == 30
    assert int(jnp.argmax(jax.vmap(theirs)(jnp.arange(100)))) == 29
    assert optimizer.beta1(config, 100) == 0.9


@pytest.mark.parametrize("schedule", ["torch_onecycle", "optax_onecycle"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 10])
def test_short_runs_have_finite_rates_and_end_low(schedule, num_steps):
    rate = optimizer.learning_rate(dataclasses.replace(TORCH, schedule=schedule), num_steps)
    values = np.array([float(rate(i)) for i in range(num_steps + 3)])
    assert np.all(np.isfinite(values)) and np.all(values > 0) and np.all(values <= 1.0001e-4)
    np.testing.assert_allclose(values[num_steps:], 4e-10, rtol=1e-5)  # stays there


PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    "stacked": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3)), "scale": jnp.ones((2, 3))},
    "kernel_size": {"scale": jnp.ones(())},
}


def test_decay_goes_by_name():
    assert optimizer.is_kernel(PARAMS) == {
        "Conv_0": {"kernel": True, "bias": False},
        "stacked": {"kernel": True, "bias": False, "scale": False},
        "kernel_size": {"scale": False},
    }


@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_zero_gradients_decay_only_what_they_should(decay):
    config = dataclasses.replace(TORCH, decay=decay, weight_decay=0.1, peak_learning_rate=1e-2)
    tx = optimizer.build(config, 100)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    shrink = -0.1 * 1e-2 / 25
    np.testing.assert_allclose(updates["stacked"]["kernel"], shrink, rtol=1e-5)
    np.testing.assert_allclose(updates["stacked"]["bias"], shrink if decay == "all" else 0.0, rtol=1e-5)
    used = optimizer.hyperparameters(state)
    np.testing.assert_allclose([used["learning_rate"], used["beta1"]], [1e-2 / 25, 0.95], rtol=1e-5)


def test_beta1_is_cycled_and_gradients_are_clipped():
    """Three updates against Adam written out, with the gradient scaled to norm 1."""
    config = dataclasses.replace(TORCH, weight_decay=0.0, peak_learning_rate=0.1, clip_norm=1.0)
    tx = optimizer.build(config, 20)
    params = {"w": jnp.zeros(2)}
    state, m, v, want = tx.init(params), 0.0, 0.0, np.zeros(2)
    rate, beta1 = optimizer.learning_rate(config, 20), optimizer.beta1(config, 20)
    for i, gradient in enumerate([[3.0, 4.0], [0.3, -0.4], [-6.0, 8.0]]):
        updates, state = tx.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        g, b = np.array(gradient), float(beta1(i))
        g = g / max(1.0, np.linalg.norm(g))
        m, v = b * m + (1 - b) * g, 0.999 * v + 0.001 * g**2
        want -= float(rate(i)) * (m / (1 - b ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
    np.testing.assert_allclose(params["w"], want, rtol=2e-4)
    assert float(beta1(2)) < 0.94
