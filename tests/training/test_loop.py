"""One update on one and on many devices; the loop: logs, weights, interruption, divergence, wrong input."""

import dataclasses
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict
from networks import variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.data import pipeline
from dff_jax.errors import ConfigError, InputError
from dff_jax.estimators import weights
from dff_jax.estimators.weights import load_weights
from dff_jax.runtime import stopping
from dff_jax.training import checkpoint, logging, loop, optimizer, parallel, state, validation
from dff_jax.training.step import make_update

# Devices -------------------------------------------------------------------------------------------------------


def run_updates(build, model, *, mode, num_devices, batches, peak=1e-4, accumulate=1):
    """The state after one update on each batch, and each update's metrics, on the host."""
    training = configs.TrainingConfig(parallel=mode, num_devices=num_devices)
    devices = parallel.choose_devices(training, batches[0].frames.shape[0])
    tx = optimizer.build(configs.OptimizerConfig(peak_learning_rate=peak), 100)
    estimator = build(model)
    now = parallel.to_devices(devices, state.begin(variables(estimator, batches[0].frames), tx))
    update = make_update(estimator, tx, configs.LossConfig(), model.coordinate, accumulate)
    compiled = parallel.compile_update(devices, update)
    logged = []
    for batch in batches:
        now, metrics = compiled(now, parallel.put_batch(devices, batch))
        logged.append(jax.device_get(parallel.local_copy(devices, metrics)))
    return jax.device_get(parallel.canonical(devices, now)), logged


