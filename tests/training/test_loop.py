"""The loop: logs, weights, interruption, divergence, wrong input."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.data import pipeline
from dff_jax.errors import InputError
from dff_jax.estimators import weights
from dff_jax.estimators.weights import load_weights
from dff_jax.runtime import stopping
from dff_jax.training import checkpoint, logging, loop, validation
from dff_jax.types import Batch

pytestmark = pytest.mark.usefixtures("default_signals")


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


class Recorder:
    """A writer of one's own."""

    def __init__(self):
        self.lines, self.pictures = [], []

    def scalars(self, step, kind, values):
        self.lines.append({"step": step, "kind": kind} | dict(values))

    def images(self, step, kind, images):
        self.pictures += images.values()


RECORDED = Recorder()  # by the run of `finished`


@pytest.fixture(scope="module")
def finished(stacks, tmp_path_factory):
    """An uninterrupted run, its summary and what it said."""
    run = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "build", fakes.build)
        return run, loop.train(fakes.small_config(stacks), run, writers=[RECORDED])


def test_a_writer_of_ones_own_gets_what_the_log_gets(finished):
    names = [(x["step"], x["kind"], set(x)) for x in RECORDED.lines]
    assert names == [(x["step"], x["kind"], set(x)) for x in logging.read_log(finished[0])]
    assert len(RECORDED.pictures) and {x.dtype.name for x in RECORDED.pictures} == {"uint8"}


def test_a_run_leaves_logs_checkpoints_and_weights(finished, stacks, network):
    run, summary = finished
    lines = logging.read_log(run)
    assert [x["step"] for x in lines if x["kind"] == "train"] == [1, 3, 6, 9, 12]
    evaluated = [x for x in lines if x["kind"] == "validation"]
    assert [x["step"] for x in evaluated] == [5, 10, 12]
    for name in ("loss", "mae", "mae_D0", "update", "grad_norm", "update_norm", "param_norm", "learning_rate"):
        assert all(np.isfinite(x[name]) for x in lines if x["kind"] == "train"), name
    for name in ("MAE", "RMS", "AbsRel", "MAE/D(0)", "MAE/constant", "step/D(1)", "step/D(2)", "gain/refined"):
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
    ("after", "number"), [(3, signal.SIGINT), (6, signal.SIGTERM), (13, signal.SIGINT)]
)
def test_interrupted_and_resumed_is_uninterrupted(
    finished, stacks, network, tmp_path, capsys, after, number
):
    """Bit for bit, logs included. The loader's first batch is the look at the shapes, so batch n+1 is step n."""
    config = fakes.small_config(stacks)
    with fakes.interrupting(after, number):
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
    with fakes.interrupting(7):
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


def poisoned(at):
    """Frames that are not numbers in batch `at`."""

    def change(loader, following):
        item, here = following(), loader.get_state()["next_index"]
        frames = np.float32(item.batch.frames * (np.nan if here == at else 1.0))
        return item._replace(batch=item.batch._replace(frames=frames))

    return fakes.loading(change)


def test_nan_stops_and_names_the_stacks(stacks, network, tmp_path):
    config = fakes.small_config(stacks)
    want = pipeline.training_loader(config.data, config.seed)
    names = [next(want).names for _ in range(7)][-1]
    with poisoned(7), pytest.raises(loop.TrainingDiverged) as caught:
        loop.train(config, tmp_path)
    message = str(caught.value)
    assert message.startswith("step 7:") and ", ".join(names) in message
    assert message.endswith(str(tmp_path / checkpoint.FOLDER / "5"))
    assert {int(x.name) for x in (tmp_path / checkpoint.FOLDER).iterdir()} == {5}
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(stored(tmp_path)))
    assert load_weights(tmp_path / validation.BEST_WEIGHTS).info["step"] == 5
    assert max(x["step"] for x in logging.read_log(tmp_path)) == 6


@pytest.mark.parametrize("every", ["eval_every", "save_every"])
def test_no_evaluation_and_no_save_of_a_bad_state(stacks, network, tmp_path, every):
    """The bad step is the very one at which they are due."""
    config = fakes.small_config(stacks, **{"eval_every": 100, "save_every": 100, "log_every": 100} | {every: 2})
    with poisoned(2), pytest.raises(loop.TrainingDiverged, match="step 2:.*there is no checkpoint yet"):
        loop.train(config, tmp_path)
    assert not any((tmp_path / checkpoint.FOLDER).iterdir())
    assert not (tmp_path / validation.BEST_WEIGHTS).exists()
    assert [x["kind"] for x in logging.read_log(tmp_path)] == ["train"]


