"""One update on one and on many devices, in one part and in several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_fakes as fakes
from networks import variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.errors import ConfigError
from dff_jax.network.layers import device_axis
from dff_jax.training import optimizer, parallel, state
from dff_jax.training.step import make_update


def run_updates(build, model, *, mode, num_devices, batches, peak=1e-4, accumulate=1, loss=configs.LossConfig()):  # noqa: B008
    """The state after one update on each batch, and each update's metrics, on the host."""
    training = configs.TrainingConfig(parallel=mode, num_devices=num_devices)
    devices = parallel.choose_devices(training, batches[0].frames.shape[0])
    tx = optimizer.build(configs.OptimizerConfig(peak_learning_rate=peak), 100)
    estimator = build(model)
    now = parallel.to_devices(devices, state.begin(variables(estimator, batches[0].frames), tx))
    update = make_update(estimator, tx, loss, model.coordinate, accumulate)
    compiled = parallel.compile_update(devices, update)
    logged = []
    for batch in batches:
        now, metrics = compiled(now, parallel.put_batch(devices, batch))
        logged.append(jax.device_get(parallel.local_copy(devices, metrics)))
    return jax.device_get(parallel.canonical(devices, now)), logged


def assert_same_gradients(one, other, tolerance):
    """In Adam's running mean of them, to `tolerance` of the largest: unlike the parameters it shows their size, too."""
    one, other = (now.opt_state[1].inner_state[0].mu for now in (one, other))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one))
    assert_same(*jax.tree.map(lambda x: x / largest, (one, other)), tolerance)


