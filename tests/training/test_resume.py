"""Runs that are really killed: SIGKILL at arbitrary moments, then the same command, ends bit for bit the same.

Run as a script, this file is that command: `test_resume.py STACKS RUN`.
"""

import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import training_fakes as fakes

STEPS = 240
KILL_AFTER = (20, 80, 140)  # steps; saved every 4th


def command(stacks, run):
    return [sys.executable, __file__, str(stacks), str(run)]


def environment():
    """One CPU device, so that equality is exact."""
    return os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_uninterrupted(tmp_path):
    from safetensors.numpy import load_file

    from dff_jax.training import logging

    stacks = fakes.write_stacks(tmp_path / "stacks")
    subprocess.run(command(stacks, tmp_path / "whole"), env=environment(), check=True, timeout=300)

    moments = random.Random(0)
    kills, resumed_from = 0, []
    for _ in range(40):
        process = subprocess.Popen(
            command(stacks, tmp_path / "killed"), env=environment(), stderr=subprocess.PIPE, text=True
        )
        # Waits for training to be well under way, so that every kill falls into the run, with something saved before.
        for line in process.stderr:
            if "resuming after step" in line:
                resumed_from.append(int(line.split("after step ")[1].split()[0]))
            step = re.match(r"train: (\d+)/", line)
            if step and kills < 3 and int(step[1]) >= KILL_AFTER[kills]:
                time.sleep(moments.uniform(0, 0.1))
                process.kill()
                break
        rest = process.stderr.read()
        if process.wait(60) == 0:
            break
        assert process.returncode == -9, rest
        kills += 1
    assert kills == 3, "not killed in mid-run: train longer"
    assert len(resumed_from) == 3 and resumed_from == sorted(resumed_from)
    assert all(step + 4 >= after for step, after in zip(resumed_from, KILL_AFTER, strict=True))

    for name in ("weights.safetensors", "weights_last.safetensors"):
        want, got = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert want.keys() == got.keys()
        for key in want:
            np.testing.assert_array_equal(got[key], want[key], err_msg=f"{name} {key}")
    times = {"step_seconds", "stacks_per_second", "seconds"}
    lines = [
        [{k: v for k, v in x.items() if k not in times} for x in logging.read_log(tmp_path / run)]
        for run in ("whole", "killed")
    ]
    assert lines[0] == lines[1]


def main(stacks, run):
    import pathlib

    from dff_jax import estimators
    from dff_jax.training import loop

    estimators.build = fakes.build
    every = {"log_every": 3, "eval_every": 10, "save_every": 4, "keep": 2}
    loop.train(fakes.small_config(stacks, num_steps=STEPS, **every), pathlib.Path(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
