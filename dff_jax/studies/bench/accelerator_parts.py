"""The parts of an accelerator's report: device, checks, models, memory, scaling and a short training.

Each part is a function (sizes, folder) -> {"rows": [...], facts}. A row that failed says why under "problem".
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.config import DTYPES, Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig, WorldConfig
from dff_jax.runtime.compile import jit
from dff_jax.studies.bench import measuring, subjects
from dff_jax.studies.bench.measuring import number

ROOT = Path(__file__).parents[3]


class Sizes(NamedTuple):
    """What each part measures."""

    size: int = 256
    frames: int = 15
    batch: int = 8  # of training
    matrix_side: int = 8192
    presets: tuple[str, ...] = ("physical", "dfv_diff", "paper", "tiny", "dfv_fv", "aifdnet", "dwild")
    subject: str = "physical"  # of memory, scaling and training
    memory_iterations: tuple[int, ...] = (1, 3, 6, 12)
    iterations: tuple[int, ...] = (0, 3, 6, 12)
    numbers_of_frames: tuple[int, ...] = (5, 15, 25, 35)
    sizes: tuple[int, ...] = (128, 256, 384, 512)
    rounds: int = 10
    minutes: float = 5.0


SMALL = Sizes(
    size=32, frames=4, batch=2, matrix_side=256, presets=("tiny",), subject="tiny", memory_iterations=(1,),
    iterations=(0, 1), numbers_of_frames=(3, 4), sizes=(32, 64), rounds=2, minutes=0.2,
)  # fmt: skip


def device(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Name, versions and memory; speed and error of a matrix product in each precision."""
    first = jax.devices()[0]
    modes = {"float32": None, "float32, highest": "highest", "bfloat16": None}
    rows, products = [], {}
    for name, precision in modes.items():
        with jax.default_matmul_precision(precision):
            products[name], gflops = measuring.matrix_product(name.split(",")[0], sizes.matrix_side)
            rows.append({"precision": name, "relative_error": _product_error(name.split(",")[0])})
    seconds = measuring.round_robin(products, sizes.rounds)
    for row in rows:
        row["TFLOPs_per_s"] = gflops / 1000 / seconds[row["precision"]]
    limit = (first.memory_stats() or {}).get("bytes_limit")
    return {
        "rows": rows, "number": jax.device_count(), "cores": os.cpu_count(), "driver": _driver(),
        "memory_limit_MB": limit / 1e6 if limit else None,
    }  # fmt: skip


def _product_error(dtype: str) -> float:
    """Relative error against float64: about 1e-7 in float32, 1e-4 and more where TF32 takes its place."""
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512)).astype(np.float32)
    got = np.asarray(jax.jit(jnp.matmul)(jnp.asarray(a, dtype), jnp.asarray(b, dtype)), np.float64)
    want = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip() or None


