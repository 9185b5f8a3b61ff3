"""`dff-jax compare`: trains the methods, measures all of them on all test sets, writes tables and figures.

Each step leaves its result in a file, and a step whose result is there is not repeated:

    <output>/<method>/seed<n>/            a run folder of `training.loop`
    <output>/<method>/seed<n>/<test>.json what `measure` found, with the checksum of the weights
    <output>/costs.json                   parameters, FLOPs, memory and times of all methods
    <output>/table.md, table.json, per_stack.csv, curves.png, figure.png, stack_metrics.png
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config as configs
from dff_jax.config import Comparison
from dff_jax.data import pipeline
from dff_jax.data.parts import StackSource
from dff_jax.errors import ConfigError, InputError
from dff_jax.estimators import weights
from dff_jax.evaluation import conventions, paper
from dff_jax.evaluation.evaluate import evaluated
from dff_jax.evaluation.rows import gather
from dff_jax.pictures import panels
from dff_jax.runtime.files import check_apart, check_output, finite, staged_output
from dff_jax.runtime.progress import ProgressBar, say
from dff_jax.studies import compare_figures as figures
from dff_jax.studies import compare_report as report
from dff_jax.studies import costs, curves
from dff_jax.studies.costs import Trained
from dff_jax.training.statistics import Population
from dff_jax.types import Array, Estimator, Variables

VERSION = 2
"""Of the files that `measure` leaves: raise it when their contents change."""


def compare(
    comparison: Comparison, output: str | Path, *, only: Sequence[str] | None = None, overwrite: bool = False
) -> dict[str, Any] | None:
    """Trains, measures and writes; repeated after an interruption, it goes on where it was.

    Args:
      comparison: Who takes part and what is measured.
      output: Folder of the runs, tables and figures.
      only: Labels or folder names of the methods to take; default all. Others stay in the tables if they are done.
      overwrite: Replace files in the output folder that this program did not write, too; never a run.

    Returns:
      The contents of `table.json`; None if interrupted in a training, which is then saved.

    Raises:
      InputError: as `training.loop.train`; a wrong name in `only`; a folder that holds another comparison's runs.
      TrainingDiverged: names the method's run.
    """
    output = Path(output)
    comparison = _restricted(comparison, only, output)
    for test in (comparison.test, *comparison.zero_shot):
        check_apart(output, test.source)
    check_output(output, (*report.FILES, *figures.FILES, "costs.json"), overwrite=overwrite)
    main, notes = pipeline.open_data(comparison.test), []
    length = min(len(main), comparison.test.limit or len(main))
    shown, chart = figures.choose(comparison, length)
    sets = {comparison.test.name: main}
    for test in comparison.zero_shot:
        try:
            sets[test.name] = pipeline.open_data(test)
        except InputError as error:
            notes.append(f"{test.name}: left out, {error}")
            say(f"note: {notes[-1]}")
    ready = list(_runs(comparison, output))
    for one in ready:
        if one.method.weights is not None:  # a wrong path is told before anything is trained
            costs.load(one.spec)
    for one in ready:
        if one.method.config is not None and not _is_ready(one):
            from dff_jax.training.loop import train

            say(f"training {one.name}")
            if train(_config(one), one.folder)["interrupted"]:
                return None
    limits = {test.name: test.limit for test in (comparison.test, *comparison.zero_shot)}
    found: dict[Trained, dict[str, dict[str, Any]]] = {one: {} for one in ready}
    for name, source in sets.items():  # all methods on one set: they share the stacks of `_population`
        worlds, before = None if name == comparison.test.name else _Worlds(), None
        for one in ready:
            if one.method != before:
                jax.clear_caches()  # programs of all methods at all sizes together exceed what a process may map
            found[one][name], before = measure(one, name, source, limits[name], worlds), one.method
    spent = costs.measure_all(_distinct(ready), main, output / "costs.json")
    table = report.table(comparison, found, spent, curves.collect(ready), notes)
    if main.convention == "flyingthings":
        table["paper"] = finite([report.table_3(found, comparison.test.name)])
    with staged_output(output, last="table.json", overwrite=overwrite) as staging:
        report.write(staging, table, found)
        panels.save_figure(staging / "curves.png", curves.chart(table["curves"], spent, main.unit))
        columns = list(_columns(_distinct(ready), main, shown))
        stack = main[chart].name
        metrics = _of_stack(_distinct(ready), found, comparison.test.name, stack, main)
        figures.write(staging, comparison.test.name, columns, stack, metrics)
    return table


class _Worlds:
    """The stacks of `_population` for one test set: rendered once for all methods that see them in the same form."""

    def __init__(self) -> None:
        self._kind: tuple[configs.DataConfig, int] | None = None
        self._batches: list[tuple[Array, Array]] = []

    def shown(self, population: Population, count: int) -> list[tuple[Array, Array]]:
        if (population.data, count) != self._kind:
            self._batches = []  # two sets need not be in memory together
            self._kind, self._batches = (population.data, count), list(population.batches())
        return self._batches


def measure(
    one: Trained, test: str, source: StackSource, limit: int | None, worlds: _Worlds | None = None
) -> dict[str, Any]:
    """Metrics of every row of one method on one test set, from its file if that is of the same weights.

    Args:
      worlds: for stacks of another kind than in training, for which a network with BatchNorm gets its statistics anew.

    Returns:
      `rows` (as `evaluation.rows.Evaluation`), `per_stack` (of the answer) and `literature`; or, of a method that
      cannot take these stacks, `refused`, which says why.
    """
    path = one.folder / f"{re.sub(r'[^a-z0-9]+', '-', test.lower()).strip('-')}.json"
    key = {"version": VERSION, "weights": _checksum(one.spec), "data": source.describe, "limit": limit}
    if before := costs.stored(path, key):
        return before
    loaded = costs.load(one.spec)
    result: dict[str, Any] = {"key": key, "unit": source.unit}
    try:
        weights.check_frames(loaded, len(source[0].focus))
        loaded.model.check_unit(source.unit)
    except InputError as error:
        result["refused"] = str(error)
    else:
        convention, parts = conventions.find(source.convention, source.unit), []
        batches = pipeline.evaluation_batches(source, 1, limit)
        variables = loaded.variables if worlds is None else _at_size_of(one, loaded, source, worlds)
        with ProgressBar(f"{one.name} on {test}", min(len(source), limit or len(source))) as bar:
            for measured, _, _ in evaluated(
                loaded.estimator, variables, batches, unit=source.unit, baselines=False, convention=convention
            ):
                parts.append(measured)
                bar.advance(measured.count)
        answer = gather(parts, source.unit, convention)
        final = [line for line in answer.per_stack if line["row"] == "final"]
        result |= {"rows": answer.rows, "per_stack": final, "literature": answer.literature}
    result = finite(result)
    with staged_output(path.parent, overwrite=True) as staging:
        (staging / path.name).write_text(json.dumps(result, allow_nan=False) + "\n")
    return result


def _at_size_of(one: Trained, loaded: weights.LoadedEstimator, source: StackSource, worlds: _Worlds) -> Variables:
    """The weights, with the batch statistics of `_population` if they were trained here."""
    config = one.method.config
    if config is None or not config.training.statistics or not loaded.variables["batch_stats"]:
        return loaded.variables
    population = _population(one, loaded.estimator, source)
    return population(0, loaded.variables, batches=worlds.shown(population, config.training.statistics))


def _population(one: Trained, estimator: Estimator, source: StackSource) -> Population:
    """Training stacks at the size of the test's; procedural ones are rendered anew, with as many frames.

    The same for all seeds. Nothing of the test's stacks is used but their shape.
    """
    config = one.method.config
    assert config is not None
    data = config.data
    if data.source == "procedural_live" or data.dataset.startswith("procedural/"):
        world = dataclasses.replace(data.world, num_frames=len(source[0].focus))
        data = dataclasses.replace(data, source="procedural_live", world=world, frames=None, mixture=())
    return Population(dataclasses.replace(config, data=data, seed=0), estimator, source)


def _restricted(comparison: Comparison, only: Sequence[str] | None, output: Path) -> Comparison:
    """With the methods asked for, and those that are done in `output`."""
    if not only:
        return comparison
    known = {name for method in comparison.methods for name in (method.label, method.folder)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(f"--only: no method is called {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    runs = list(_runs(comparison, output))
    chosen = tuple(
        method for method in comparison.methods
        if {method.label, method.folder} & set(only) or all(_is_ready(run) for run in runs if run.method == method)
    )  # fmt: skip
    labels = {method.label for method in chosen}
    ratio = comparison.ratio if labels.issuperset(comparison.ratio) else ()
    return dataclasses.replace(comparison, methods=chosen, ratio=ratio)


def _runs(comparison: Comparison, output: Path) -> Iterator[Trained]:
    """Every method with each of its seeds, trained or not."""
    for method in comparison.methods:
        folder = output / method.folder
        if method.weights is not None:
            yield Trained(method, None, folder, method.weights)
        else:
            for seed in comparison.seeds:
                run = folder / f"seed{seed}"
                yield Trained(method, seed, run, str(run / "weights_last.safetensors"))


def _config(one: Trained) -> configs.Config:
    """What is trained with this seed."""
    assert one.method.config is not None and one.seed is not None
    return dataclasses.replace(one.method.config, name=one.method.folder, seed=one.seed)


def _is_ready(one: Trained) -> bool:
    """Whether it is trained by this config (`train` says what differs); without training, whether it is measured."""
    if one.method.config is None:
        return any(one.folder.glob("*.json"))
    try:
        config = configs.from_json((one.folder / "config.json").read_text())
    except (OSError, ValueError, InputError):
        return False
    return Path(one.spec).exists() and config == _config(one)


def _distinct(ready: list[Trained]) -> list[Trained]:
    """The first of each label: figures and costs do not depend on seed and recipe."""
    return list({one.method.label: one for one in reversed(ready)}.values())[::-1]


def _columns(methods: list[Trained], source: StackSource, numbers: list[int]) -> Iterator[paper.Column]:
    """The stacks of these numbers with the answer of every method."""
    loaded = [costs.load(one.spec) for one in methods]
    first, *others = (one.method.label for one in methods)
    for number in numbers:
        (batch,) = pipeline.evaluation_batches(source.only([number]), 1)
        frames, focus = jnp.asarray(batch.batch.frames), jnp.asarray(batch.batch.focus)
        ours, *theirs = [costs.infer(one.estimator)(one.variables, frames, focus) for one in loaded]
        depths = {label: np.asarray(one.depth) for label, one in zip(others, theirs, strict=True)}
        yield paper.column(batch.names[0], batch.batch, ours, depths, source.unit, first)


def _of_stack(
    methods: list[Trained], found: dict[Trained, dict[str, dict[str, Any]]], test: str, stack: str, source: StackSource
) -> dict[str, dict[str, Any]]:
    """Label -> metrics of one stack, as the literature measures where it does; without methods that have none."""
    variants = conventions.find(source.convention, source.unit).variants
    region = variants[0].label if variants else "all"
    lines = {one.method.label: found[one][test].get("per_stack", ()) for one in methods}
    wanted = {label: [x for x in of if (x["stack"], x["region"]) == (stack, region)] for label, of in lines.items()}
    return {label: of[0] for label, of in wanted.items() if of}


def _checksum(spec: str) -> str:
    """Of the weights; the config of a method without any."""
    path = Path(spec)
    if path.is_dir():
        path = path / weights.FILE_NAME
    if not path.is_file():
        return configs.to_json(weights.load_estimator(spec).model)
    return hashlib.sha256(path.read_bytes()).hexdigest()
