"""The evaluation loop: every stage of an estimator on every stack, measured in the unit of the data."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config, estimators, focus_axis
from dff_jax.compilation import jit
from dff_jax.errors import InputError
from dff_jax.evaluation import conventions, metrics, tables
from dff_jax.evaluation.conventions import Convention
from dff_jax.evaluation.progress import Clock, OnBatch, progress
from dff_jax.evaluation.rows import YARDSTICKS, Evaluation, gather, row_maps, row_names
from dff_jax.output import check_output, staged_output
from dff_jax.types import Batch, Estimator, LoadedBatch, Prediction, Variables

if TYPE_CHECKING:
    from dff_jax.data.parts import StackSource


@functools.partial(jit, static_argnames=("estimator", "num_iterations"))
def _predict(estimator, variables, frames, focus, num_iterations) -> Prediction:
    prediction = estimator.apply(variables, frames, focus, train=False, num_iterations=num_iterations)[0]
    if prediction.history is None:
        return prediction
    return prediction._replace(history=prediction.history._replace(trace=None))  # of no use here, so not computed


@functools.partial(jax.jit, static_argnames=("unit", "convention"))
def _measure(prediction, yardsticks, focus, depth, mask, unit, convention):
    """Sums, fields [rows,B], of both regions and of each variant of the convention; mean |D - the D before| over
    valid pixels [stages-1,B], in `unit`."""
    low, high = focus[:, 0, None, None], focus[:, -1, None, None]
    in_range = (depth >= low) & (depth <= high)
    truth = focus_axis.from_q(depth, unit)
    maps = focus_axis.from_q(jnp.stack(row_maps(prediction, yardsticks)), unit)
    ends = jnp.sort(focus_axis.from_q(jnp.stack([focus[:, 0], focus[:, -1]], 1), unit), axis=1)

    def of_row(one):
        return *metrics.measure(one, truth, mask, in_range), *conventions.measure(one, truth, mask, ends, convention)

    regions = jax.lax.map(of_row, maps)  # one after the other: a row's temporaries are several maps large
    if prediction.history is None:
        return regions, None
    h = prediction.history
    stages = focus_axis.from_q(jnp.concatenate([h.iterates, h.refined], axis=1), unit)
    change = jnp.where(mask[:, None], jnp.abs(stages[:, 1:] - stages[:, :-1]), 0.0).sum((2, 3))
    return regions, change.T / jnp.maximum(mask.sum((1, 2)), 1)[None]


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
) -> Evaluation:
    """Evaluates every row (see `rows`) on every stack.

    Compiles once for each shape of batch, also over repeated calls with the same estimator object.

    Args:
      batches: stacks in q, padding stacks named "" (`data.pipeline.evaluation_batches`).
      unit: of the data; metrics are computed in it.
      num_iterations: K of the unroll; None: as configured.
      yardstick: adds the rows `classical` and `sml`.
      convention: of the literature, to measure by beside our own regions.
      on_batch: called after each batch with the number of stacks done, the batch and its Prediction.

    Raises:
      InputError: no stack, or none with ground truth.
    """
    focus_axis.check_unit(unit)
    clock, yardstick_clocks = Clock(), {name: Clock() for name in YARDSTICKS}
    start, done = time.perf_counter(), 0
    stacks: list[str] = []
    excluded: list[str] = []
    names: list[str] = []
    parts: list[tuple[metrics.Sums, ...]] = []
    changes: list[np.ndarray] = []
    for loaded in batches:
        batch = jax.block_until_ready(jax.device_put(loaded.batch))
        frames, focus = batch.frames, batch.focus
        prediction = clock.time(frames.shape, _predict, estimator, variables, frames, focus, num_iterations)
        yardsticks = []
        for name in YARDSTICKS if yardstick else ():
            if estimator is _yardstick(name) and num_iterations is None:
                yardsticks.append(prediction.depth)
                continue
            clock_of = yardstick_clocks[name]
            yardsticks.append(clock_of.time(frames.shape, _predict, _yardstick(name), {}, frames, focus, None).depth)
        found = _measure(prediction, yardsticks, focus, batch.depth, batch.mask, unit, convention)
        regions, change = jax.device_get(found)  # the one transfer of this batch
        names = row_names(prediction.history, yardstick)
        keep = np.array([bool(name) for name in loaded.names]) & (regions[0].pixels[0] > 0)
        parts.append(jax.tree.map(lambda x, keep=keep: x[:, keep], regions))
        if change is not None:
            changes.append(change[:, keep])
        stacks += [name for name, kept in zip(loaded.names, keep, strict=True) if kept]
        excluded += [name for name, kept in zip(loaded.names, keep, strict=True) if name and not kept]
        done += sum(bool(name) for name in loaded.names)
        if on_batch is not None:
            on_batch(done, loaded, prediction)
    if not stacks:
        raise InputError(f"evaluation data: none of its {done} stacks has ground truth to evaluate against")
    seconds: dict[str, Any] = {"total": time.perf_counter() - start, "per_stack": clock.per_stack()}
    seconds["per_stack_includes_compilation"] = clock.only_first_calls()
    for name, clock_of in yardstick_clocks.items():
        if clock_of.calls:
            seconds[f"per_stack_{name}"] = clock_of.per_stack()
    return gather(names, parts, changes, stacks, excluded, unit, seconds, convention)


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
) -> dict[str, Any]:
    """Evaluates and writes `metrics.json`, `per_stack.csv`, `table.md` and `figures/*.png` into `output`.

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
    for name, (value, least) in smallest.items():
        if value is not None and value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    from dff_jax.data import pipeline
    from dff_jax.estimators import weights
    from dff_jax.evaluation import figures, paper_figures, resampling

    loaded = weights.load_estimator(spec)
    method = loaded.model.method
    estimator = _yardstick(method) if method in YARDSTICKS else loaded.estimator
    data = pipeline.open_named(dataset, source, unit, split, data_dir)
    measured_by = conventions.find(convention or data.convention, data.unit)
    data = data if resize is None else resampling.resized(data, resize)
    data = resampling.edge_padded(data) if edge_pad else data

    def batches(of: StackSource) -> Iterator[LoadedBatch]:
        for batch in pipeline.evaluation_batches(of, batch_size, limit):
            weights.check_frames(loaded, batch.batch.frames.shape[1])
            yield batch

    layout = paper_figures.layout_of(measured_by.name, data.has_truth)
    columns: list[paper_figures.Column] = []
    if layout is not None or figure_stacks is not None:
        layout = layout or paper_figures.PREDICTIONS
        numbers = paper_figures.choose(layout, min(len(data), limit or len(data)), figure_stacks)
        few = dataclasses.replace(data, length=len(numbers), read=lambda i: data.read(numbers[i]))

    pictures = Path(output) / "figures"
    check_output(output, tables.FILES)
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
        with progress(min(len(data), limit or len(data))) as on_batch:
            evaluation = evaluate(
                estimator,
                loaded.variables,
                batches(data),
                unit=data.unit,
                num_iterations=iterations,
                convention=measured_by,
                on_batch=on_batch,
            )
        report = tables.report(evaluation, **meta)
        wanted = figures.choose(evaluation)
    else:
        evaluation, wanted, report = None, {}, tables.report_without_truth(**meta)
    if layout is not None:
        for name, (batch, prediction, depths) in _answers(estimator, loaded.variables, batches(few), iterations):
            others = dict(zip(YARDSTICKS, depths, strict=True))
            columns.append(paper_figures.column(name, batch, prediction, others, data.unit, loaded.label))
        report["meta"]["figure"] = {"file": f"figures/{layout.file}", "stacks": [one.name for one in columns]}
    shown = _predictions(estimator, loaded.variables, batches(data), iterations, set(wanted))
    with staged_output(output, last="metrics.json") as staging, staged_output(pictures) as drawn:
        tables.write(staging, report, evaluation.per_stack if evaluation else ())
        if evaluation:
            figures.write(drawn, evaluation, wanted, shown)
        if layout is not None:
            figures.save(paper_figures.draw(layout, columns), drawn / layout.file)
        stale = {*figures.FILES, *paper_figures.FILES} - {path.name for path in drawn.iterdir()}
    for name in stale:  # of an earlier evaluation, of more or of other stacks
        (pictures / name).unlink(missing_ok=True)
    return report


