"""A short run of the real training loop on fresh worlds, and what bfloat16 costs the network that it gives."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig, WorldConfig
from dff_jax.data import pipeline
from dff_jax.evaluation.evaluate import evaluate
from dff_jax.evaluation.rows import Evaluation
from dff_jax.runtime.compile import jit
from dff_jax.studies.bench import measuring
from dff_jax.studies.bench.gpu_report.job import Job, say, shares_of_peak, stack_gflops, training_step, variant
from dff_jax.training import checkpoint, loop
from dff_jax.training import logging as logs
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import create
from dff_jax.types import Estimator, Variables

FOLDER = "training"
SHARE = 0.85  # of the time left, that the steps are planned for
EVALUATION_S = 3.0  # guessed, of one evaluation during training
TRAINED_BY = ("final", "expected", "D(0)", "classical", "sml")  # rows of an evaluation that are reported


def train(job: Job, out: dict[str, Any], minutes: float) -> None:
    """Trains for about `minutes`, compilation included, and measures what came of it on held-out worlds."""
    until = min(time.monotonic() + 60 * minutes, job.deadline)
    config = _config(job)
    out |= {"preset": job.settings.subject, "batch": config.data.batch_size, "minutes": minutes}
    out |= _rates(job, config)
    job.save()
    per_step = out["render_s"] + out["step_s"]
    # the loop compiles its own update, the first state and the evaluation
    spare = until - time.monotonic() - 2 * out["step_compile_s"] - EVALUATION_S * (job.settings.evaluations + 2)
    steps = max(20, int(SHARE * spare / per_step))
    every = -(-steps // job.settings.evaluations)
    plan = TrainingConfig(
        num_steps=steps, log_every=max(1, steps // 50), eval_every=every, save_every=steps, keep=1, tensorboard=False
    )
    config = dataclasses.replace(config, training=plan)
    say(f"training: {steps} steps of {config.data.batch_size} stacks, expected to take {steps * per_step:.0f} s")
    folder = job.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    with _stop_at(until):
        summary = loop.train(config, folder)
    log = logs.read_log(folder)
    lines = [x for x in log if x["kind"] == "train"]
    held_out = [x for x in log if x["kind"] == "validation"]
    timed = [x["step_seconds"] for x in lines if "step_seconds" in x]
    out |= {
        "steps": summary["step"], "planned_steps": steps, "interrupted": summary["interrupted"],
        "seconds": summary["seconds"], "loss": [[x["step"], x["loss"]] for x in lines],
        "validation_MAE": [[x["step"], x["MAE"]] for x in held_out],
    }  # fmt: skip
    # a run of a few steps has timed none of its own: then the share is of the step measured before it
    seconds = sorted(timed)[len(timed) // 2] if timed else per_step
    out["share_rendering"] = out["render_s"] / seconds
    if timed:
        out |= {"step_seconds": seconds, "steps_per_s": 1 / seconds, "stacks_per_s": config.data.batch_size / seconds}
        if out["step_GFLOPs"]:
            out |= shares_of_peak(job.report, "float32", out["step_GFLOPs"] / seconds)
    job.save()
    found = _evaluate(config, *_trained(folder, config), yardstick=True)
    out["held_out"] = {name: found.rows[name]["MAE"] for name in TRAINED_BY if name in found.rows}
    out["stacks"] = len(found.stacks)


def precision(job: Job, out: dict[str, Any]) -> None:
    """The trained network on the same worlds in float32, as JAX has it and in full, and in bfloat16."""
    folder = job.folder / FOLDER
    if not (folder / "config.json").exists():
        raise FileNotFoundError("there is no trained network: the part `training` has to run first")
    config = configs.from_json((folder / "config.json").read_text(), Config)
    _, variables = _trained(folder, config)
    out["MAE"] = {}
    for name, dtype, asked in (
        ("float32", "float32", None), ("bfloat16", "bfloat16", None), ("float32, highest", "float32", "highest")
    ):  # fmt: skip
        estimator = _estimator(dataclasses.replace(config.model, dtype=dtype))
        with jax.default_matmul_precision(asked):
            out["MAE"][name] = _evaluate(config, estimator, variables, yardstick=False).rows["final"]["MAE"]
        say(f"precision: {name}: MAE {out['MAE'][name]:.5g}")
        job.save()
    out["bfloat16_loss_percent"] = 100 * (out["MAE"]["bfloat16"] / out["MAE"]["float32"] - 1)


def _config(job: Job) -> Config:
    """As configs/procedural_physical.py, the number of steps left open."""
    number, size, Z = jax.device_count(), job.settings.size, job.settings.frames
    world = WorldConfig(height=size, width=size, num_frames=Z)
    data = DataConfig(
        source="procedural_live", batch_size=-(-job.settings.batch // number) * number, crop=(size, size),
        world=world, eval_batch_size=job.settings.batch,
    )  # fmt: skip
    return Config(
        name="gpu_report", model=variant(job.settings.subject), data=data,
        optimizer=OptimizerConfig(peak_learning_rate=3e-4),
    )  # fmt: skip


def _rates(job: Job, config: Config) -> dict[str, Any]:
    """Seconds to render a batch and to train on one, each alone; the latter from the bench if that has it."""
    B, (size, _), Z = config.data.batch_size, config.data.crop, config.data.world.num_frames
    with contextlib.closing(pipeline.training_loader(config.data, config.seed)) as loader:
        jax.block_until_ready(next(loader).batch)

        def render(wait: bool = True) -> None:
            batch = next(loader).batch
            if wait:
                jax.block_until_ready(batch)

        found: dict[str, Any] = {"render_s": measuring.queued_seconds(render, 10)}
    wanted = {"preset": job.settings.subject, "dtype": "float32", "B": B, "Z": Z, "size": size, "what": "training step"}
    rows = job.report["parts"].get("bench", {}).get("rows", ())
    known = [row for row in rows if wanted.items() <= row.items() and "queued_s" in row]
    if known:
        found |= {"step_s": known[0]["queued_s"], "step_compile_s": known[0]["compile_s"]}
    else:
        function, arguments = training_step(config.model, (B, Z, size))
        program = measuring.compiled(jit(function), *jax.device_put(arguments), count=False)
        found |= {"step_s": measuring.queued_seconds(program.run, 5), "step_compile_s": program.compile_s}
    of_one = stack_gflops(config.model, Z, size, True)
    found["step_GFLOPs"] = B * of_one if of_one else None
    say(f"training: {found['render_s']:.4g} s to render a batch, {found['step_s']:.4g} s to train on it")
    return found


@contextlib.contextmanager
def _stop_at(until: float) -> Iterator[None]:
    """Asks the loop to save and return, as Ctrl-C does, once it is `until`; only while the loop listens."""
    default = signal.getsignal(signal.SIGTERM)

    def ask() -> None:
        if signal.getsignal(signal.SIGTERM) is not default:
            say("training: time is up")
            os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(max(1.0, until - time.monotonic()), ask)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def _estimator(model: ModelConfig) -> Estimator:
    return estimators.build(model)  # one object, so that repeated evaluations compile it once


def _trained(folder: Path, config: Config) -> tuple[Estimator, Variables]:
    """The network of the newest checkpoint, read by orbax."""
    estimator = _estimator(config.model)
    tx = optimizers.build(config.optimizer, config.training.num_steps)
    (size, _), Z = config.data.crop, config.data.world.num_frames
    inputs = jax.ShapeDtypeStruct((1, Z, size, size, 3), "float32"), jax.ShapeDtypeStruct((1, Z), "float32")
    state = jax.eval_shape(lambda: create(jax.random.key(config.seed), estimator, tx, *inputs))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with checkpoint.open_manager(folder, config.training.keep) as manager:
        restored = checkpoint.restore(manager, config, checkpoint.abstract(state, here))
    if restored is None:
        raise FileNotFoundError(f"{folder}: the training left no checkpoint")
    return estimator, {"params": restored.state.params, "batch_stats": restored.state.batch_stats}


def _evaluate(config: Config, estimator: Estimator, variables: Variables, yardstick: bool) -> Evaluation:
    source = _held_out(config.data)
    batches = pipeline.evaluation_batches(source, config.data.eval_batch_size)
    return evaluate(estimator, variables, batches, unit=source.unit, yardstick=yardstick)


@functools.cache
def _held_out(data: DataConfig) -> Any:
    return pipeline.open_source(data, "validation")  # which keeps what it has rendered
