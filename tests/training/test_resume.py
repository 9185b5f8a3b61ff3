"""A run that is killed (SIGKILL) at arbitrary moments and started again ends bit for bit as one that is not."""

import os
import pathlib
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import training_fakes as fakes
from compiler import CHILD, QUICK
from safetensors.numpy import load_file

from dff_jax.training import logging

WORKER = pathlib.Path(__file__).parents[1] / "helpers" / "process_worker.py"
STEPS = 48
KILL_AFTER = (9, 24)  # steps; saved every 4th


PLAN = """
import training_fakes as fakes

def config():
    return fakes.small_config({stacks!r}, num_steps={steps}, log_every=3, eval_every=16, save_every=4, keep=2)
"""


def command(root, run):
    return [sys.executable, str(WORKER), str(root / "plan.py"), "--output", str(root / run)]


def environment():
    """One CPU device, so that equality is exact."""
    return os.environ | CHILD | {"XLA_FLAGS": " ".join(QUICK), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_killed_twice_and_resumed_is_uninterrupted(tmp_path):
    stacks = fakes.write_stacks(tmp_path / "stacks")
    (tmp_path / "plan.py").write_text(PLAN.format(stacks=str(stacks), steps=STEPS))
    subprocess.run(command(tmp_path, "whole"), env=environment(), check=True, timeout=300)

    moments = random.Random(0)
    kills, resumed_from = 0, []
    for _ in range(5):
        process = subprocess.Popen(
            command(tmp_path, "killed"), env=environment(), stderr=subprocess.PIPE, text=True
        )
        # Waits for training to be well under way, so that every kill falls into the run, with something saved before.
        for line in process.stderr:
            if "resuming after step" in line:
                resumed_from.append(int(line.split("after step ")[1].split()[0]))
            step = re.match(r"train: (\d+)/", line)
            if step and kills < 2 and int(step[1]) >= KILL_AFTER[kills]:
                time.sleep(moments.uniform(0, 0.1))
                process.kill()
                break
        rest = process.stderr.read()
        if process.wait(60) == 0:
            break
        assert process.returncode == -9, rest
        kills += 1
    assert kills == 2, "not killed in mid-run: train longer"
    assert len(resumed_from) == 2 and resumed_from == sorted(resumed_from)
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