def _iterations(model: config.ModelConfig, asked: int | None) -> int | None:
    if model.method in config.UNTRAINED and model.method != "classical":
        return None
    return model.num_iterations if asked is None else asked


def _predictions(estimator, variables, batches, num_iterations, wanted: set[int]):
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
            on_host = _answer(estimator, variables, loaded.batch, num_iterations)
            for at, i in here:
                yield at, *jax.tree.map(lambda x, i=i: x[i : i + 1], on_host)
        if position > max(wanted):
            return


def _answers(estimator, variables, batches, num_iterations):
    """Yields (name, (batch, prediction, yardsticks' depths)) of every stack, arrays [1,...] on the host."""
    for loaded in batches:
        on_host = _answer(estimator, variables, loaded.batch, num_iterations)
        for i, name in enumerate(loaded.names):
            if name:
                yield name, jax.tree.map(lambda x, i=i: x[i : i + 1], on_host)


def _answer(estimator, variables, batch, num_iterations) -> tuple[Batch, Prediction, list[np.ndarray]]:
    prediction = _predict(estimator, variables, batch.frames, batch.focus, num_iterations)
    if prediction.history is not None:  # the trace has other axes first, and no figure
        prediction = prediction._replace(history=prediction.history._replace(trace=None))
    depths = [_predict(_yardstick(name), {}, batch.frames, batch.focus, None).depth for name in YARDSTICKS]
    return jax.device_get((batch, prediction, depths))
