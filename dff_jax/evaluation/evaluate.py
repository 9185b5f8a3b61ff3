"""The evaluation loop: every stage of an estimator on every stack, measured in the unit of the data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dff_jax import config, estimators, focus_axis
from dff_jax.errors import InputError
from dff_jax.evaluation import buckets, conventions, tables
from dff_jax.evaluation.buckets import BucketOf
from dff_jax.evaluation.conventions import Convention
from dff_jax.evaluation.programs import Compiler, Placed, Task, cropped, place, placed_ahead, predict
from dff_jax.evaluation.progress import Clock, OnBatch, show_in
from dff_jax.evaluation.rows import YARDSTICKS, Evaluation, Measured, gather, row_names
from dff_jax.runtime.files import check_output, staged_output
from dff_jax.runtime.progress import ProgressBar
from dff_jax.types import Batch, Estimator, LoadedBatch, Prediction, Variables

if TYPE_CHECKING:
    from dff_jax.data.parts import StackSource
    from dff_jax.pictures.page import Shown


@functools.cache
def _yardstick(name: str) -> Estimator:
    return estimators.build(config.model_preset(name))  # one object, so that repeated evaluations compile it once


def evaluate(
    estimator: Estimator,
    variables: Variables,
    batches: Iterable[LoadedBatch],
    *,
    unit: str = "disparity",
    num_iterations: int | None = None,
    yardstick: bool = True,
    convention: Convention = conventions.CONVENTIONS["default"],
    on_batch: OnBatch | None = None,
    bucket_of: BucketOf | None = None,
    together: Callable[[Measured], Measured] = lambda mine: mine,
) -> Evaluation:
    """Evaluates every row (see `rows`) on every stack.

    Pictures of many sizes are padded to few and told apart by their `extent`, which changes no answer; an estimator
    that does not allow it gets a program for each size. Compiles once for each shape of batch, before its first run,
    also over repeated calls with the same estimator object. A batch that divides evenly over the devices of this
    process is split over them.

    Args:
      batches: stacks in q, padding stacks named "" (`data.pipeline.evaluation_batches`).
      unit: of the data; metrics are computed in it.
      num_iterations: K of the unroll; None: as configured.
      yardstick: adds the rows `classical` and `sml`.
      convention: of the literature, to measure by beside our own regions.
      on_batch: called after each batch with the number of stacks done, the batch, and what gives its Prediction.
      bucket_of: `buckets.plan` of the shapes to come; None: of none.
      together: adds what other processes have measured of their share of the stacks.

    Raises:
      InputError: no stack, or none with ground truth.
    """
    focus_axis.check_unit(unit)
    start = time.perf_counter()
    coming = placed_ahead(batches, buckets.each_its_own)
    placed = next(coming, None)
    if placed is not None and placed.split is not None:
        variables = jax.device_put(variables, NamedSharding(placed.split.mesh, PartitionSpec()))
    tasks = {"answer": Task(estimator, variables, num_iterations)}
    for name in YARDSTICKS if yardstick else ():
        if not (estimator is _yardstick(name) and num_iterations is None):
            tasks[name] = Task(_yardstick(name), {}, None)
    methods = list(tasks)
    rows = [methods.index(name if name in tasks else "answer") for name in YARDSTICKS if yardstick]
    compiler = Compiler(tuple(tasks.values()), unit, convention)
    clocks = {name: Clock() for name in tasks}
    done = 0
    mine = Measured([], [], [], [], [], [])
    while placed is not None:
        loaded, batch = placed.loaded, jax.block_until_ready(placed.batch)
        compiler.prepare(placed, [0, *rows])
        answers = [
            clocks[name].time(batch.frames.shape, predict, *task.arguments(placed)) for name, task in tasks.items()
        ]
        found = compiler.measuring(placed, answers[0], [answers[i].depth for i in rows])
        following = next(coming, None)  # read while the device measures, copied while it predicts
        regions, change, confident = jax.device_get(found)  # the one transfer of this batch
        keep = np.array([bool(name) for name in loaded.names]) & (regions[0].pixels[0] > 0)
        mine += Measured(
            row_names(answers[0], yardstick),
            [jax.tree.map(lambda x, keep=keep: x[:, keep], regions)],
            [] if change is None else [change[:, keep]],
            [name for name, kept in zip(loaded.names, keep, strict=True) if kept],
            [name for name, kept in zip(loaded.names, keep, strict=True) if name and not kept],
            [confident],
        )
        done += sum(bool(name) for name in loaded.names)
        if on_batch is not None:
            on_batch(done, loaded, functools.partial(cropped, answers[0], placed))
        placed = following
    measured = together(mine)
    if not measured.stacks:
        raise InputError(f"evaluation data: none of its {done} stacks has ground truth to evaluate against")
    seconds: dict[str, Any] = {"total": time.perf_counter() - start, "per_stack": clocks["answer"].per_stack()}
    seconds |= {"compilation": compiler.seconds, "programs": compiler.programs}
    seconds |= {f"per_stack_{name}": clocks[name].per_stack() for name in methods[1:]}
    return gather(measured, unit, seconds, convention)


# From a name to a folder of results ---------------------------------------------------------------------


def evaluate_to_folder(
    spec: str | Path,
    output: str | Path,
    *,
    dataset: str | None = None,
    source: str | Path | None = None,
    unit: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    iterations: int | None = None,
    batch_size: int = 1,
    limit: int | None = None,
    convention: str | None = None,
    resize: tuple[int, int] | None = None,
    edge_pad: bool = False,
    figure_stacks: list[int] | None = None,
    page_stacks: int = 0,
) -> dict[str, Any]:
    """Evaluates and writes `metrics.json`, `per_stack.csv`, `table.md` and `figures/*.png` into `output`.

    With `page_stacks` also `report.html`, a page with so many stacks, the worst ones, to look at.

    Of data without ground truth only pictures come out; the tables are empty then.

    Args:
      spec: one of `config.UNTRAINED`, a weights file, or a run folder.
      dataset, source: exactly one: the name of a tfds dataset, or a folder of stacks like FlyingThings3D's.
      unit: of the focus settings and depth of `source`; None: disparity.
      split: of the dataset.
      iterations: K of the unroll; None: as trained.
      limit: evaluates only the first so many stacks.
      convention: of the literature (`conventions.CONVENTIONS`); None: the dataset's own.
      resize: H, W to scale the frames to; truth by the nearest pixel, values unchanged.
      edge_pad: repeats edge pixels up to multiples of 32, and evaluates these too, as DDL-GRU does.
      figure_stacks: numbers of the stacks in the paper's figure; None: the paper's.

    Returns:
      The contents of `metrics.json`.

    Raises:
      InputError: wrong arguments, unreadable data or weights, or an output folder that cannot be written.
        Nothing is left in `output` then.
    """
    if (dataset is None) == (source is None):
        raise InputError("evaluate: give exactly one of --dataset NAME and --source DIR")
    if resize is not None and edge_pad:
        raise InputError("evaluate: give either --resize or --edge-pad")
    smallest = {"--iterations": (iterations, 0), "--batch-size": (batch_size, 1), "--limit": (limit, 1)}
    smallest["--report"] = (page_stacks, 0)
    for name, (value, least) in smallest.items():
        if value is not None and value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    from dff_jax.data import pipeline
    from dff_jax.estimators import weights
    from dff_jax.evaluation import figures, page, paper_figures, resampling

    loaded = weights.load_estimator(spec)
    method = loaded.model.method
    estimator = _yardstick(method) if method in YARDSTICKS else loaded.estimator
    data = pipeline.open_data(
        config.DataSpec(
            dataset, None if source is None else str(source), unit=unit or "disparity", split=split, data_dir=data_dir
        )
    )
    measured_by = conventions.find(convention or data.convention, data.unit)
    data = data if resize is None else resampling.resized(data, resize)
    data = resampling.edge_padded(data) if edge_pad else data

    def batches(of: StackSource) -> Iterator[LoadedBatch]:
        for batch in pipeline.evaluation_batches(of, batch_size, limit):
            weights.check_frames(loaded, batch.batch.frames.shape[1])
            yield batch

    bucket_of = buckets.each_its_own
    layout = paper_figures.layout_of(measured_by.name, data.has_truth)
    columns: list[paper_figures.Column] = []
    if layout is not None or figure_stacks is not None:
        layout = layout or paper_figures.PREDICTIONS
        numbers = paper_figures.choose(layout, min(len(data), limit or len(data)), figure_stacks)
        few = dataclasses.replace(data, length=len(numbers), read=lambda i: data.read(numbers[i]))

    pictures = Path(output) / "figures"
    check_output(output, (*tables.FILES, page.FILE))
    check_output(pictures, (*figures.FILES, *paper_figures.FILES))
    meta = {
        "spec": str(spec),
        "label": loaded.label,
        "model": config.to_dict(loaded.model),
        "dataset": data.name,
        "unit": data.unit,
        "iterations": _iterations(loaded.model, iterations),
        "convention": measured_by.name,
        "resize": resize,
        "edge_pad": edge_pad,
    }
    if data.has_truth:
        with ProgressBar("evaluate", min(len(data), limit or len(data))) as bar:
            evaluation = evaluate(
                estimator,
                loaded.variables,
                batches(data),
                unit=data.unit,
                num_iterations=iterations,
                convention=measured_by,
                on_batch=show_in(bar),
                bucket_of=bucket_of,
            )
        report = tables.report(evaluation, **meta)
        wanted = figures.choose(evaluation)
    else:
        evaluation, wanted, report = None, {}, tables.report_without_truth(**meta)
    task = Task(estimator, loaded.variables, iterations)
    if layout is not None:
        for name, (batch, prediction, depths) in _answers(task, batches(few), bucket_of):
            others = dict(zip(YARDSTICKS, depths, strict=True))
            columns.append(paper_figures.column(name, batch, prediction, others, data.unit, loaded.label))
        report["meta"]["figure"] = {"file": f"figures/{layout.file}", "stacks": [one.name for one in columns]}
    shown = _predictions(task, batches(data), bucket_of, set(wanted))
    pages: list[Shown] = []
    if page_stacks and evaluation is not None:
        first = page.worst(evaluation, page_stacks)
        again = _predictions(task, batches(data), bucket_of, set(first))
        made = (
            (i, page.shown(evaluation.stacks[i], batch, answer, data.unit, rows=evaluation.of_stack(i)))
            for i, batch, answer, _ in again
        )
        pages = page.in_order(first, made)
    elif page_stacks:
        some = itertools.islice(_answers(task, batches(data), bucket_of), page_stacks)
        pages = [page.shown(name, batch, answer, data.unit) for name, (batch, answer, _) in some]
    with staged_output(output, last="metrics.json") as staging, staged_output(pictures) as drawn:
        tables.write(staging, report, evaluation.per_stack if evaluation else ())
        if pages:
            (staging / page.FILE).write_text(page.write(report, pages, evaluation), encoding="utf-8")
        if evaluation:
            figures.write(drawn, evaluation, wanted, shown)
        if layout is not None:
            figures.save(paper_figures.draw(layout, columns), drawn / layout.file)
        stale = {*figures.FILES, *paper_figures.FILES} - {path.name for path in drawn.iterdir()}
    for name in stale:  # of an earlier evaluation, of more or of other stacks
        (pictures / name).unlink(missing_ok=True)
    if not pages:
        (Path(output) / page.FILE).unlink(missing_ok=True)
    return report


def _iterations(model: config.ModelConfig, asked: int | None) -> int | None:
    return model.num_iterations if asked is None or model.num_iterations is None else asked


def _predictions(task: Task, batches, bucket_of: BucketOf, wanted: set[int]):
    """Yields (position, batch, prediction, yardsticks' depths) of the wanted stacks, arrays [1,...] on the host.

    Position counts evaluated stacks, as `Evaluation.stacks` does. The data are read a second time: which
    stacks are the best and the worst is known only after the first, and memory may not hold all predictions
    together.
    """
    position = 0
    for loaded in batches:
        here = []
        for i, name in enumerate(loaded.names):
            if name and np.asarray(loaded.batch.mask[i]).any():
                here += [(position, i)] if position in wanted else []
                position += 1
        if here:
            on_host = _answer(task, place(loaded, bucket_of))
            for at, i in here:
                yield at, *jax.tree.map(lambda x, i=i: x[i : i + 1], on_host)
        if position > max(wanted):
            return


def _answers(task: Task, batches, bucket_of: BucketOf):
    """Yields (name, (batch, prediction, yardsticks' depths)) of every stack, arrays [1,...] on the host."""
    for loaded in batches:
        on_host = _answer(task, place(loaded, bucket_of))
        for i, name in enumerate(loaded.names):
            if name:
                yield name, jax.tree.map(lambda x, i=i: x[i : i + 1], on_host)


def _answer(task: Task, placed: Placed) -> tuple[Batch, Prediction, list[np.ndarray]]:
    answers = [
        cropped(predict(*one.arguments(placed)), placed)
        for one in (task, *(Task(_yardstick(name), {}, None) for name in YARDSTICKS))
    ]
    return jax.device_get((placed.loaded.batch, answers[0], [one.depth for one in answers[1:]]))
