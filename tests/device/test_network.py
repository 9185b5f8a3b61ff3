"""On the device: a small network's depth and update, over several devices, and its checkpoint."""

import jax
import numpy as np
import optax
import pytest
from device_checks import distance, on_cpu, on_device

from dff_jax import config as configs
from dff_jax.config import TrainingConfig
from dff_jax.studies.bench.subjects import batch, inference, training_step
from dff_jax.training import checkpoint, parallel

pytestmark = pytest.mark.device

SHAPE = (2, 4, 32)  # stacks, frames, side
FOCUS_RANGE = 90.0  # of `subjects.batch`


def test_depth_is_that_of_the_cpu(network, within):
    function, arguments = inference(network, SHAPE)
    run = jax.jit(function)
    ours, cpu = (np.asarray(run(*put(arguments)).depth) for put in (on_device, on_cpu))
    within(float(np.abs(ours - cpu).max() / FOCUS_RANGE), 3e-4)


def test_default_precision_changes_little(network, within):
    """TF32 on new cards: mean change of the depth, as a share of the focus range."""
    function, arguments = inference(network, SHAPE)
    found = []
    for precision in (None, "highest"):
        with jax.default_matmul_precision(precision):
            found.append(np.asarray(jax.jit(function)(*on_device(arguments)).depth))
    within(float(np.abs(found[0] - found[1]).mean() / FOCUS_RANGE), 2e-3)


def test_rematerialised_update_is_plain_backpropagation_on_the_cpu(network, within):
    ours, arguments = training_step(network.replace_known(gradient="remat"), batch(SHAPE))
    plain, _ = training_step(network.replace_known(gradient="backprop"), batch(SHAPE))
    (now, logged), (cpu, wanted) = jax.device_get(
        (jax.jit(ours)(*on_device(arguments)), jax.jit(plain)(*on_cpu(arguments)))
    )
    moments = [optax.tree_utils.tree_get(state.opt_state, "mu") for state in (now, cpu)]
    loss = float(abs(logged["loss"] - wanted["loss"]) / abs(wanted["loss"]))
    within(max(loss, distance(*moments), distance(now.batch_stats, cpu.batch_stats)), 5e-3)


def test_one_update_over_all_devices_by_jit_and_by_pmap(network, within):
    """Loss, moments and statistics of both; the error is the share of the tolerance that is used up.

    Random frames have maxima that nearly tie, where rounding decides which pixel a gradient goes to. So each of the
    three may differ by 1e-3, and up to a tenth by as much as frames do that differ by 1e-5.
    """
    number = jax.device_count()
    data = batch((2 * number, *SHAPE[1:]))
    stripes = np.float32(1 + 1e-5 * (-1) ** np.arange(SHAPE[2])[:, None])
    moved = data._replace(frames=np.asarray(data.frames) * stripes)
    update, (state, _) = training_step(network, data)
    found = []
    for mode, given in (("jit", (data, moved)), ("pmap", (data,))):
        devices = parallel.choose_devices(TrainingConfig(parallel=mode), 2 * number)
        compiled = parallel.compile_update(devices, update)
        for seen in given:
            now, logged = compiled(parallel.to_devices(devices, state), parallel.put_batch(devices, seen))
            now, logged = jax.device_get(parallel.local_copy(devices, (now, logged)))
            moments = optax.tree_utils.tree_get(now.opt_state, "mu")
            found.append((logged["loss"], moments, now.batch_stats))
    by_jit, from_moved, by_pmap = found
    spread, most = ([distance(a, b) for a, b in zip(other, by_jit, strict=True)] for other in (by_pmap, from_moved))
    within(max(error / min(0.1, max(1e-3, moves)) for error, moves in zip(spread, most, strict=True)), 1.0)


def test_a_checkpoint_brings_every_leaf_back(network, within, tmp_path):
    """The error is the number of leaves with other bits, of another type or on another device."""
    _, (state, _) = training_step(network, batch(SHAPE))
    devices = parallel.choose_devices(TrainingConfig(), jax.device_count())
    now = parallel.to_devices(devices, state)
    config = configs.Config(name="checkpoint", model=network)
    with checkpoint.open_manager(tmp_path, 1) as manager:
        checkpoint.save(manager, config, now, {"next_index": 3}, checkpoint.Progress())
        back = checkpoint.restore(manager, config, checkpoint.abstract(now, devices.whole))
    same = [
        a.dtype == b.dtype and a.sharding == b.sharding and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*map(jax.tree.leaves, (now, back.state)), strict=True)
    ]
    assert back.data == {"next_index": 3}
    within(float(same.count(False)), 0.0)
