"""`dff-jax compare`: trains what is to be trained, measures all on all, writes tables and pictures.

Each step leaves its result in a file, and a step whose result is there is not repeated:

    <output>/<entrant>/seed<n>/            a run folder of `training.loop`
    <output>/<entrant>/seed<n>/<test>.json what `measure` found, with the checksum of the weights
    <output>/costs.json                    parameters, FLOPs, memory and times, all methods in turn
    <output>/table.md, table.json, per_stack.csv, figure.png
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dff_jax import config as configs
from dff_jax.config import Comparison, Method
from dff_jax.data import pipeline
from dff_jax.data.parts import StackSource
from dff_jax.errors import ConfigError, InputError
from dff_jax.estimators import weights
from dff_jax.evaluation import conventions, paper_figures
from dff_jax.evaluation.evaluate import evaluated
from dff_jax.evaluation.rows import gather
from dff_jax.evaluation.tables import finite
from dff_jax.runtime.files import check_output, staged_output
from dff_jax.runtime.progress import ProgressBar, say
from dff_jax.studies import compare_report as report
from dff_jax.studies import costs
from dff_jax.studies.costs import Trained

VERSION = 1
"""Of the files that `measure` leaves: raise it when what they hold changes."""


def compare(comparison: Comparison, output: str | Path, *, only: list[str] | None = None) -> dict[str, Any] | None:
    """Trains, measures and writes; repeated after an interruption, it goes on where it was.

    Args:
      comparison: who takes part and what on.
      output: folder of the runs, tables and pictures.
      only: labels or folder names of the entrants to take; None: all. Others stay in the tables if they are done.

    Returns:
      The contents of `table.json`; None if interrupted in a training, which is then saved.

    Raises:
      InputError: as `training.loop.train`; a wrong name in `only`; a folder that holds another comparison's runs.
      TrainingDiverged: names the entrant's run.
    """
    output = Path(output)
    comparison = _restricted(comparison, only, output)
    check_output(output, report.FILES)
    main, notes = pipeline.open_data(comparison.test), []
    sets = {comparison.test.name: main}
    for test in comparison.zero_shot:
        try:
            sets[test.name] = pipeline.open_data(test)
        except InputError as error:
            notes.append(f"{test.name}: left out, {error}")
            say(f"note: {notes[-1]}")
    field = []
    for entrant in comparison.methods:
        for seed in comparison.seeds if entrant.config is not None else (None,):
            ready = _train(entrant, seed, output)
            if ready is None:
                return None
            field.append(ready)
    limits = {test.name: test.limit for test in (comparison.test, *comparison.zero_shot)}
    found = {one: {name: measure(one, name, sets[name], limits[name]) for name in sets} for one in field}
    spent = costs.measure_all(_distinct(field), main, output / "costs.json")
    table = report.table(comparison, found, spent, notes)
    with staged_output(output, last="table.json") as staging:
        report.write(staging, table, found)
        columns = list(_columns(_distinct(field), main, comparison))
        report.draw(staging, columns, comparison.test.name)
    return table


def measure(one: Trained, test: str, source: StackSource, limit: int | None) -> dict[str, Any]:
    """Metrics of every row of one method on one set of stacks, from its file if that is of the same weights.

    Returns:
      `rows` (as `evaluation.rows.Evaluation`), `per_stack` (of the answer) and `literature`; or, of a method that
      cannot take these stacks, `refused`, which says why.
    """
    path = one.folder / f"{re.sub(r'[^a-z0-9]+', '-', test.lower()).strip('-')}.json"
    key = {"version": VERSION, "weights": _checksum(one.spec), "data": source.describe, "limit": limit}
    if before := costs.stored(path, key):
        return before
    say(f"measuring {one.name} on {test}")
    loaded = costs.load(one.spec)
    result: dict[str, Any] = {"key": key, "unit": source.unit}
    try:
        weights.check_frames(loaded, len(source[0].focus))
    except InputError as error:
        result["refused"] = str(error)
    else:
        convention = conventions.find(source.convention, source.unit)
        batches, parts = pipeline.evaluation_batches(source, 1, limit), []
        with ProgressBar("evaluate", min(len(source), limit or len(source))) as bar:
            for measured, _, _ in evaluated(
                loaded.estimator, loaded.variables, batches, unit=source.unit, baselines=False, convention=convention
            ):
                parts.append(measured)
                bar.advance(measured.count)
        answer = gather(parts, source.unit, convention)
        final = [line for line in answer.per_stack if line["row"] == "final"]
        result |= {"rows": answer.rows, "per_stack": final, "literature": answer.literature}
    result = finite(result)
    with staged_output(path.parent) as staging:
        (staging / path.name).write_text(json.dumps(result, allow_nan=False) + "\n")
    return result


def _restricted(comparison: Comparison, only: list[str] | None, output: Path) -> Comparison:
    """With the entrants asked for, and those that are done in `output`."""
    if not only:
        return comparison
    done = [
        e for e in comparison.methods
        if all(_ready(e, seed, output) for seed in (comparison.seeds if e.config is not None else (None,)))
    ]  # fmt: skip
    kept = tuple(e for e in comparison.methods if e.label in only or e.folder in only or e in done)
    known = {name for e in comparison.methods for name in (e.label, e.folder)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(f"--only: no method is called {unknown[0]!r}; choose of {', '.join(sorted(known))}")
    labels = {e.label for e in kept}
    ratio = comparison.ratio if comparison.ratio and labels.issuperset(comparison.ratio) else None
    return dataclasses.replace(comparison, methods=kept, ratio=ratio)


def _train(entrant: Method, seed: int | None, output: Path) -> Trained | None:
    """The entrant with its weights; None if the training was interrupted."""
    one = _place(entrant, seed, output)
    if entrant.config is not None and not _ready(entrant, seed, output):
        from dff_jax.training.loop import train

        say(f"training {one.name}")
        if train(_seeded(entrant, seed), one.folder)["interrupted"]:
            return None
    return one


def _place(entrant: Method, seed: int | None, output: Path) -> Trained:
    folder = output / entrant.folder
    if entrant.config is None:
        return Trained(entrant, None, folder, entrant.weights)
    run = folder / f"seed{seed}"
    return Trained(entrant, seed, run, str(run / "weights_last.safetensors"))


def _seeded(entrant: Method, seed: int) -> configs.Config:
    return dataclasses.replace(entrant.config, name=entrant.folder, seed=seed)


def _ready(entrant: Method, seed: int | None, output: Path) -> bool:
    """Whether it is trained, by this config (of another, `train` says what differs); without training, measured."""
    one = _place(entrant, seed, output)
    if entrant.config is None:
        return any(one.folder.glob("*.json"))
    try:
        config = configs.from_json((one.folder / "config.json").read_text())
    except (OSError, ValueError, InputError):
        return False
    return Path(one.spec).exists() and config == _seeded(entrant, seed)


def _distinct(field: list[Trained]) -> list[Trained]:
    """One of each label: pictures and costs do not depend on seed and recipe."""
    return list({one.method.label: one for one in reversed(field)}.values())[::-1]


def _columns(field: list[Trained], source: StackSource, comparison: Comparison) -> Iterator[paper_figures.Column]:
    length = min(len(source), comparison.test.limit or len(source))
    numbers = sorted({int(x) for x in np.linspace(0, length - 1, min(comparison.figure_stacks, length)).round()})
    few = dataclasses.replace(source, length=len(numbers), read=lambda i: source.read(numbers[i]))
    loaded = [costs.load(one.spec) for one in field]
    for batch in pipeline.evaluation_batches(few, 1):
        frames, focus = jnp.asarray(batch.batch.frames), jnp.asarray(batch.batch.focus)
        predictions = [costs.infer(x.estimator)(x.variables, frames, focus) for x in loaded]
        (first, *_), labels = predictions, [one.method.label for one in field]
        others = {label: np.asarray(p.depth) for label, p in zip(labels[1:], predictions[1:], strict=True)}
        first = first._replace(all_in_focus=np.asarray(first.all_in_focus))
        yield paper_figures.column(batch.names[0], batch.batch, first, others, source.unit, labels[0])


def _checksum(spec: str) -> str:
    """Of the weights, or of a method without."""
    path = Path(spec)
    if path.is_dir():
        path = path / weights.FILE_NAME
    if not path.is_file():
        return configs.to_json(weights.load_estimator(spec).model)
    return hashlib.sha256(path.read_bytes()).hexdigest()