def assert_same(one, other, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


FAKE = dataclasses.replace(configs.tiny(), num_iterations=2)


@pytest.fixture(scope="module")
def on_one_device():
    return run_updates(fakes.build, FAKE, mode="jit", num_devices=1, batches=two_batches(), peak=1e-2)


def two_batches():
    return [fakes.batch(8, seed=0), fakes.batch(8, seed=1)]


@pytest.mark.parametrize(("mode", "num_devices"), [("jit", 8), ("pmap", 8), ("pmap", 2), ("pmap", 1)])
def test_many_devices_equal_one(on_one_device, mode, num_devices):
    """With BatchNorm over the global batch, and stacks whose shares of valid pixels differ from device to device."""
    assert jax.device_count() >= 8, "conftest gives eight simulated devices"
    now, logged = run_updates(fakes.build, FAKE, mode=mode, num_devices=num_devices, batches=two_batches(), peak=1e-2)
    assert_same([m["loss"] for m in logged], [m["loss"] for m in on_one_device[1]], 1e-5)
    assert_same([m["grad_norm"] for m in logged], [m["grad_norm"] for m in on_one_device[1]], 1e-4)
    assert_same_gradients(on_one_device[0], now, 1e-4)
    for each in (now, on_one_device[0]):
        each.params["Conv_1"]["bias"] = 0.0  # a softmax does not see it, and Adam enlarges a gradient that is rounding
    assert_same(now.params, on_one_device[0].params, 1e-5)
    assert_same(now.batch_stats, on_one_device[0].batch_stats, 1e-5)
    assert int(now.step) == 2 and int(now.bad_step) == -1


@pytest.mark.parametrize(("mode", "num_devices"), [("jit", 1), ("jit", 2), ("pmap", 2)])
def test_accumulated_parts_make_one_update(mode, num_devices):
    """Without statistics over the batch, four parts give the gradient of the whole, however many devices share it."""

    def build(model):
        inner = fakes.build(model)

        def apply(variables, frames, focus, *, train=False, num_iterations=None):
            # as at inference, where each stack is by itself
            return inner.apply(variables, frames, focus, train=False, num_iterations=num_iterations)

        return inner._replace(apply=apply)

    options = {"mode": mode, "num_devices": num_devices, "batches": two_batches()}
    whole, logged_whole = run_updates(build, FAKE, **options)
    parts, logged_parts = run_updates(build, FAKE, **options, accumulate=4)
    for name in logged_whole[0]:
        assert_same([m[name] for m in logged_parts], [m[name] for m in logged_whole], 1e-5)
    assert_same(parts.params, whole.params, 1e-6)


def test_pictures_teach_without_ground_truth_on_any_devices():
    batch = fakes.batch(4, seed=3)
    picture = np.random.default_rng(0).random(batch.frames[:, 0].shape, np.float32)
    batch = batch._replace(mask=np.zeros_like(batch.mask), all_in_focus=picture)
    loss = configs.LossConfig(image=1.0, smoothness=0.1, depth=0.0)
    options = {"batches": [batch, batch], "loss": loss, "peak": 1e-2}
    one, logged = run_updates(fakes.build, FAKE, mode="jit", num_devices=1, **options)
    two, logged_two = run_updates(fakes.build, FAKE, mode="pmap", num_devices=2, **options)
    assert_same(logged, logged_two, 1e-4)
    assert_same_gradients(one, two, 1e-4)
    both = [m["image"] + 0.1 * m["smoothness"] for m in logged]
    np.testing.assert_allclose([m["loss"] for m in logged], both, rtol=1e-6)
    assert 0.1 < logged[0]["image"] < 0.5 and logged[0]["grad_norm"] > 0
    assert logged[1]["loss"] < logged[0]["loss"]


def test_accumulated_statistics_move_with_each_part():
    """BatchNorm normalises within a part: two parts of a batch are two steps of its running mean."""
    batch = fakes.batch(4, seed=2)
    both, _ = run_updates(fakes.build, FAKE, mode="jit", num_devices=1, batches=[batch], accumulate=2)
    expected = 0.0
    for part in (0, 1):
        alone = jax.tree.map(lambda x, part=part: x[part::2], batch)
        now, _ = run_updates(fakes.build, FAKE, mode="jit", num_devices=1, batches=[alone])
        expected = 0.9 * expected + now.batch_stats["BatchNorm_0"]["mean"]  # which is a tenth of the part's own
    assert_same(both.batch_stats["BatchNorm_0"]["mean"], expected, 1e-6)


def test_parameters_and_statistics_move(on_one_device):
    """Or the comparison above would mean nothing."""
    start = variables(fakes.build(FAKE), two_batches()[0].frames)
    now, logged = on_one_device
    moved = np.abs(now.params["Conv_0"]["kernel"] - start["params"]["Conv_0"]["kernel"])
    assert moved.max() > 4e-4  # the learning rate starts at 4e-4
    assert np.abs(now.batch_stats["BatchNorm_0"]["mean"]).max() > 1e-3
    assert logged[0]["loss"] > 0.05 and logged[0]["loss"] != logged[1]["loss"]


def test_two_devices_equal_one_for_tiny():
    """By pmap, for which the norms reduce by themselves; all of the network but parts without norms."""
    model = dataclasses.replace(
        configs.tiny(), width=0.0625, head_width=0.125, measure_prior="none", guide="none", num_candidates=2,
        num_iterations=1, prox="identity", refiner_steps=0,
    )  # fmt: skip
    estimator = estimators.build(model)
    batch = fakes.batch(2, seed=0, side=32)
    given = variables(estimator, batch.frames)

    def update(now, batch):
        """Without gradients, which take most of the time to compile."""
        prediction, stats = estimator.apply(state.variables(now), batch.frames, batch.focus, train=True)
        depth = jnp.mean(prediction.depth)
        depth = jax.lax.pmean(depth, device_axis()) if device_axis() else depth
        return now._replace(batch_stats=stats), {"depth": depth}

    found = []
    for mode, number in (("jit", 1), ("pmap", 2)):
        devices = parallel.choose_devices(configs.TrainingConfig(parallel=mode, num_devices=number), 2)
        now = parallel.to_devices(devices, state.begin(given, optax.identity()))
        now, metrics = parallel.compile_update(devices, update)(now, parallel.put_batch(devices, batch))
        found.append(jax.device_get((parallel.local_copy(devices, metrics), parallel.canonical(devices, now))))
    (one, before), (two, after) = found
    assert_same(one["depth"], two["depth"], 1e-5)
    assert_same(before.batch_stats, after.batch_stats, 1e-5)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), given["batch_stats"], before.batch_stats)
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_update_compiles_once_and_donates_its_state():
    devices = parallel.choose_devices(configs.TrainingConfig(num_devices=2), 4)
    traces = []

    def update(now, batch):
        traces.append(1)
        return now._replace(step=now.step + 1), {"loss": batch.depth.sum()}

    compiled = parallel.compile_update(devices, update)
    before = state.TrainState(jnp.int32(0), {"w": jnp.ones(3)}, {}, (), jnp.int32(-1))
    first = parallel.to_devices(devices, before)
    now, _ = compiled(first, parallel.put_batch(devices, fakes.batch(4)))
    compiled(now, parallel.put_batch(devices, fakes.batch(4, seed=1)))
    assert len(traces) == 1
    assert first.params["w"].is_deleted()
    assert not before.params["w"].is_deleted()


def test_wrong_numbers_of_devices():
    training = configs.TrainingConfig(num_devices=8)
    with pytest.raises(ConfigError, match=r"data.batch_size: 6 stacks do not divide over 8 devices.*multiple of 8"):
        parallel.choose_devices(training, 6)
    with pytest.raises(ConfigError, match=r"accumulate: 3 stacks a device do not divide into 2 parts.*multiple of 4"):
        parallel.choose_devices(configs.TrainingConfig(num_devices=2, accumulate=2), 6)
    with pytest.raises(ConfigError, match=r"training.num_devices: 1000 asked for, but there are only"):
        parallel.choose_devices(dataclasses.replace(training, num_devices=1000), 1000)


def test_first_bad_step_is_kept():
    """The first update with a bad number is the one that is named, later ones do not overwrite it."""
    batches = [fakes.batch(2, seed=i) for i in range(4)]
    batches[1] = batches[1]._replace(frames=np.full_like(batches[1].frames, np.nan))
    now, logged = run_updates(fakes.build, FAKE, mode="jit", num_devices=1, batches=batches)
    assert int(now.bad_step) == 2
    assert np.isfinite(logged[0]["loss"]) and np.isnan(logged[1]["loss"]) and np.isnan(logged[3]["loss"])