def assert_same(one, other, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


FAKE = dataclasses.replace(configs.tiny(), num_iterations=2)


@pytest.fixture(scope="module")
def on_one_device():
    return run_updates(fakes.build, FAKE, mode="jit", num_devices=1, batches=two_batches())


def two_batches():
    return [fakes.batch(8, seed=0), fakes.batch(8, seed=1)]


@pytest.mark.parametrize(("mode", "num_devices"), [("jit", 8), ("pmap", 8), ("pmap", 2), ("pmap", 1)])
def test_many_devices_equal_one(on_one_device, mode, num_devices):
    """With BatchNorm over the global batch, and stacks whose shares of valid pixels differ from device to device."""
    assert jax.device_count() >= 8, "conftest gives eight simulated devices"
    now, logged = run_updates(fakes.build, FAKE, mode=mode, num_devices=num_devices, batches=two_batches())
    assert_same([m["loss"] for m in logged], [m["loss"] for m in on_one_device[1]], 1e-5)
    assert_same([m["grad_norm"] for m in logged], [m["grad_norm"] for m in on_one_device[1]], 1e-4)
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
    start = fakes.build(FAKE).init(jax.random.key(0), *two_batches()[0][:2])
    now, logged = on_one_device
    moved = np.abs(now.params["Conv_0"]["kernel"] - start["params"]["Conv_0"]["kernel"])
    assert moved.max() > 4e-6  # the learning rate starts at 4e-6
    assert np.abs(now.batch_stats["BatchNorm_0"]["mean"]).max() > 1e-3
    assert logged[0]["loss"] > 0.05 and logged[0]["loss"] != logged[1]["loss"]


@pytest.mark.slow
def test_two_devices_equal_one_for_tiny():
    """By pmap, for which the norms reduce by themselves; all of the network but parts without norms."""
    model = dataclasses.replace(
        configs.tiny(), width=0.0625, head_width=0.125, measure_prior="none", guide="none", num_candidates=2,
        num_iterations=1, prox="identity", refiner_steps=0,
    )  # fmt: skip
    batches = [fakes.batch(2, seed=0, side=32)]
    one, logged_one = run_updates(estimators.build, model, mode="jit", num_devices=1, batches=batches)
    two, logged_two = run_updates(estimators.build, model, mode="pmap", num_devices=2, batches=batches)
    assert_same(logged_one[0]["loss"], logged_two[0]["loss"], 1e-5)
    assert_same(one.params, two.params, 1e-5)
    assert_same(one.batch_stats, two.batch_stats, 1e-5)


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


# The loop ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    return fakes.write_stacks(tmp_path_factory.mktemp("stacks"))


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(estimators, "build", fakes.build)


def interrupting(loader, after, number=signal.SIGINT):
    """The loader, raising a signal when it hands out batch `after` (counted from now)."""
    inner = type(loader).__next__
    count = [0]

    class Interrupting(type(loader)):
        def __next__(self):
            count[0] += 1
            if count[0] == after:
                os.kill(os.getpid(), number)
            return inner(self)

    loader.__class__ = Interrupting
    return loader


def patch_loader(monkeypatch, change):
    make = pipeline.training_loader
    monkeypatch.setattr(pipeline, "training_loader", lambda *a, **k: change(make(*a, **k)))


def without_times(lines):
    times = ("step_seconds", "stacks_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def stored(run):
    """The newest checkpoint's state, as numpy."""
    with checkpoint.open_manager(run, 1) as manager:
        import orbax.checkpoint as ocp

        step = manager.latest_step()
        found = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
        return jax.tree.map(np.asarray, found)


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def finished(stacks, tmp_path_factory):
    """An uninterrupted run, its summary and what it said."""
    run = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "build", fakes.build)
        return run, loop.train(fakes.small_config(stacks), run)


def test_a_run_leaves_logs_checkpoints_and_weights(finished, stacks, network):
    run, summary = finished
    lines = logging.read_log(run)
    assert [x["step"] for x in lines if x["kind"] == "train"] == [1, 3, 6, 9, 12]
    evaluated = [x for x in lines if x["kind"] == "validation"]
    assert [x["step"] for x in evaluated] == [5, 10, 12]
    for name in ("loss", "mae", "mae_D0", "update", "grad_norm", "update_norm", "param_norm", "learning_rate"):
        assert all(np.isfinite(x[name]) for x in lines if x["kind"] == "train"), name
    for name in ("MAE", "RMS", "AbsRel", "MAE/D(0)", "step/D(1)", "step/D(2)", "gain/refined"):
        assert all(np.isfinite(x[name]) for x in evaluated), name
    x = evaluated[-1]
    assert x["gain/final"] == pytest.approx(x["MAE/D(0)"] - x["MAE"])

    best = min(evaluated, key=lambda x: x["MAE"])
    assert summary["best"] == {"step": best["step"], "MAE": best["MAE"]}
    assert summary["step"] == 12 and not summary["interrupted"] and summary["final"] == evaluated[-1]
    kept = {int(x.name) for x in (run / checkpoint.FOLDER).iterdir()}
    assert kept == {best["step"], 12}
    loaded = load_weights(summary["weights"])
    assert loaded.info["step"] == best["step"] and loaded.info["metric"]["MAE"] == best["MAE"]
    assert loaded.info["num_frames"] == fakes.FRAMES and loaded.info["unit"] == "disparity"
    last = load_weights(run / validation.LAST_WEIGHTS)
    assert_equal_trees(last.variables["params"], stored(run)["params"])
    config = configs.from_json((run / "config.json").read_text())
    assert config == fakes.small_config(stacks) == configs.from_dict(last.info["config"])


def test_training_improves(finished):
    lines = [x for x in logging.read_log(finished[0]) if x["kind"] == "train"]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_a_finished_run_is_left_alone(finished, stacks, network):
    run, summary = finished
    log = (run / logging.FILE_NAME).read_text()
    again = loop.train(fakes.small_config(stacks), run)
    assert (run / logging.FILE_NAME).read_text() == log
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


@pytest.mark.parametrize(
    ("after", "number"), [(3, signal.SIGINT), (6, signal.SIGTERM), (11, signal.SIGINT), (13, signal.SIGINT)]
)
def test_interrupted_and_resumed_is_uninterrupted(
    finished, stacks, network, tmp_path, monkeypatch, capsys, after, number
):
    """Bit for bit, logs included. The loader's first batch is the look at the shapes, so batch n+1 is step n."""
    config = fakes.small_config(stacks)
    with pytest.MonkeyPatch.context() as patch:
        patch_loader(patch, lambda loader: interrupting(loader, after, number))
        summary = loop.train(config, tmp_path / "run")
    assert summary["interrupted"] and summary["step"] == after - 1
    said = capsys.readouterr().err
    assert f"interrupted after step {after - 1} of 12" in said and "the same command resumes" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    summary = loop.train(config, tmp_path / "run")
    assert not summary["interrupted"] and summary["step"] == 12
    assert_equal_trees(stored(tmp_path / "run"), stored(finished[0]))
    lines, want = logging.read_log(tmp_path / "run"), logging.read_log(finished[0])
    assert without_times(lines) == without_times(want)


def test_a_running_average_is_resumed_and_is_what_is_exported(stacks, network, tmp_path):
    config = fakes.small_config(stacks, average=0.9)
    loop.train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch_loader(patch, lambda loader: interrupting(loader, 7))
        assert loop.train(config, tmp_path / "cut")["interrupted"]
    loop.train(config, tmp_path / "cut")
    assert_equal_trees(stored(tmp_path / "cut"), stored(tmp_path / "whole"))
    last = stored(tmp_path / "whole")
    exported = weights.read(tmp_path / "whole" / validation.LAST_WEIGHTS)[1]
    kept = flatten_dict(last["average"], sep="/")
    assert exported.keys() == kept.keys()
    for name, value in exported.items():
        np.testing.assert_array_equal(value, kept[name])
    assert any(np.any(kept[f"params/{n}"] != x) for n, x in flatten_dict(last["params"], sep="/").items())


def test_two_signals_at_once_are_one_and_a_later_one_stops_at_once():
    """Ctrl-C in `scripts/train_local` reaches each process twice: from the terminal and from the script."""
    with stopping.stop_on_signal() as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_during_an_evaluation(finished, stacks, network, tmp_path, monkeypatch):
    """The evaluation is given up, the state saved; resumed, it is made good."""
    config = fakes.small_config(stacks)
    measure = validation.evaluated

    def evaluated(*args, **kwargs):
        for found in measure(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            yield found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "evaluated", evaluated)
        summary = loop.train(config, tmp_path)
    assert summary["interrupted"] and summary["step"] == 5 and summary["final"] is None
    loop.train(config, tmp_path)
    lines, want = logging.read_log(tmp_path), logging.read_log(finished[0])
    assert without_times(lines) == without_times(want)


def poisoned(loader, at):
    """The loader, with frames that are not numbers in batch `at`."""
    inner = type(loader).__next__

    class Poisoned(type(loader)):
        def __next__(self):
            item, here = inner(self), self.get_state()["next_index"]
            frames = item.batch.frames * (np.nan if here == at else 1.0)
            return item._replace(batch=item.batch._replace(frames=np.asarray(frames, np.float32)))

    loader.__class__ = Poisoned
    return loader


def test_nan_stops_and_names_the_stacks(stacks, network, tmp_path, monkeypatch):
    config = fakes.small_config(stacks)
    want = pipeline.training_loader(config.data, config.seed)
    names = [next(want).names for _ in range(7)][-1]
    patch_loader(monkeypatch, lambda loader: poisoned(loader, 7))
    with pytest.raises(loop.TrainingDiverged) as caught:
        loop.train(config, tmp_path)
    message = str(caught.value)
    assert message.startswith("step 7:") and ", ".join(names) in message
    assert message.endswith(str(tmp_path / checkpoint.FOLDER / "5"))
    assert {int(x.name) for x in (tmp_path / checkpoint.FOLDER).iterdir()} == {5}
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(stored(tmp_path)))
    assert load_weights(tmp_path / validation.BEST_WEIGHTS).info["step"] == 5
    assert max(x["step"] for x in logging.read_log(tmp_path)) == 6


