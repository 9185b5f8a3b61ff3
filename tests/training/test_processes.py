"""Runs of several processes: the numbers of one, a death noticed, a stop agreed on, checkpoints for any number."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import training_fakes as fakes
from compiler import CACHE, QUICK

from dff_jax.training import checkpoint, logging

HELPERS = pathlib.Path(__file__).parents[1] / "helpers"
ROOT = HELPERS.parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 9 stacks to train on and a config file for them: 20 steps of 4 stacks, saved every 6."""
    root = tmp_path_factory.mktemp("processes")
    fakes.write_stacks(root / "stacks", train=9)
    (root / "plan.py").write_text(
        "import dataclasses, training_fakes as fakes\n"
        "def config():\n"
        f"    c = fakes.small_config({str(root / 'stacks')!r}, num_devices=None, num_steps=20, log_every=1,\n"
        "        eval_every=10, save_every=6, keep=9)\n"
        "    return dataclasses.replace(c, data=dataclasses.replace(c.data, batch_size=4))\n"
    )
    return root


def start(place, name, processes, devices, *options, befall=None):
    """The processes of a run, started; `befall`: {process: (step, what)}."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = dict(os.environ, JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(CACHE))
    env["XLA_FLAGS"] = " ".join([f"--xla_force_host_platform_device_count={devices}", *QUICK])
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    started = []
    for i in range(processes):
        command = [sys.executable, HELPERS / "process_worker.py", place / "plan.py", "--output", place / name, *options]
        if processes > 1:
            command += ["--coordinator", f"localhost:{port}", "--num-processes", processes, "--process-id", i]
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


@pytest.fixture(scope="module")
def whole(place):
    """An undisturbed run of two processes with two devices each."""
    done = ends(start(place, "whole", 2, 2))
    assert [status for status, _ in done] == [0, 0], done
    return "whole"


def test_two_processes_equal_one(place, whole):
    """And four devices in one process, and one device: with BatchNorm, over 20 steps."""
    for name, devices, options in (("four", 4, ()), ("one", 4, ("--training.num-devices", 1))):
        (done,) = ends(start(place, name, 1, devices, *options))
        assert done[0] == 0, done
        np.testing.assert_allclose(log(place, whole, "train", "loss"), log(place, name, "train", "loss"), rtol=1e-5)
        found = [log(place, run, "validation", "MAE") for run in (whole, name)]
        assert len(found[0]) == 2
        np.testing.assert_allclose(*found, rtol=1e-4)
    losses = log(place, whole, "train", "loss")
    assert len(losses) == 20 and losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_stops_the_others_and_the_run_goes_on_exactly(place, whole, killed):
    name = f"killed{killed}"
    started = start(place, name, 2, 2, befall={killed: (15, "kill")})
    assert started[killed].wait(240) == -9
    since = time.monotonic()
    status, said = ends(started, 60)[1 - killed]
    assert status not in (0, None) and time.monotonic() - since < 60
    assert "process" in said  # ours if the exchange failed first, JAX's if the missing heartbeat was noticed
    assert saved(place, name) == [6, 10, 12]

    assert [status for status, _ in ends(start(place, name, 2, 2))] == [0, 0]
    assert log(place, name, "train", "loss") == log(place, whole, "train", "loss")
    assert log(place, name, "validation", "MAE") == log(place, whole, "validation", "MAE")


def test_a_signal_to_one_stops_all_at_one_step_and_any_number_goes_on(place, whole):
    """SIGTERM to process 1 only; then four processes, which get one; then one process with one device."""
    name = "asked"
    done = ends(start(place, name, 2, 2, befall={1: (7, "term")}))
    assert [status for status, _ in done] == [130, 130], done
    assert "interrupted after step 9 of 20" in done[0][1] and saved(place, name) == [6, 9]
    done = ends(start(place, name, 4, 1, befall={3: (13, "term")}))
    assert [status for status, _ in done] == [130] * 4, done
    assert saved(place, name) == [6, 9, 10, 12, 15]
    (done,) = ends(start(place, name, 1, 1))
    assert done[0] == 0 and "resuming after step 15" in done[1]
    assert len(log(place, name, "train", "step")) == 20
    np.testing.assert_allclose(log(place, name, "train", "loss"), log(place, whole, "train", "loss"), rtol=1e-5)


def test_bad_data_in_one_process_ends_all(place):
    done = ends(start(place, "bad", 2, 1, befall={1: (4, "raise")}), 90)
    assert done[1][0] == 2 and "stack7: cannot be read" in done[1][1], done
    assert done[0][0] not in (0, None) and "another one" in done[0][1], done


def test_wrong_ways_to_meet(place):
    """Each ends in one line, before anything is written."""
    for options, words in (
        (("--num-processes", 2), "give all three"),
        (("--coordinator", "here", "--num-processes", 2, "--process-id", 0), "needs host:port"),
        (("--coordinator", "localhost:1", "--num-processes", 2, "--process-id", 2), "from 0 to 1"),
        (("--distributed",), "cannot join the others"),
    ):
        ((status, said),) = ends(start(place, "never", 1, 1, *options))
        assert status == 2 and words in said and len(said.strip().splitlines()) == 1, said
    assert not (place / "never").exists()


def test_slurm_says_who_is_who(place, monkeypatch):
    """`--distributed` from the variables that srun sets."""
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "")  # unset below: JAX chooses one by the job
    monkeypatch.delenv("JAX_COORDINATOR_PORT")
    for name, value in (("JOB_ID", os.getpid()), ("STEP_NODELIST", "localhost"), ("NTASKS", 2), ("LOCALID", 0)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    started = []
    for i in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(i))
        started += start(place, "slurm", 1, 1, "--distributed", "--training.num-steps", 2)
    done = ends(started)
    assert [status for status, _ in done] == [0, 0], done
    assert log(place, "slurm", "train", "step") == [1, 2]
