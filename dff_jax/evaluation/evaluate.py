"""The evaluation loop: every stage of an estimator on every stack, measured in the unit of the data."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dff_jax import config, estimators, focus_axis
from dff_jax.evaluation import images
from dff_jax.evaluation.conventions import CONVENTIONS, Convention
from dff_jax.evaluation.programs import Task, compile_for, measure, placed, predict, split_over_devices
from dff_jax.evaluation.rows import BASELINES, Measured, row_names
from dff_jax.types import Batch, Estimator, LoadedBatch, Prediction, Variables


@functools.cache
def baseline(name: str) -> Estimator:
    """One of `rows.BASELINES`: one object, so that repeated evaluations compile it once."""
    return estimators.build(config.model_preset(name))


def evaluated(
    estimator: Estimator,
    variables: Variables,
    batches: Iterable[LoadedBatch],
    *,
    unit: str = "disparity",
    num_iterations: int | None = None,
    baselines: bool = True,
    convention: Convention = CONVENTIONS["default"],
) -> Iterator[tuple[Measured, LoadedBatch, Prediction]]:
    """Measures every row (see `rows`) batch by batch: yields what it measured, the batch, and the prediction for it.

        parts = []
        for measured, batch, prediction in evaluated(estimator, variables, batches, unit=unit):
            parts.append(measured)  # `break` stops early
        evaluation = gather(parts, unit)

    Where the data have an all-in-focus picture, the images of the answer and of the baselines are measured too.
    Each shape of batch is compiled for once, before its first run, also over repeated calls with the same estimator
    object. A batch that divides evenly over the devices of this process is split over them.

    Args:
      batches: stacks in q, padding stacks named "" (`data.pipeline.evaluation_batches`).
      unit: the unit of the data, in which metrics are computed.
      num_iterations: K of the unroll; None: as configured.
      baselines: adds the rows of `rows.BASELINES`.
      convention: of the literature, to measure by beside our own regions.
    """
    focus_axis.check_unit(unit)
    wanted = {name: Task(baseline(name)) for name in BASELINES if baselines}
    tasks = {"answer": Task(estimator, variables, num_iterations)}
    for name, task in wanted.items():
        if task.estimator is not estimator or num_iterations is not None:  # else the answer is this baseline's
            tasks[name] = task
    methods = list(tasks)
    rows = [methods.index(name if name in tasks else "answer") for name in wanted]
    ready: set[tuple[int, ...]] = set()
    began = time.perf_counter()
    coming = placed(batches)
    following = next(coming, None)
    while following is not None:
        loaded, batch = following
        jax.block_until_ready(batch)
        seconds = {"compilation": 0.0}
        if batch.frames.shape not in ready:
            if (split := split_over_devices(len(loaded.names))) is not None:
                variables = jax.device_put(variables, NamedSharding(split.mesh, PartitionSpec()))
                tasks["answer"] = tasks["answer"]._replace(variables=variables)
            start = time.perf_counter()
            compile_for(batch, list(tasks.values()), rows, unit, convention)
            seconds["compilation"] = time.perf_counter() - start
            ready.add(batch.frames.shape)
        answers = []
        for name, task in tasks.items():
            start = time.perf_counter()
            answers.append(jax.block_until_ready(predict(*task.arguments(batch))))
            seconds[name] = time.perf_counter() - start
        found = measure(answers[0], [answers[i].depth for i in rows], batch, unit, convention)
        sharp = None
        if batch.all_in_focus is not None:
            sharp = images.measure([answers[i].all_in_focus for i in (0, *rows)], batch.all_in_focus)
        following = next(coming, None)  # read while the device measures
        (sums, changes, confident), sharp = jax.device_get((found, sharp))  # the one transfer of this batch
        keep = np.array([bool(name) for name in loaded.names]) & (sums[0].pixels[0] > 0)
        measured = Measured(
            row_names(answers[0], baselines),
            jax.tree.map(lambda x, keep=keep: x[:, keep], sums),
            None if changes is None else changes[:, keep],
            tuple(name for name, kept in zip(loaded.names, keep, strict=True) if kept),
            tuple(name for name, kept in zip(loaded.names, keep, strict=True) if name and not kept),
            confident,
            loaded.batch.frames.shape,
            seconds | {"total": time.perf_counter() - began},
            None if sharp is None else sharp[..., keep],
        )
        yield measured, loaded, answers[0]
        began = time.perf_counter()


def answers_for(
    tasks: Sequence[Task], batches: Iterable[LoadedBatch], wanted: Collection[int] | None = None
) -> Iterator[tuple[int, str, Batch, list[Prediction]]]:
    """Predicts again, to draw. Which stacks are the best and the worst is known only when all are measured.

    Args:
      wanted: positions among the stacks with ground truth, as in `Evaluation.stacks`; None: all stacks.

    Yields:
      position, name, batch and the answer of each task for one stack: arrays [1,...] on the host.
    """
    position = 0
    for loaded, batch in placed(batches):
        here = []
        for i, name in enumerate(loaded.names):
            if name and (wanted is None or np.asarray(loaded.batch.mask[i]).any()):
                here += [(position, i)] if wanted is None or position in wanted else []
                position += 1
        if here:
            found = jax.device_get((loaded.batch, [predict(*task.arguments(batch)) for task in tasks]))
            for at, i in here:
                yield at, loaded.names[i], *jax.tree.map(lambda x, i=i: x[i : i + 1], found)
        if wanted is not None and position > max(wanted):
            return
