"""`dff-jax evaluate`: from the names of a method and of data to a folder of numbers, tables, figures and a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dff_jax import config
from dff_jax.data import pipeline
from dff_jax.data.parts import StackSource
from dff_jax.errors import InputError
from dff_jax.estimators import weights
from dff_jax.evaluation import conventions, evaluate, figures, page, paper, resampling, tables
from dff_jax.evaluation.programs import Task
from dff_jax.evaluation.rows import BASELINES, Evaluation, gather
from dff_jax.pictures.page import Shown
from dff_jax.runtime.files import check_apart, check_output, staged_output, write_text
from dff_jax.runtime.progress import ProgressBar
from dff_jax.types import LoadedBatch

FIGURES = "figures"


class _Run(NamedTuple):
    """What is measured and drawn."""

    label: str  # of the method
    tasks: list[Task]  # the method, then `rows.BASELINES`
    others: dict[str, Task]  # methods beside it in the paper's figure, by what to call them
    source: StackSource
    batches: Callable[[StackSource], Iterator[LoadedBatch]]


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
    against: tuple[str, ...] = (),
    report: int = 0,
    overwrite: bool = False,
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
      against: Methods to show beside it in the paper's figure, as in Figure 9: run folders, weights files, names. They
        are not measured (compare does that).
      report: Also write report.html, a page with this many of the worst stacks; without a value 24.
      overwrite: Replace files in the output folder that this program did not write, too.

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
    check_apart(output, data.source)
    drawings = (f"{FIGURES}/{name}" for name in (*figures.FILES, *paper.FILES))
    check_output(output, (*tables.FILES, page.FILE, *drawings), overwrite=overwrite)
    check_output(Path(output) / FIGURES)
    loaded = weights.load_estimator(spec)
    others = [weights.load_estimator(name) for name in against]
    run = _open(loaded, others, data, resize, batch_size, iterations)
    measured_by = conventions.find(convention or run.source.convention, run.source.unit)
    figure = paper.choose(measured_by.name, run.source.has_truth, len(run.source), figure_stacks, bool(against))

    evaluation = _measure(run, measured_by) if run.source.has_truth else None
    as_built = loaded.model.num_iterations  # None: the method does not iterate
    results = tables.report(
        evaluation, spec=str(spec), label=run.label, model=config.to_dict(loaded.model), dataset=run.source.name,
        unit=run.source.unit, iterations=as_built if None in (as_built, iterations) else iterations,
        convention=measured_by.name, resize=resize,
    )  # fmt: skip
    with staged_output(output, last="metrics.json", overwrite=overwrite) as staging:
        drawn = staging / FIGURES
        drawn.mkdir()
        if figure is not None:
            names = _draw_papers_figure(drawn, run, *figure)
            results["meta"]["figure"] = {"file": f"{FIGURES}/{figure[0].file}", "stacks": names}
        shown = _draw_stacks(drawn, run, evaluation, report)
        tables.write(staging, results, evaluation)
        if shown:
            write_text(staging / page.FILE, page.write(results, shown, evaluation))
    return results


def _open(
    loaded: weights.LoadedEstimator,
    others: Sequence[weights.LoadedEstimator],
    data: config.DataSpec,
    resize: tuple[int, int] | None,
    batch_size: int,
    iterations: int | None,
) -> _Run:
    """The method beside its baselines and others, and the first `data.limit` stacks."""
    source = pipeline.open_data(data)
    for shape in source.shapes[: data.limit]:  # of others as they are read
        for one in (loaded, *others):
            weights.check_frames(one, shape[0])
    if resize is not None:
        source = resampling.resized(source, resize)
    for one in (loaded, *others):
        one.model.check_unit(source.unit)
    tasks = [_task(loaded, iterations), *(Task(evaluate.baseline(name)) for name in BASELINES)]
    shown: dict[str, Task] = dict(zip(BASELINES, tasks[1:], strict=True))
    if others:
        shown = {_name(other, [loaded, *others[:i]]): _task(other) for i, other in enumerate(others)}

    def batches(of: StackSource) -> Iterator[LoadedBatch]:
        for batch in pipeline.evaluation_batches(of, batch_size):
            for one in (loaded, *others):
                weights.check_frames(one, batch.batch.frames.shape[1])
            yield batch

    first = dataclasses.replace(source, length=min(len(source), data.limit or len(source)))
    return _Run(loaded.label, tasks, shown, first, batches)


def _task(loaded: weights.LoadedEstimator, iterations: int | None = None) -> Task:
    method = loaded.model.method
    estimator = evaluate.baseline(method) if method in BASELINES else loaded.estimator  # compiled once
    return Task(estimator, loaded.variables, iterations)


def _name(one: weights.LoadedEstimator, before: Sequence[weights.LoadedEstimator]) -> str:
    """What to call it where others have names."""
    same = sum(other.label == one.label for other in before)
    return f"{one.label} ({same + 1})" if same else one.label


def _measure(run: _Run, convention: conventions.Convention) -> Evaluation:
    estimator, variables, iterations = run.tasks[0]
    found = evaluate.evaluated(
        estimator, variables, run.batches(run.source), unit=run.source.unit, num_iterations=iterations,
        convention=convention,
    )  # fmt: skip
    parts = []
    with ProgressBar("evaluate", len(run.source)) as bar:
        for measured, _, _ in found:
            parts.append(measured)
            bar.advance(measured.count)
    return gather(parts, run.source.unit, convention)


def _draw_papers_figure(folder: Path, run: _Run, layout: paper.Layout, numbers: Sequence[int]) -> list[str]:
    """Draws these stacks as the paper does; returns their names."""
    columns, tasks = [], [run.tasks[0], *(run.others.values() if layout.methods else ())]
    for _, name, batch, (answer, *others) in evaluate.answers_for(tasks, run.batches(run.source.only(numbers))):
        depths = {other: one.depth for other, one in zip(run.others, others, strict=False)}
        columns.append(paper.column(name, batch, answer, depths, run.source.unit, run.label))
    paper.save(folder / layout.file, layout, columns)
    return [one.name for one in columns]


def _draw_stacks(folder: Path, run: _Run, evaluation: Evaluation | None, on_page: int) -> list[Shown]:
    """Draws charts and sheets; returns `on_page` stacks for the page: the worst, or without truth the first."""
    if evaluation is None:
        source = dataclasses.replace(run.source, length=min(on_page, len(run.source)))
        return [
            page.shown(name, batch, answer, source.unit)
            for _, name, batch, (answer, *_) in evaluate.answers_for(run.tasks[:1], run.batches(source))
        ]
    figures.write(folder, evaluation)
    roles, worst = figures.choose(evaluation), page.worst(evaluation, on_page)
    pages = {}
    for i, name, batch, (answer, *others) in evaluate.answers_for(run.tasks, run.batches(run.source), {*roles, *worst}):
        if i in roles:
            figures.write_sheet(folder, evaluation, i, roles[i], batch, answer, [one.depth for one in others])
        if i in worst:
            pages[i] = page.shown(name, batch, answer, evaluation.unit, rows=evaluation.of_stack(i))
    return [pages[i] for i in worst]
