"""Runs of several processes: the numbers of one, a stop agreed on, failures noticed, checkpoints for any number."""

import dataclasses
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import training_fakes as fakes
from compiler import CHILD, QUICK

from dff_jax import estimators
from dff_jax.config.load import load_config, override
from dff_jax.errors import ConfigError, InputError
from dff_jax.runtime import processes
from dff_jax.training import checkpoint, logging, loop

HELPERS = pathlib.Path(__file__).parents[1] / "helpers"
ROOT = HELPERS.parents[1]


def test_wrong_ways_to_meet():
    for given, words in (
        ((None, 2, None), "give all three"),
        (("here", 2, 0), "needs host:port"),
        (("localhost:1", 2, 2), "from 0 to 1"),
        (("localhost:0", 2, 1), "needs host:port"),
        (("localhost:65536", 2, 1), "needs host:port"),
        (("localhost:²", 2, 1), "needs host:port"),
    ):
        with pytest.raises(ConfigError, match=words):
            processes.join(*given)


def test_one_process_gathers_and_agrees_with_itself():
    stop = processes.Stop(threading.Event())
    assert not stop.agreed() and not stop.agreed_now()
    stop.asked.set()
    assert stop.agreed() and stop.agreed_now()
    assert processes.gather({"a": 1.5}) == [{"a": 1.5}]


def test_what_has_to_be_the_same_in_all(monkeypatch, tmp_path):
    config, told = fakes.small_config(tmp_path), []
    monkeypatch.setattr(processes, "gather", lambda value: told.append(value) or [value, told[0]])
    checkpoint.check_same(config, tmp_path, True)
    data = dataclasses.replace(config.data, num_threads=3, num_workers=1, data_dir="here")
    checkpoint.check_same(dataclasses.replace(config, data=data), tmp_path, True)
    plan = dataclasses.replace(config.training, num_steps=13)
    with pytest.raises(ConfigError) as raised:
        checkpoint.check_same(dataclasses.replace(config, training=plan), tmp_path, False)
    assert "training.num_steps (13 in process 0, 12 in process 1)" in str(raised.value)
    assert "--resume (False in process 0, True in process 1)" in str(raised.value)


