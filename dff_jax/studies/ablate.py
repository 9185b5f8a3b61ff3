"""What the unroll contributes: trained runs at many K, with and without refiner, and through other schemes.

The parameters stay as trained; only what is done with them changes. `ablate` is what `dff-jax ablate` calls.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dff_jax import config as configs
from dff_jax.errors import InputError
from dff_jax.estimators.weights import LoadedEstimator, check_frames, load_estimator
from dff_jax.evaluation import figures
from dff_jax.evaluation.evaluate import answers_for
from dff_jax.evaluation.programs import Task
from dff_jax.evaluation.rows import Evaluation
from dff_jax.runtime.files import check_output, staged_output
from dff_jax.runtime.progress import ProgressBar
from dff_jax.studies import ablation_figures, ablation_tables
from dff_jax.studies.ablation_passes import Variant, run_pass, sweep, variants
from dff_jax.types import Batch, Estimator, LoadedBatch, Prediction, Variables

ITERATIONS = (0, 1, 2, 3, 5, 8, 16)
FILES = (*ablation_tables.FILES, *ablation_figures.FILES)
COMPARISON_FILES = ("comparison.md", "comparison.json", "comparison.png", "convergence.png")
SHOWN = ("best", "median", "worst")  # stacks, by MAE of the answer

Batches = Callable[[], Iterator[LoadedBatch]]


class Run(NamedTuple):
    """A trained run and what to do with it."""

    loaded: LoadedEstimator
    label: str
    variants: tuple[Variant, ...]  # the first as trained
    iterations: tuple[int, ...]  # ascending, with the trained K among them

    @property
    def trained(self) -> int:
        """K as trained."""
        return self.loaded.model.num_iterations


def ablate(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    dataset: str | None = None,
    source: str | Path | None = None,
    unit: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    iterations: Sequence[int] = ITERATIONS,
    schemes: Sequence[str] | None = None,
    batch_size: int = 1,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Evaluates trained runs at every K and through every scheme, and writes tables and figures (`FILES`).

    One run: into `output`. Several: each into `output/<its name>`, and `COMPARISON_FILES` into `output`.

    Args:
      runs: run folders or weights files.
      dataset, source: exactly one: the name of a tfds dataset, or a folder of stacks like FlyingThings3D's.
      unit: of the focus settings and depth of `source`; None: disparity.
      iterations: K; the trained one is added.
      schemes: "scheme" or "scheme+prox", each a name of `dff_jax.unroll` or a user's `module:function`; None: those
        that make sense for the run (`ablation_passes.variants`).
      limit: evaluates only the first so many stacks.

    Returns:
      The contents of each run's `ablation.json`.

    Raises:
      InputError: wrong arguments, unreadable data or weights, a scheme that these weights cannot run, or an output
        that cannot be written. All inputs are looked at before the first is evaluated; a folder is written whole.
    """
    if (dataset is None) == (source is None):
        raise InputError("ablate: give exactly one of --dataset NAME and --source DIR")
    for name, value, least in (("--batch-size", batch_size, 1), ("--limit", limit, 1)):
        if value is not None and value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    if not iterations or min(iterations) < 0:
        raise InputError(f"--iterations: give numbers of iterations, 0 or more, got {list(iterations)}")
    from dff_jax.data import pipeline

    opened = _open(runs, iterations, schemes)
    data = pipeline.open_data(
        configs.DataSpec(
            dataset, None if source is None else str(source), unit=unit or "disparity", split=split, data_dir=data_dir
        )
    )
    batches = functools.partial(pipeline.evaluation_batches, data, batch_size, limit)
    for run in opened:
        check_frames(run.loaded, data[0].frames.shape[0])
    several = len(opened) > 1
    folders = [Path(output) / run.label if several else Path(output) for run in opened]
    for folder in folders:
        check_output(folder, FILES)
    if several:
        check_output(output, COMPARISON_FILES)

    reports: list[dict[str, Any]] = []
    known: Evaluation | None = None  # of the first run, whose methods without training serve all
    total = min(len(data), limit or len(data))
    for number, (run, folder) in enumerate(zip(opened, folders, strict=True), 1):
        prefix = f"ablate: {run.label}" + (f" ({number}/{len(opened)})" if several else "")
        report, known = _one_run(run, folder, batches, data, known, prefix, total)
        reports.append(report)
    if several:
        with staged_output(output, last="comparison.json") as staging:
            ablation_tables.write_comparison(staging, reports)
            figures.save(ablation_figures.comparison(reports), staging / "comparison.png")
            courses = {r["meta"]["run"]: r["courses"][r["meta"]["scheme"]] for r in reports}
            figures.save(ablation_figures.convergence(courses, data.unit, "as trained"), staging / "convergence.png")
    return reports