def checks(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Runs `tests/device` with pytest in a process of its own; each check has an error and a tolerance."""
    if util.find_spec("pytest") is None or not (ROOT / "tests" / "device").is_dir():
        return {"rows": [], "note": "pytest or tests/device is missing; the checks were left out"}
    environment = os.environ | ({"DEVICE_CHECKS": "cpu"} if jax.default_backend() == "cpu" else {"JAX_PLATFORMS": ""})
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results.xml"
        asked = [sys.executable, "-m", "pytest", "tests/device", "-p", "no:cacheprovider", f"--junit-xml={results}"]
        done = subprocess.run(asked, cwd=ROOT, env=environment, stdout=sys.stderr)
        cases = list(xml.parse(results).iter("testcase")) if results.exists() else []
    rows = []
    for case in cases:
        found = {one.get("name"): one.get("value") for one in case.iter("property")}
        kinds = "failure", "error", "skipped"
        problem = next((one.get("message") for kind in kinds for one in case.iter(kind)), None)
        rows.append({"check": case.get("name"), **found, "problem": problem})
    return {"rows": rows, "problem": None if done.returncode == 0 else f"pytest ended with status {done.returncode}"}


def bench(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Inference and training steps of all presets in each precision; PyTorch's DFV beside them where installed."""
    rows: list[dict[str, Any]] = []
    for preset, training in itertools.product(sizes.presets, (False, True)):
        shape = sizes.batch if training else 1, sizes.frames, sizes.size
        group, runs = [], {}
        for dtype in DTYPES:
            what = "training step" if training else "inference"
            row: dict[str, Any] = {"preset": preset, "dtype": dtype, "B": shape[0], "what": what}
            group.append(row)
            program = _program(row, subjects.preset(preset, dtype=dtype), shape, training)
            if program is not None:
                runs[dtype, "seconds"] = program.run
                row |= {"compile_s": program.compile_s, "MB": program.planned_MB}
                row["queued_s"] = measuring.queued_seconds(program.run, sizes.rounds)
                row["stacks_per_s"] = shape[0] / row["queued_s"]
            runs |= _torch(row, preset, shape, training, dtype)
            runs[dtype, "product"], product_gflops = measuring.matrix_product(dtype, sizes.matrix_side)
        seconds = measuring.round_robin(runs, sizes.rounds)
        one = subjects.stack_gflops(subjects.preset(preset), shape[1], shape[2], training)
        for row in group:
            row |= {key: value for (dtype, key), value in seconds.items() if dtype == row["dtype"]}
            row["GFLOPs"] = one and shape[0] * one
            if one and "queued_s" in row:
                row["share_of_peak"] = row["GFLOPs"] / row["queued_s"] * row["product"] / product_gflops
            say(f"bench: {preset}, {row['dtype']}, {row['what']}: {number(row.get('seconds'), '.4g', 1e3)} ms")
        rows += group
        del runs
        gc.collect()
    return {"rows": rows, "Z": sizes.frames, "size": sizes.size}


def _program(
    row: dict[str, Any], model: ModelConfig, shape: subjects.Shape, training: bool
) -> measuring.Program | None:
    """The compiled inference or training step; None, with the reason in `row`, where that fails (memory, mostly)."""
    try:
        if training:
            function, arguments = subjects.training_step(model, subjects.batch(shape))
        else:
            function, arguments = subjects.inference(model, shape)
        return measuring.compiled(jit(function), *jax.device_put(arguments), count=False)
    except Exception as error:  # the other rows may do
        row["problem"] = reason(error)
        return None


def _torch(row: dict, preset: str, shape: subjects.Shape, training: bool, dtype: str) -> dict[tuple, Callable]:
    """Executions of PyTorch's network, eager and compiled; {} where there is none."""
    if util.find_spec("torch") is None:
        return {}
    from dff_jax.studies.bench import torch_peers

    key, runs = "torch_step_s" if training else "torch_inference_s", {}
    for name, compiled in (("torch_s", False), ("torch_compiled_s", True)) if preset in torch_peers.PRESETS else ():
        try:
            runs[dtype, name] = torch_peers.runs(preset, shape, training, dtype=dtype, compiled=compiled)[key]
        except Exception as error:  # ours is measured all the same
            row["torch_problem"] = reason(error)
    return runs


def memory(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """A training step on one stack over K, rematerialised and by back-propagation: what the compiler plans."""
    rows = []
    for mode, K in itertools.product(("remat", "backprop"), sizes.memory_iterations):
        row: dict[str, Any] = {"gradient": mode, "K": K}
        model = subjects.preset(sizes.subject, gradient=mode, num_iterations=K)
        if program := _program(row, model, (1, sizes.frames, sizes.size), True):
            row |= {"compile_s": program.compile_s, "temporary_MB": program.temporary_MB, "MB": program.planned_MB}
            row["seconds"] = measuring.round_robin({0: program.run}, sizes.rounds)[0]
        rows.append(row)
        gc.collect()
    return {"rows": rows, "preset": sizes.subject, "peak": measuring.peak_memory()}


def scaling(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Inference of one stack over K, pixels and Z, and the largest distance from a fitted line."""
    Z, size, rows = sizes.frames, sizes.size, []
    points: dict[str, list[tuple[float, dict[str, Any], subjects.Shape]]] = {
        "K": [(K, {"num_iterations": K}, (1, Z, size)) for K in sizes.iterations],
        "pixels": [(side**2, {}, (1, Z, side)) for side in sizes.sizes],
        "frames": [(frames, {}, (1, frames, size)) for frames in sizes.numbers_of_frames],
    }
    for over, line in points.items():
        runs = {}
        for at, changes, shape in line:
            function, arguments = subjects.inference(subjects.preset(sizes.subject, **changes), shape)
            runs[at] = measuring.compiled(jit(function), *jax.device_put(arguments), count=False).run
        seconds = measuring.round_robin(runs, sizes.rounds)
        x, y = (np.array(list(values), float) for values in (seconds.keys(), seconds.values()))
        slope, start = np.polyfit(x, y, 1)
        deviation = float(np.abs((start + slope * x) / y - 1).max())
        rows.append({"over": over, "at": list(seconds), "seconds": list(seconds.values()), "deviation": deviation})
        del runs
        gc.collect()
    return {"rows": rows, "preset": sizes.subject}


def training(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Trains on procedural worlds for about `sizes.minutes`: steps per second, loss and validation error."""
    from dff_jax.training import logging as logs
    from dff_jax.training import loop

    side, stacks = sizes.size, -(-sizes.batch // jax.device_count()) * jax.device_count()
    world = WorldConfig(height=side, width=side, num_frames=sizes.frames)
    data = DataConfig(
        source="procedural_live", batch_size=stacks, crop=(side, side), world=world, eval_batch_size=sizes.batch,
        eval_limit=3 * sizes.batch,
    )  # fmt: skip
    optimizer = OptimizerConfig(peak_learning_rate=3e-4)
    config = Config(name="gpu_report", model=subjects.preset(sizes.subject), data=data, optimizer=optimizer)

    def train(steps: int, log_every: int, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[float]]:
        plan = TrainingConfig(
            num_steps=steps, log_every=log_every, eval_every=-(-steps // 3), save_every=steps, keep=1, tensorboard=False
        )
        summary = loop.train(dataclasses.replace(config, training=plan), folder)
        log = logs.read_log(folder)
        return summary, log, sorted(line["step_seconds"] for line in log if "step_seconds" in line)

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as trial:  # compiles, and shows how long a step takes
        *_, timed = train(6, 2, Path(trial))
    spent = time.monotonic() - start
    steps = max(6, int(0.8 * (60 * sizes.minutes - 2 * spent) / timed[0]))
    say(f"training: {steps} steps of {stacks} stacks")
    shutil.rmtree(folder / "training", ignore_errors=True)
    summary, log, timed = train(steps, max(1, steps // 50), folder / "training")
    step = timed[len(timed) // 2]
    rows = [
        {"step": line["step"], "loss": line.get("loss"), "validation_MAE": line.get("MAE")}
        for line in log if line["kind"] == "validation" or line["step"] in (log[0]["step"], steps)
    ]  # fmt: skip
    return {
        "rows": rows, "preset": sizes.subject, "steps": summary["step"], "seconds": summary["seconds"], "step_s": step,
        "stacks_per_s": stacks / step, "loss": [[x["step"], x["loss"]] for x in log if x["kind"] == "train"],
    }  # fmt: skip


def reason(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[Sizes, Path], dict[str, Any]]] = {
    "device": device, "checks": checks, "bench": bench, "memory": memory, "scaling": scaling, "training": training,
}  # fmt: skip