def test_bad_input_of_one_is_the_end_of_all(monkeypatch):
    with processes.together():
        pass
    with pytest.raises(ConfigError, match="^mine$") as raised, processes.together():
        raise ConfigError("mine")
    assert raised.value.everywhere and not ConfigError("another").everywhere
    monkeypatch.setattr(processes, "gather", lambda value: [value, "theirs"])
    with pytest.raises(InputError, match="^process 1: theirs$") as raised, processes.together():
        pass
    assert raised.value.everywhere


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 9 stacks to train on and a config file for them: 20 steps of 4 stacks, saved every 6."""
    root = tmp_path_factory.mktemp("processes")
    fakes.write_stacks(root / "stacks", train=9)
    (root / "plan.py").write_text(
        "import dataclasses, training_fakes as fakes\n"
        "def config():\n"
        f"    c = fakes.small_config({str(root / 'stacks')!r}, num_devices=None, num_steps=20, log_every=1,\n"
        "        eval_every=10, save_every=6, keep=9, statistics=3)\n"
        "    return dataclasses.replace(c, data=dataclasses.replace(c.data, batch_size=4))\n"
    )
    return root


def start(place, name, *, befall=None, slurm=False, only=None):
    """Two processes of a run with two devices each, started; `befall`: {process: (step, what)}; `only`: {process:
    options that it alone has}."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {key: value for key, value in os.environ.items() if key != "JAX_COORDINATOR_PORT"}
    env |= CHILD | {"JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = " ".join(["--xla_force_host_platform_device_count=2", *QUICK])
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    started = []
    for i in range(2):
        command = [sys.executable, HELPERS / "process_worker.py", place / "plan.py", "--output", place / name]
        if slurm:  # says by these variables who is who
            values = {"JOB_ID": os.getpid(), "STEP_NODELIST": "localhost", "NTASKS": 2, "LOCALID": 0, "PROCID": i}
            env |= {f"SLURM_{key}": str(value) for key, value in values.items()}
            command += ["--distributed"]
        else:
            command += ["--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id", i]
        command += (only or {}).get(i, [])
        if befall and i in befall:
            command += ["--at", befall[i][0], "--then", befall[i][1]]
        started.append(
            subprocess.Popen([str(x) for x in command], env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                             text=True)
        )  # fmt: skip
    return started


def ends(started, seconds=240):
    """Exit status and stderr of each process."""
    until = time.monotonic() + seconds
    try:
        said = [process.communicate(timeout=max(1, until - time.monotonic()))[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def log(place, name, kind, value):
    return [x[value] for x in logging.read_log(place / name) if x["kind"] == kind]


def saved(place, name):
    return sorted(int(x.name) for x in (place / name / checkpoint.FOLDER).iterdir() if x.name.isdigit())


def train_here(place, name, num_devices):
    """The same run in this process alone."""
    config = override(load_config(str(place / "plan.py")), ["--training.num-devices", str(num_devices)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "build", fakes.build)
        assert loop.train(config, place / name)["step"] == 20


def test_different_configs_are_the_end_of_both(place):
    done = ends(start(place, "different", only={1: ["--training.num-steps", "21"]}), 60)
    for status, said in done:
        assert status == 2, said
        last = said.splitlines()[-1]
        assert "not the same in all: training.num_steps (20 in process 0, 21 in process 1)" in last
    assert not (place / "different").exists()


@pytest.fixture(scope="module")
def whole(place):
    """An undisturbed run, started as SLURM would."""
    done = ends(start(place, "whole", slurm=True))
    assert [status for status, _ in done] == [0, 0], done
    return "whole"


@pytest.mark.slow
def test_two_processes_equal_one(place, whole):
    """Two processes with two devices each, and one with one device: with BatchNorm, over 20 steps."""
    train_here(place, "one", 1)
    losses = log(place, whole, "train", "loss")
    np.testing.assert_allclose(losses, log(place, "one", "train", "loss"), rtol=1e-5)
    found = [log(place, run, "validation", "MAE") for run in (whole, "one")]
    assert len(found[0]) == 2
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert len(losses) == 20 and losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_stopped_killed_and_broken_a_run_goes_on_exactly(place, whole):
    # SIGTERM to process 1 alone: both finish the same step, save and leave
    done = ends(start(place, "broken", befall={1: (7, "term")}))
    assert [status for status, _ in done] == [130, 130], done
    assert "interrupted after step 9 of 20" in done[0][1] and saved(place, "broken") == [6, 9]
    shutil.copytree(place / "broken", place / "stopped")

    # kill -9 of process 0, then bad data in process 1: the other one ends, too
    for ended, what, want in ((0, "kill", -9), (1, "raise", 2)):
        started = start(place, "broken", befall={ended: (15, what)})
        assert started[ended].wait(240) == want
        since = time.monotonic()
        done = ends(started, 60)
        assert what == "kill" or "stack7: cannot be read" in done[ended][1], done
        status, said = done[1 - ended]
        assert status not in (0, None) and time.monotonic() - since < 60
        assert re.search("another (one|task)", said), said
        assert saved(place, "broken") == [6, 9, 10, 12]

    assert [status for status, _ in ends(start(place, "broken"))] == [0, 0]
    for kind, value in (("train", "loss"), ("validation", "MAE")):
        assert log(place, "broken", kind, value) == log(place, whole, kind, value)

    # another number of processes and devices goes on, too
    train_here(place, "stopped", 4)
    assert len(log(place, "stopped", "train", "step")) == 20
    np.testing.assert_allclose(log(place, "stopped", "train", "loss"), log(place, whole, "train", "loss"), rtol=1e-5)