def _open(runs: Sequence[str | Path], iterations: Sequence[int], schemes: Sequence[str] | None) -> list[Run]:
    """All runs, under names of their own; raises InputError for one that is no trained unroll."""
    opened: list[Run] = []
    for spec in runs:
        loaded = load_estimator(spec)
        if not isinstance(loaded.model, configs.Proximal):
            raise InputError(f"ablate: {spec} has no trained unroll to take apart; give a run folder or a weights file")
        label, taken = loaded.label, {run.label for run in opened}
        if label in taken:
            label = f"{Path(spec).resolve().parent.name}_{label}"
        number = 2
        while label in taken:
            label, number = f"{loaded.label}_{number}", number + 1
        K = tuple(sorted({*iterations, loaded.model.num_iterations}))
        opened.append(Run(loaded, label, variants(loaded, schemes), K))
    return opened


def _one_run(
    run: Run, folder: Path, batches: Batches, data: Any, known: Evaluation | None, label: str, total: int
) -> tuple[dict[str, Any], Evaluation]:
    """Evaluates one run, writes its folder, and returns its report and the evaluation as trained."""
    start = time.perf_counter()
    variables, passes = run.loaded.variables, {}
    as_trained = sweep(run.variants[0].estimator, run.iterations)
    for number, variant in enumerate(run.variants):
        # the refined depth of another scheme at the largest K only: each K more is a program of its own
        K = run.iterations if number == 0 else run.iterations[-1:]
        estimator = as_trained if number == 0 else sweep(variant.estimator, K)
        with ProgressBar(f"{label}, pass {number + 1}/{len(run.variants)}, {variant.name}", total) as bar:
            passes[variant.name] = run_pass(
                variant, estimator, variables, batches(), unit=data.unit, iterations=K,
                baselines=number == 0 and known is None, bar=bar,
            )  # fmt: skip
    own = passes[run.variants[0].name]
    evaluation = _with_untrained(own.evaluation, known)
    passes[run.variants[0].name] = own._replace(evaluation=evaluation)
    report = ablation_tables.report(
        passes, label=run.label, model=configs.to_dict(run.loaded.model), info=run.loaded.info,
        trained=run.trained, iterations=run.iterations, dataset=data.name, unit=data.unit,
        parameters=sum(x.size for x in jax.tree.leaves(variables["params"])),
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    chosen = _choose(evaluation, report["meta"]["answer"])
    shown = _predictions(as_trained, variables, batches(), chosen)
    shown = {role: shown[role] for role in SHOWN if role in shown}
    names = {role: evaluation.stacks[position] for position, role in chosen.items()}
    with staged_output(folder, last="ablation.json") as staging:
        ablation_tables.write(staging, report, passes)
        ablation_figures.write(staging, report, shown, names, own.mean_weights, evaluation)
    return report, evaluation


def _with_untrained(evaluation: Evaluation, known: Evaluation | None) -> Evaluation:
    """With the rows of the methods that need no training, from the first run's evaluation of the same data."""
    if known is None:
        return evaluation
    names = [name for name in known.rows if name not in evaluation.rows and name.isalpha()]
    rows = evaluation.rows | {name: known.rows[name] for name in names}
    per_stack = (*evaluation.per_stack, *(one for one in known.per_stack if one["row"] in names))
    return evaluation._replace(rows=rows, per_stack=per_stack)


def _choose(evaluation: Evaluation, answer: str) -> dict[int, str]:
    """Position -> role of the stacks to show."""
    final = tuple(one | {"row": "final"} for one in evaluation.per_stack if one["row"] == answer)
    chosen = figures.choose(evaluation._replace(per_stack=final))
    return {position: role for position, role in chosen.items() if role in SHOWN}


def _predictions(
    estimator: Estimator, variables: Variables, batches: Iterator[LoadedBatch], chosen: dict[int, str]
) -> dict[str, tuple[Batch, Prediction]]:
    """Role -> (batch, prediction) [1,...] on the host, of the chosen stacks; reads the data a second time."""
    again = answers_for([Task(estimator, variables)], batches, chosen)  # as compiled before
    return {chosen[position]: (batch, prediction) for position, _, batch, (prediction,) in again}