def test_switching_devices_between_interruption_and_resumption(finished, stacks, network, tmp_path):
    """jit on one device, then pmap on two, then jit on two: one run."""
    plans = [(4, {}), (5, {"parallel": "pmap", "num_devices": 2}), (99, {"num_devices": 2})]
    for after, training in plans:
        with fakes.interrupting(after):
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


@pytest.mark.parametrize("name", ["config.json", "train.jsonl", "weights.safetensors", "weights_last.safetensors"])
def test_files_of_somebody_else_are_not_taken_for_a_run(stacks, network, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}: was not written here by this program"):
        loop.train(fakes.small_config(stacks), tmp_path)
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_run_folder_has_one_user(finished, stacks, network, tmp_path):
    """The second start changes nothing; when the first has ended in whatever way, the folder is free."""
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    hold = "import sys, pathlib\nfrom dff_jax.runtime.files import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"
    command = [sys.executable, "-c", hold + "    print(flush=True)\n    sys.stdin.read()", output]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        before = {x: x.stat().st_mtime_ns for x in output.rglob("*")}
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on "):
            loop.train(fakes.small_config(stacks), output)
        assert {x: x.stat().st_mtime_ns for x in output.rglob("*")} == before
        holder.kill()
    assert loop.train(fakes.small_config(stacks), output)["step"] == 12
    assert not [x for x in output.iterdir() if "lock" in x.name]


def failing(at):
    """A stack that cannot be read in batch `at`."""

    def change(loader, following):
        if loader.get_state()["next_index"] == at:
            raise InputError("stack7/10.0.png: cannot be read")
        return following()

    return fakes.loading(change)


def test_a_bad_frame_in_mid_run_costs_no_step(finished, stacks, network, tmp_path):
    config = fakes.small_config(stacks)
    with failing(7), pytest.raises(InputError, match=r"stack7/10.0.png: cannot be read; saved after step 7"):
        loop.train(config, tmp_path)
    assert int(stored(tmp_path)["step"]) == 7
    assert loop.train(config, tmp_path)["step"] == 12
    assert_equal_trees(stored(tmp_path)["params"], stored(finished[0])["params"])


def test_a_folder_of_stacks_that_has_changed_is_told(network, tmp_path, capsys):
    stacks = fakes.write_stacks(tmp_path / "stacks")
    config = fakes.small_config(stacks, num_steps=2)
    for change, words in (
        (lambda: None, ""),
        (lambda: None, ""),
        (lambda: os.utime(stacks / "train" / "stack0" / "disp.npy", (1, 1)), "32 files then, 32 files now"),
        (lambda: (stacks / "val" / "more.txt").touch(), "32 files then, 33 files now"),
    ):
        change()
        loop.train(config, tmp_path / "run")
        said = capsys.readouterr().err
        assert (f"note: {stacks}: not the data with which the run began" in said) == bool(words) and words in said


@pytest.mark.parametrize(
    "name", ["config.json", "train.jsonl", "weights.safetensors", "weights_last.safetensors", ".dff-jax.lock"]
)
def test_a_folder_where_a_file_belongs(stacks, network, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))) as raised:
        loop.train(fakes.small_config(stacks), tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_file_where_a_folder_belongs(stacks, network, tmp_path, name):
    (tmp_path / name).write_text("of another program")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
        loop.train(fakes.small_config(stacks, tensorboard=True), tmp_path)
    assert (tmp_path / name).read_text() == "of another program"


def test_a_log_that_finds_the_disk_full_ends_in_one_line(stacks, network, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = fakes.small_config(stacks, log_every=5, save_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(validation.Validator, "run", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); what was saved before"):
            loop.train(config, tmp_path)
    assert int(stored(tmp_path)["step"]) == 3
    assert loop.train(config, tmp_path)["step"] == 12


def test_the_constant_prediction_is_the_middle_of_the_focus_range():
    depth = np.full((2, 4, 4), 2.0, np.float32)
    mask = np.ones((2, 4, 4), bool)
    mask[1] = False
    batch = Batch(np.zeros((2, 3, 4, 4, 3)), np.array([[0.5, 1.0, 5.5], [0, 1, 2]]), depth, mask)
    assert validation.errors_of_middle(batch, "disparity") == [1.0]
    assert validation.errors_of_middle(batch, "metre") == [pytest.approx(abs(1 / 2 - 1 / 3))]