@pytest.mark.parametrize("every", ["eval_every", "save_every"])
def test_no_evaluation_and_no_save_of_a_bad_state(stacks, network, tmp_path, monkeypatch, every):
    """The bad step is the very one at which they are due."""
    config = fakes.small_config(stacks, **{"eval_every": 100, "save_every": 100, "log_every": 100} | {every: 2})
    patch_loader(monkeypatch, lambda loader: poisoned(loader, 2))
    with pytest.raises(loop.TrainingDiverged, match="step 2:.*there is no checkpoint yet"):
        loop.train(config, tmp_path)
    assert not any((tmp_path / checkpoint.FOLDER).iterdir())
    assert not (tmp_path / validation.BEST_WEIGHTS).exists()
    assert [x["kind"] for x in logging.read_log(tmp_path)] == ["train"]


def test_switching_devices_between_interruption_and_resumption(finished, stacks, network, tmp_path):
    """jit on one device, then pmap on two, then jit on two: one run."""
    plans = [(4, {}), (5, {"parallel": "pmap", "num_devices": 2}), (99, {"num_devices": 2})]
    for after, training in plans:
        with pytest.MonkeyPatch.context() as patch:
            patch_loader(patch, lambda loader, after=after: interrupting(loader, after))
            summary = loop.train(fakes.small_config(stacks, **training), tmp_path)
    assert not summary["interrupted"]
    got, want = logging.read_log(tmp_path), logging.read_log(finished[0])
    for name in ("loss", "MAE"):
        values = [[x[name] for x in lines if name in x] for lines in (got, want)]
        np.testing.assert_allclose(*values, rtol=1e-3)  # twelve steps at a hundred times the rate of above


