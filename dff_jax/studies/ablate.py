"""What the unroll contributes: trained runs at many K, with and without the refiner, and through other schemes.

The parameters stay as trained; only their use changes. `ablate` is the command `dff-jax ablate`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import DataSpec, Proximal
from dff_jax.data import pipeline
from dff_jax.data.parts import StackSource
from dff_jax.errors import ConfigError, InputError
from dff_jax.estimators.weights import LoadedEstimator, check_frames, load_estimator
from dff_jax.evaluation.evaluate import answers_for, evaluated
from dff_jax.evaluation.programs import Task
from dff_jax.evaluation.rows import gather
from dff_jax.focus_axis import span
from dff_jax.runtime.files import check_apart, check_output, staged_output
from dff_jax.runtime.progress import ProgressBar
from dff_jax.studies import ablate_figures, ablate_report
from dff_jax.studies.ablate_report import Pass, Variant
from dff_jax.types import Array, Estimator, History, LoadedBatch, Prediction, Variables
from dff_jax.unroll import PROXES, SCHEMES, Problem, resize_stack, stable

ITERATIONS = (0, 1, 2, 3, 5, 8, 16)
FILES = (*ablate_report.FILES, *ablate_figures.FILES)
COMPARISON_FILES = ("comparison.md", "comparison.json", "convergence.png")
COMPARED = ("proximal_gradient", "fista", "hqs", "admm", "exact_prox")
DATA_TERM = "proximal_gradient+identity"


class Run(NamedTuple):
    """A trained run and what to do with it."""

    loaded: LoadedEstimator
    label: str
    variants: tuple[Variant, ...]  # the first as trained
    iterations: tuple[int, ...]  # ascending, with the trained K among them


def ablate(
    runs: Sequence[str | Path],
    output: str | Path,
    data: DataSpec,
    *,
    iterations: Sequence[int] = ITERATIONS,
    schemes: Sequence[str] | None = None,
    batch_size: int = 1,
    figure_stacks: tuple[int, ...] | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Evaluates trained runs at every K and through every scheme, and writes tables and figures.

    Of several runs, each has a folder of its name inside the output folder, with a comparison beside them.

    Args:
      runs: Run folders or weights files.
      output: Folder for tables and figures.
      data: Stacks with ground truth to measure on.
      iterations: Numbers of iterations K; the trained one is added.
      schemes: Schemes to run the parameters through, each `scheme` or `scheme+prox`; default those that suit the run.
      batch_size: Stacks at once.
      figure_stacks: Numbers of the stacks in the figures, from 0 (the paper's Figure 4 has 1 16 54); default the best,
        the median and the worst.
      overwrite: Replace files in the output folder that this program did not write, too.

    Returns:
      The contents of each run's `ablation.json`.

    Raises:
      InputError: wrong arguments, unreadable data or weights, a scheme that these weights cannot run, or an output
        that cannot be written. All inputs are checked before the first is evaluated; a folder is written whole.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size: must be at least 1, got {batch_size}")
    if not iterations or min(iterations) < 0:
        raise InputError(f"--iterations: give numbers of iterations, 0 or more, got {list(iterations)}")
    opened = _open(runs, iterations, schemes)
    source = pipeline.open_data(data)
    batches = functools.partial(pipeline.evaluation_batches, source, batch_size, data.limit)
    for run in opened:
        check_frames(run.loaded, source[0].frames.shape[0])
    total = min(len(source), data.limit or len(source))
    asked = None if figure_stacks is None else ablate_figures.named(source, figure_stacks, total)
    several = len(opened) > 1
    folders = [Path(output) / run.label if several else Path(output) for run in opened]
    check_apart(output, data.source)
    for folder in folders:
        check_output(folder, FILES, overwrite=overwrite)
    if several:
        check_output(output, COMPARISON_FILES, overwrite=overwrite)

    reports: list[dict[str, Any]] = []
    for i, (run, folder) in enumerate(zip(opened, folders, strict=True), 1):
        label = f"ablate: {run.label}" + (f" ({i}/{len(opened)})" if several else "")
        reports.append(_one_run(run, folder, batches, source, label, total, asked, overwrite))
    if several:
        with staged_output(output, last="comparison.json", overwrite=overwrite) as staging:
            ablate_report.write_comparison(staging, reports)
            ablate_figures.write_comparison(staging, reports)
    return reports


def _open(runs: Sequence[str | Path], iterations: Sequence[int], schemes: Sequence[str] | None) -> list[Run]:
    """All runs, each under a name of its own; raises InputError for one that is no trained unroll."""
    opened: list[Run] = []
    for spec in runs:
        loaded = load_estimator(spec)
        if not isinstance(loaded.model, Proximal):
            raise InputError(f"ablate: {spec} has no trained unroll to take apart; give a run folder or a weights file")
        label, taken = loaded.label, {run.label for run in opened}
        if label in taken:
            label = f"{Path(spec).resolve().parent.name}_{label}"
        if label in taken:
            label = f"{label}_{len(opened) + 1}"
        K = tuple(sorted({*iterations, loaded.model.num_iterations}))
        opened.append(Run(loaded, label, variants(loaded, loaded.model, schemes), K))
    return opened


def _one_run(
    run: Run, folder: Path, batches: Callable[[], Iterator[LoadedBatch]], source: StackSource, label: str, total: int,
    asked: dict[str, str] | None, overwrite: bool,
) -> dict[str, Any]:
    """Evaluates one run and writes its folder; returns its report."""
    start = time.perf_counter()
    variables, passes = run.loaded.variables, {}
    first = run.variants[0]
    as_trained = sweep(first.estimator, run.iterations)
    for i, variant in enumerate(run.variants, 1):
        # the refined depth of another scheme at the largest K only: each K more is a program of its own
        K = run.iterations if variant is first else run.iterations[-1:]
        estimator = as_trained if variant is first else sweep(variant.estimator, K)
        with ProgressBar(f"{label}, pass {i}/{len(run.variants)}, {variant.name}", total) as bar:
            passes[variant.name] = run_pass(
                variant, estimator, variables, batches(), unit=source.unit, iterations=K, baselines=variant is first,
                bar=bar,
            )  # fmt: skip
    own = passes[first.name]
    report = ablate_report.report(
        passes, run=run.label, model=configs.to_dict(run.loaded.model), info=run.loaded.info,
        trained=first.model.num_iterations, iterations=run.iterations, dataset=source.name, unit=source.unit,
        parameters=sum(x.size for x in jax.tree.leaves(variables["params"])), seconds=time.perf_counter() - start,
    )  # fmt: skip
    chosen = ablate_figures.choose(own.evaluation, report["meta"]["answer"], asked)
    again = answers_for([Task(as_trained, variables)], batches(), chosen)  # reads the data a second time
    shown = [ablate_figures.Shown(chosen[at], name, own.evaluation.of_stack(at), batch, prediction)
             for at, name, batch, (prediction,) in again]  # fmt: skip
    shown.sort(key=lambda one: list(chosen.values()).index(one.role))
    with staged_output(folder, last="ablation.json", overwrite=overwrite) as staging:
        ablate_report.write(staging, report, passes)
        ablate_figures.write(staging, report, shown, own.mean_weights)
    return report


# Ways to use the parameters -------------------------------------------------------------------------------


def variants(loaded: LoadedEstimator, trained: Proximal, schemes: Sequence[str] | None) -> tuple[Variant, ...]:
    """The run as trained, then through other schemes, each "scheme" or "scheme+prox"; None: those that suit it.

    A scheme that needs a prox's dual form has no place for a network. One that is not in COMPARED (`learned_gradient`,
    a user's own) trained its network for another part; such a run gets only DATA_TERM by default.

    Raises:
      InputError: no such scheme or prox, or one that these weights cannot run.
    """
    # rolled, because K is large and nothing is differentiated: the same numbers, compiled in a third of the time
    own = replace(trained, gradient="remat")
    found = {own: Variant(own.scheme, own, estimators.build(own))}
    if schemes is None:
        schemes = (*COMPARED, DATA_TERM) if own.scheme in COMPARED else (DATA_TERM,)
    for text in schemes:
        scheme, _, prox = text.partition("+")
        model = replace(own, scheme=scheme, prox=prox or own.prox)
        if model in found:
            continue
        try:
            estimator = estimators.build(model)
        except ConfigError as error:
            raise InputError(f"--schemes {text}: {error}") from None
        if scheme not in SCHEMES or model.prox not in (own.prox, *PROXES):
            _check_fits(text, estimator, loaded, trained)
        found[model] = Variant(text, model, estimator)
    return tuple(found.values())


def _check_fits(text: str, estimator: Estimator, loaded: LoadedEstimator, trained: Proximal) -> None:
    """Raises InputError if `estimator` wants parameters that the run does not have."""
    frames = loaded.info.get("num_frames") or trained.num_planes or 15
    shapes = (jax.ShapeDtypeStruct((1, frames, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1, frames), jnp.float32))
    trees = jax.eval_shape(estimator.init, jax.random.key(0), *shapes), loaded.variables
    leaves = [tree_leaves_with_path(tree) for tree in trees]
    wanted, given = ({keystr(path, simple=True, separator="/"): np.shape(x) for path, x in one} for one in leaves)
    missing = [key for key, shape in wanted.items() if given.get(key) != shape]
    if missing:
        raise InputError(
            f"--schemes {text}: needs parameters that {loaded.label} does not have ({', '.join(missing[:3])}); "
            "train it with model.scheme and model.prox of that name"
        )


def sweep(estimator: Estimator, iterations: tuple[int, ...]) -> Estimator:
    """`estimator` at the last K of `iterations` (ascending); its refined stages are those after each K.

    It is one program for all K: the compiler keeps one of the encoders, which are equal.
    """

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        last, stats = estimator.apply(variables, frames, focus, num_iterations=iterations[-1])
        if not _history(last).refined.shape[1]:
            return last, stats
        before = [estimator.apply(variables, frames, focus, num_iterations=K)[0] for K in iterations[:-1]]
        refined = jnp.concatenate([_history(one).refined[:, -1:] for one in (*before, last)], 1)
        return last._replace(history=_history(last)._replace(refined=refined)), stats

    return Estimator(estimator.init, apply)


def _history(prediction: Prediction) -> History:
    assert prediction.history is not None  # every unroll has one
    return prediction.history


# One pass ---------------------------------------------------------------------------------------------


def run_pass(
    variant: Variant, estimator: Estimator, variables: Variables, batches: Iterable[LoadedBatch], *, unit: str,
    iterations: tuple[int, ...], baselines: bool, bar: ProgressBar,
) -> Pass:  # fmt: skip
    """Evaluates `estimator` (a `sweep` of the variant's over `iterations`) on all batches."""
    measured, courses, weights, number = [], [], np.zeros(()), 0  # W_i^2 of the images of one size, and how many
    settings = variables["params"].get("unroll", {})
    for one, loaded, prediction in evaluated(estimator, variables, batches, unit=unit, baselines=baselines):
        measured.append(one)
        keep = np.array([bool(name) for name in loaded.names]) & np.asarray(loaded.batch.mask).any((1, 2))
        course = jax.device_get(_course(variant.model, settings, prediction, loaded.batch.focus))
        courses.append({name: np.asarray(value, np.float64)[keep] for name, value in course.items()})
        maps = np.asarray(_history(prediction).weights, np.float64)[keep]
        if not number or maps.shape[1:] == weights.shape:
            weights, number = weights + maps.sum(0), number + len(maps)
        bar.advance(one.count)
    evaluation = ablate_report.renamed(gather(measured, unit), iterations)
    course = {name: np.concatenate([part[name] for part in courses]).mean(0).tolist() for name in courses[0]}
    course["MAE"] = [evaluation.rows[f"D({k})"]["MAE"] for k in range(iterations[-1] + 1)]
    course["change"] = [evaluation.dynamics["step"][f"D({k})"] for k in range(1, iterations[-1] + 1)]
    return Pass(evaluation, course, (weights / number).astype(np.float32))


@functools.partial(jax.jit, static_argnames="model")
def _course(model: Proximal, settings: dict, prediction: Prediction, focus: Array) -> dict[str, Array]:
    """How each stack of the batch went, over all pixels: [B], [B,K] (residual and steps) or [B,K+1] (energy).

    Depths count in shares of the focus range. `data_energy` is the data term's excess over its minimum D(0),
    1/2 S (D(k) - D(0))^2; `residual` is the root mean square of D(k) - D(k-1). For proximal gradient, `data_step` and
    `prox_step` are the means of |z - D(k-1)| and |D(k) - z| with z = D(k-1) - eta S (D(k-1) - D(0)).
    """
    h = _history(prediction)
    depth = h.iterates / span(focus)[:, None, None, None]
    S = h.weights.sum(-1)
    away, moved = depth - depth[:, :1], jnp.diff(depth, axis=1)

    def mean(x: Array) -> Array:
        return x.mean((-2, -1))

    found = {
        "S_mean": mean(S), "S_std": S.std((-2, -1)), "weights": h.weights.mean((1, 2)),
        "data_energy": mean(0.5 * S[:, None] * away**2), "residual": jnp.sqrt(mean(moved**2)),
    }  # fmt: skip
    eta = _step_sizes(model, settings, Problem(h.candidates, h.weights), moved.shape[1])
    if eta is not None:
        eta_S = jnp.broadcast_to(eta * S[:, None], moved.shape)
        pull = eta_S * away[:, :-1]
        found |= {"eta_S": mean(eta_S), "data_step": mean(jnp.abs(pull)), "prox_step": mean(jnp.abs(moved + pull))}
    return found


def _step_sizes(model: Proximal, settings: dict, problem: Problem, num_iterations: int) -> Array | None:
    """eta of each iteration, broadcastable to [B,K,H,W]; None for other schemes and for a predicted eta."""
    if model.scheme != "proximal_gradient" or model.step_size == "per_pixel" or not num_iterations:
        return None
    if model.step_size == "constant":
        return jnp.minimum(model.step_size_init, 1.9 / problem.S.max((-2, -1), keepdims=True))[:, None]
    own, shared = settings.get("per_iteration", {}), settings.get("shared", {})
    if "step_size" not in own and "step_size" not in shared:
        return None
    raw = resize_stack(own["step_size"], num_iterations) if "step_size" in own else shared["step_size"][None]
    steps = jax.nn.softplus(raw)
    if not model.bounded_step:
        return steps.reshape(1, -1, 1, 1)
    eta = [stable(u, problem) for u in steps]
    return jnp.stack(jnp.broadcast_arrays(*eta), 1)
