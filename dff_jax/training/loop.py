"""The training loop: evaluate, save, next batch, step, log, in this order.

The data iterator moves only after the save, and the rest of the run depends on nothing that is not saved. So a run that
is killed at any moment and started again by the same command ends as an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import CheckpointManager

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import Config
from dff_jax.data import pipeline
from dff_jax.errors import ConfigError, InputError
from dff_jax.runtime import processes
from dff_jax.runtime.files import check_output, locked, staged_output, writing
from dff_jax.runtime.progress import ProgressBar, say
from dff_jax.runtime.replacing import is_own
from dff_jax.runtime.stopping import stop_on_signal
from dff_jax.training import checkpoint, objective, optimizer, parallel, state, statistics, validation
from dff_jax.training import logging as logs
from dff_jax.training.initial_weights import load_encoder, load_matching
from dff_jax.training.step import Update, make_update
from dff_jax.types import Variables

CONFIG = "config.json"
SHOWN = {"loss": "loss", "mae": "mae", "lr": "learning_rate"}
"""What the progress display says of a step: its name there and in the log."""


class _Run(NamedTuple):
    """What stays the same over the steps of a run."""

    config: Config
    devices: parallel.Devices
    update: Update
    loader: pipeline.Loader
    manager: CheckpointManager
    validator: validation.Validator
    bar: ProgressBar
    stop: processes.Stop


class TrainingDiverged(RuntimeError):
    """The loss, a gradient or a parameter is no longer a finite number. Nothing of it has been saved."""


def _initial(config: Config, variables: Variables) -> Variables:
    """The variables to begin with: random ones, with the weights in place that the config names."""
    plan = config.training
    if plan.encoder_weights is not None:
        return load_encoder(plan.encoder_weights, variables)
    if plan.initial_weights is None:
        return variables
    begun, remark = load_matching(plan.initial_weights, variables, config.model)
    say(f"begins with {plan.initial_weights}" + (f"; {remark}" if remark else ""))
    return begun


def train(
    config: Config, output: str | Path, *, resume: bool = True, writers: Sequence[logs.Writer] = ()
) -> dict[str, Any]:
    """Trains as `config` says, into the run folder `output`.

    The folder then holds `config.json`, `train.jsonl`, `tensorboard/`, `checkpoints/`, `weights.safetensors` (those of
    the lowest validation MAE) and `weights_last.safetensors` (at the end). The first SIGINT or SIGTERM finishes the
    step, saves and returns. In a run of several processes (`dff_jax.runtime.processes`) each calls this with the same
    arguments.

    Args:
      config: see `dff_jax.config`. `data.batch_size` is the batch over all devices and processes.
      output: run folder.
      resume: go on exactly from the newest checkpoint in the folder; False refuses a folder that holds one.
      writers: where the log goes, too (from process 0). A run that resumes repeats the steps since its checkpoint.

    Returns:
      `output`, `step`, `num_steps`, `interrupted`, `seconds`, `weights` (path of the best, or None), `best`
      (`step` and `MAE`, or None) and `final` (the newest validation: its line of the log, or None).

    Raises:
      InputError: the configuration, the data or the output folder is wrong, or the folder is another run's. An earlier
        run is left as it was.
      TrainingDiverged: names the step, its stacks and the last good checkpoint.
      ProcessLost: another process has ended. What has been saved stands.
    """
    began = time.perf_counter()
    output, plan = Path(output), config.training
    advice = f"start all again by the same command: the run in {output} goes on after its newest checkpoint"
    with ExitStack() as stack:
        stack.enter_context(processes.watched(advice))
        with processes.together():
            checkpoint.check_same(config, output, resume)
            if not config.model.trained:
                raise ConfigError(f"model.method: {config.model.method} has nothing to train; use it as it is")
            for field in config.idle():
                say(f"note: {field}: this field has no effect here")
            devices = parallel.choose_devices(plan, config.data.batch_size)
            begun = is_own(output, CONFIG) or any((output / checkpoint.FOLDER).glob("[0-9]*"))
            names = CONFIG, logs.FILE_NAME, validation.BEST_WEIGHTS, validation.LAST_WEIGHTS
            check_output(output, names, overwrite=begun or None)
            estimator = estimators.build(config.model)  # finds a wrong prox before data is made
            number, count = jax.process_index(), jax.process_count()
            share = dataclasses.replace(config.data, batch_size=config.data.batch_size // count)
            loader = pipeline.training_loader(
                share, config.seed, process_index=number, process_count=count, wanted=objective.wanted(config.loss)
            )
            stack.enter_context(closing(loader))
            shapes = _first_shapes(loader)
            sources = validation.open_sources(config)
            stack.enter_context(_run_folder(output))
        manager = stack.enter_context(checkpoint.open_manager(output, plan.keep))
        with processes.together():
            processes.check_same({"the newest checkpoint": manager.latest_step()})
            if not resume and manager.latest_step() is not None:
                raise InputError(f"{output}: already holds a run; resume it, or choose another output folder")

        tx = optimizer.build(config.optimizer, plan.num_steps)

        def begin(change: Callable[[Variables], Variables] = lambda given: given) -> state.TrainState:
            # Not under jit: as one program, the random numbers of all parameters take minutes to compile on a CPU.
            given = estimator.init(jax.random.key(config.seed), *(np.zeros(x.shape, x.dtype) for x in shapes))
            return state.begin(change(given), tx, plan.average > 0)

        abstract = checkpoint.abstract(jax.eval_shape(begin), devices.whole)
        with processes.together():
            restored = checkpoint.restore(manager, config, abstract)
            if restored is not None:
                loader.set_state(restored.data)
            else:
                first = begin(partial(_initial, config))
                restored = checkpoint.Restored(first, loader.get_state(), checkpoint.Progress())
        restored = restored._replace(progress=checkpoint.check_folders(restored.progress, config.data))
        step = int(restored.state.step)
        if jax.process_index() == 0:
            with staged_output(output, overwrite=True) as staging:
                (staging / CONFIG).write_text(configs.to_json(config) + "\n")
        if step:
            say(f"{output}: resuming after step {step} of {plan.num_steps}")

        update = make_update(estimator, tx, config.loss, config.model.coordinate, plan.accumulate, plan.average)
        own = logs.open_writers(output, tensorboard=plan.tensorboard, step=step, evaluated=restored.progress.evaluated)
        for writer in own:
            stack.enter_context(closing(writer))
        all_writers = [*own, *writers] if own else []
        population = statistics.Population(config, estimator, sources["validation"])
        run = _Run(
            config,
            devices,
            parallel.compile_update(devices, update),
            loader,
            manager,
            validation.Validator(config, output, estimator, sources, all_writers, shapes[0].shape[1], population),
            stack.enter_context(ProgressBar("train", plan.num_steps, "step", done=step, every=math.inf)),
            processes.Stop(stack.enter_context(stop_on_signal())),
        )
        if step < plan.num_steps:
            together = config.data.batch_size // plan.accumulate, *shapes[0].shape[1:]
            if note := statistics.note_small_maps(estimator, state.variables(restored.state), together):
                run.bar.say(note)
            run.bar.say("compiling the training step, which can take minutes the first time")
        step, progress = _loop(run, parallel.to_devices(devices, restored.state), restored.progress)
        interrupted = step < plan.num_steps or progress.evaluated != step
        if interrupted:
            saved = f"saved in {manager.directory}" if step else "nothing to save yet"
            run.bar.say(f"interrupted after step {step} of {plan.num_steps}: {saved}; the same command resumes")
    return _summary(config, output, step, progress, interrupted, time.perf_counter() - began)


def _loop(run: _Run, now: state.TrainState, progress: checkpoint.Progress) -> tuple[int, checkpoint.Progress]:
    """Trains from the state `now` to the last step, or to the step at which all processes agree to stop."""
    plan, devices = run.config.training, run.devices
    start = step = int(parallel.local_copy(devices, now.step))
    recent: dict[int, tuple[str, ...]] = {}  # names of the stacks since the last check, by step
    running = None
    while True:
        stop = run.stop.agreed()
        at_end = step == plan.num_steps
        due = step > 0 and (at_end or step % plan.eval_every == 0) and progress.evaluated != step
        pause = due or at_end or step % plan.save_every == 0
        if pause or stop:
            _check_finite(run, now, recent)
        if due and not stop:
            weights = parallel.local_copy(devices, state.outcome(now))
            with _saved_first(run, now, progress, step > start, recent):
                progress = run.validator.run(step, weights, progress, run.bar, run.stop.asked)
            stop = run.stop.agreed_now()
        if step > start and (pause or stop):
            _save(run, now, progress)
        if at_end and progress.evaluated == step:
            run.validator.export_last(step, parallel.local_copy(devices, state.outcome(now)))
        if at_end or stop:
            return step, progress
        if pause:
            run.bar.restart()

        with _saved_first(run, now, progress, step > start, recent):
            loaded = next(run.loader)
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            now, metrics = run.update(now, parallel.put_batch(devices, loaded.batch))
        step += 1
        recent[step] = loaded.names
        # At most one step waits behind the running one. That keeps the device busy, and the progress bar, Ctrl-C and
        # the memory for batches are at most one step ahead of it.
        jax.block_until_ready(running)
        running = metrics["loss"]
        run.bar.advance()
        if step == start + 1:  # with compilation
            jax.block_until_ready(metrics)
            run.bar.restart()
        if step == 1 or step % plan.log_every == 0 or step == plan.num_steps:
            values = jax.device_get(parallel.local_copy(devices, metrics))
            values = {name: float(x) for name, x in values.items()}
            _check_finite(run, now, recent)
            if rate := run.bar.rate():
                values |= {"step_seconds": 1 / rate, "stacks_per_second": rate * run.config.data.batch_size}
            run.bar.note(", ".join(f"{name} {values[key]:.4g}" for name, key in SHOWN.items()))
            for writer in run.validator.writers:
                writer.scalars(step, "train", values)


def _save(run: _Run, now: state.TrainState, progress: checkpoint.Progress) -> None:
    saved = parallel.canonical(run.devices, now)
    checkpoint.save(run.manager, run.config, saved, run.loader.get_state(), progress)


@contextmanager
def _saved_first(
    run: _Run, now: state.TrainState, progress: checkpoint.Progress, new: bool, recent: dict[int, tuple[str, ...]]
) -> Iterator[None]:
    """Saves a `new` state before a stack that cannot be read ends the run. Several processes save together, which they
    cannot where one of them ends: there the last checkpoint has to do."""
    try:
        yield
    except InputError as error:
        if not new or jax.process_count() > 1:
            raise
        _check_finite(run, now, recent)
        _save(run, now, progress)
        step = int(parallel.local_copy(run.devices, now.step))
        raise InputError(f"{error}; saved after step {step}, from where the same command goes on") from None


def _check_finite(run: _Run, now: state.TrainState, recent: dict[int, tuple[str, ...]]) -> None:
    """Raises TrainingDiverged if an update since the last check was not finite. Empties `recent` otherwise."""
    bad = int(parallel.local_copy(run.devices, now.bad_step))
    if bad >= 0:
        last = run.manager.latest_step()
        good = f"the last good checkpoint is {run.manager.directory / str(last)}"
        raise TrainingDiverged(
            f"step {bad}: the loss, a gradient or a parameter is not a finite number (stacks of this batch: "
            f"{', '.join(recent.get(bad, ()))}); nothing of it was saved, "
            + ("there is no checkpoint yet" if last is None else good)
        )
    recent.clear()


def _first_shapes(loader: pipeline.Loader) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of frames and focus. Reads the first batch, and so finds bad data before anything is written."""
    start = loader.get_state()
    batch = next(loader).batch
    loader.set_state(start)
    frames, focus = (jax.ShapeDtypeStruct((1, *x.shape[1:]), np.float32) for x in (batch.frames, batch.focus))
    return frames, focus