def test_transfer_and_tensorboard(stacks, network, tmp_path):
    config = fakes.small_config(
        stacks, num_steps=2, tensorboard=True, transfer=str(stacks / "train"), eval_every=2
    )
    loop.train(config, tmp_path)
    kinds = {x["kind"]: x for x in logging.read_log(tmp_path)}
    assert set(kinds) == {"train", "validation", "transfer"}
    assert kinds["transfer"]["MAE"] != kinds["validation"]["MAE"] and "gain/refined" in kinds["transfer"]
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    for tag in (b"train/loss", b"validation/MAE", b"validation/depth", b"transfer/error", b"validation/truth"):
        assert tag in data
    assert data.count(b"\x89PNG") == 6


def test_wrong_input_leaves_nothing(stacks, network, tmp_path):
    good = fakes.small_config(stacks)
    missing = dataclasses.replace(good, data=dataclasses.replace(good.data, dataset=str(tmp_path / "absent")))
    odd = dataclasses.replace(good, data=dataclasses.replace(good.data, batch_size=3))
    eight = dataclasses.replace(odd, training=dataclasses.replace(odd.training, num_devices=8))
    idle = dataclasses.replace(good, model=configs.Classical())
    (tmp_path / "file").write_text("x")
    for config, output, words in (
        (missing, "out", "absent"),
        (eight, "out", "do not divide over 8 devices"),
        (idle, "out", "nothing to train"),
        (good, "file", "is a file"),
    ):
        with pytest.raises(InputError, match=words):
            loop.train(config, tmp_path / output)
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_log_resumed_is_cut_and_survives_a_torn_line(tmp_path):
    writer = logging.JsonlWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, "train", {"loss": float("nan")})
        writer.scalars(step, "validation", {"MAE": 1.5})
    writer.close()
    with (tmp_path / logging.FILE_NAME).open("a") as file:
        file.write('{"step": 4, "ki')
    logging.JsonlWriter(tmp_path, step=2, evaluated=1).close()
    lines = [json.loads(x) for x in (tmp_path / logging.FILE_NAME).read_text().splitlines()]
    assert [(x["step"], x["kind"]) for x in lines] == [(1, "train"), (1, "validation"), (2, "train")]
    assert lines[0]["loss"] is None  # JSON has no NaN
