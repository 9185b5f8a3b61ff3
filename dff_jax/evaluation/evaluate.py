"""The evaluation loop: every stage of an estimator on every stack, measured in the unit of the data."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dff_jax import config, estimators, focus_axis
from dff_jax.errors import InputError
from dff_jax.evaluation import conventions
from dff_jax.evaluation.conventions import CONVENTIONS, Convention
from dff_jax.evaluation.programs import Task, compile_for, measure, placed, predict, split_over_devices
from dff_jax.evaluation.rows import BASELINES, Evaluation, Measured, gather, row_names
from dff_jax.runtime.files import check_output, staged_output
from dff_jax.runtime.progress import ProgressBar
from dff_jax.types import Batch, Estimator, LoadedBatch, Prediction, Variables

if TYPE_CHECKING:
    from dff_jax.data.parts import StackSource
    from dff_jax.pictures.page import Shown


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
        following = next(coming, None)  # read while the device measures
        sums, changes, confident = jax.device_get(found)  # the one transfer of this batch
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
        )
        yield measured, loaded, answers[0]
        began = time.perf_counter()


def evaluate(
    estimator: Estimator,
    variables: Variables,
    batches: Iterable[LoadedBatch],
    *,
    unit: str = "disparity",
    num_iterations: int | None = None,
    baselines: bool = True,
    convention: Convention = CONVENTIONS["default"],
) -> Evaluation:
    """`evaluated` over all batches, and `gather`; arguments and errors are theirs."""
    found = evaluated(
        estimator, variables, batches, unit=unit, num_iterations=num_iterations, baselines=baselines,
        convention=convention,
    )  # fmt: skip
    return gather([measured for measured, _, _ in found], unit, convention)


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


# From a name to a folder of results ---------------------------------------------------------------------


def evaluate_to_folder(
    spec: str | Path,
    output: str | Path,
    data: config.DataSpec,
    *,
    iterations: int | None = None,
    batch_size: int = 1,
    convention: str | None = None,
    resize: tuple[int, int] | None = None,
    figure_stacks: tuple[int, ...] | None = None,
    report: int = 0,
) -> dict[str, Any]:
    """Measures depth on stacks with ground truth: writes metrics.json, per_stack.csv, table.md and figures.

    Stacks without ground truth get figures alone; the tables are empty then.

    Args:
      spec: A run folder, a weights file, pretrained, or a method without training such as classical.
      output: Folder of the results.
      data: The stacks to measure on.
      iterations: Iterations of the unroll; default as trained.
      batch_size: Stacks that are measured together.
      convention: Dataset whose masks of the literature also measure; default the dataset's own.
      resize: Height and width to scale the frames to; truth keeps its values.
      figure_stacks: Numbers of the stacks in the paper's figure, from 0; default the paper's.
      report: Also write report.html, a page with this many of the worst stacks; without a value 24.

    Returns:
      The contents of `metrics.json`.

    Raises:
      InputError: wrong arguments, unreadable data or weights, or an output folder that cannot be written.
        Nothing is left in `output` then.
    """
    smallest = {"--iterations": (iterations, 0), "--batch-size": (batch_size, 1), "--report": (report, 0)}
    for name, (value, least) in smallest.items():
        if value is not None and value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    from dff_jax.data import pipeline
    from dff_jax.estimators import weights
    from dff_jax.evaluation import figures, page, paper, resampling, tables

    loaded = weights.load_estimator(spec)
    method = loaded.model.method
    estimator = baseline(method) if method in BASELINES else loaded.estimator
    source = pipeline.open_data(data)
    measured_by = conventions.find(convention or source.convention, source.unit)
    source = source if resize is None else resampling.resized(source, resize)
    total = min(len(source), data.limit or len(source))

    def batches(of: StackSource) -> Iterator[LoadedBatch]:
        for batch in pipeline.evaluation_batches(of, batch_size, data.limit):
            weights.check_frames(loaded, batch.batch.frames.shape[1])
            yield batch

    layout = paper.layout_of(measured_by.name, source.has_truth)
    if layout is not None or figure_stacks is not None:
        layout = layout or paper.PREDICTIONS
        numbers = paper.choose_stacks(layout, total, figure_stacks)
        few = dataclasses.replace(source, length=len(numbers), read=lambda i: source.read(numbers[i]))

    folder = Path(output) / "figures"
    check_output(output, (*tables.FILES, page.FILE))
    check_output(folder, (*figures.FILES, *paper.FILES))
    meta = {
        "spec": str(spec),
        "label": loaded.label,
        "model": config.to_dict(loaded.model),
        "dataset": source.name,
        "unit": source.unit,
        "iterations": _iterations(loaded.model, iterations),
        "convention": measured_by.name,
        "resize": resize,
    }
    tasks = [Task(estimator, loaded.variables, iterations), *(Task(baseline(name)) for name in BASELINES)]
    evaluation: Evaluation | None = None
    chosen: dict[int, str] = {}
    if source.has_truth:
        found = evaluated(
            estimator, loaded.variables, batches(source), unit=source.unit, num_iterations=iterations,
            convention=measured_by,
        )  # fmt: skip
        parts = []
        with ProgressBar("evaluate", total) as bar:
            for measured, _, _ in found:
                parts.append(measured)
                bar.advance(measured.count)
        evaluation = gather(parts, source.unit, measured_by)
        chosen, paged = figures.choose(evaluation), page.worst(evaluation, report)
        drawn_again = answers_for(tasks, batches(source), {*chosen, *paged})
        results = tables.report(evaluation, **meta)
    else:
        paged = list(range(min(report, total)))
        drawn_again = answers_for(tasks, batches(dataclasses.replace(source, length=len(paged))))
        results = tables.report_without_truth(**meta)
    columns = []
    if layout is not None:
        for _, name, batch, (answer, *others) in answers_for(tasks, batches(few)):
            depths = {other: one.depth for other, one in zip(BASELINES, others, strict=True)}
            columns.append(paper.column(name, batch, answer, depths, source.unit, loaded.label))
        results["meta"]["figure"] = {"file": f"figures/{layout.file}", "stacks": [one.name for one in columns]}
    pages: dict[int, Shown] = {}
    with staged_output(output, last="metrics.json") as staging, staged_output(folder) as drawn:
        if evaluation is not None:
            figures.write(drawn, evaluation)
        for i, name, batch, (answer, *others) in drawn_again:
            rows = evaluation.of_stack(i) if evaluation is not None else None
            if i in paged:
                pages[i] = page.shown(name, batch, answer, source.unit, rows=rows)
            if evaluation is not None and i in chosen:
                figures.write_sheet(drawn, evaluation, i, chosen[i], batch, answer, [one.depth for one in others])
        tables.write(staging, results, evaluation.per_stack if evaluation else ())
        if pages:
            shown = [pages[i] for i in paged if i in pages]
            (staging / page.FILE).write_text(page.write(results, shown, evaluation), encoding="utf-8")
        if layout is not None:
            paper.save(drawn / layout.file, layout, columns)
        stale = {*figures.FILES, *paper.FILES} - {path.name for path in drawn.iterdir()}
    for name in stale:  # of an earlier evaluation, of more or of other stacks
        (folder / name).unlink(missing_ok=True)
    if not pages:
        (Path(output) / page.FILE).unlink(missing_ok=True)
    return results


def _iterations(model: config.ModelConfig, asked: int | None) -> int | None:
    return model.num_iterations if asked is None or model.num_iterations is None else asked