@contextmanager
def _run_folder(output: Path) -> Iterator[None]:
    """Makes the run folder, and holds it in process 0. Removes it again if bad input leaves nothing in it."""
    made = not output.exists()
    try:
        with writing(output, "what was saved before stands, and the same command goes on from there"):
            output.mkdir(parents=True, exist_ok=True)
            with locked(output) if jax.process_index() == 0 else nullcontext():
                yield
    except InputError:
        for folder in (output / checkpoint.FOLDER, output) if made else ():
            with suppress(OSError):  # it holds something, or was not made
                folder.rmdir()
        raise


def _summary(
    config: Config, output: Path, step: int, progress: checkpoint.Progress, interrupted: bool, seconds: float
) -> dict[str, Any]:
    weights = output / validation.BEST_WEIGHTS
    lines = logs.read_log(output) if (output / logs.FILE_NAME).exists() else []
    evaluated = [line for line in lines if line["kind"] == "validation"]
    best = {"step": progress.best_step, "MAE": progress.best_mae}
    return {
        "output": str(output),
        "step": step,
        "num_steps": config.training.num_steps,
        "interrupted": interrupted,
        "seconds": seconds,
        "weights": str(weights) if weights.exists() else None,
        "best": best if math.isfinite(progress.best_mae) else None,
        "final": evaluated[-1] if evaluated else None,
    }
