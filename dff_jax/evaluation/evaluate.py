"""The evaluation loop: every stage of an estimator on every stack, measured in the unit of the data."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config, estimators, focus_axis
from dff_jax.errors import InputError
from dff_jax.evaluation import metrics, tables
from dff_jax.evaluation.rows import YARDSTICKS, Evaluation, gather, row_maps, row_names
from dff_jax.output import check_output, staged_output
from dff_jax.types import Estimator, LoadedBatch, Prediction, Variables

OnBatch = Callable[[int, LoadedBatch, Prediction], None]  # stacks done, the batch, what was predicted for it


@functools.partial(jax.jit, static_argnames=("estimator", "num_iterations"))
def _predict(estimator, variables, frames, focus, num_iterations) -> Prediction:
    prediction = estimator.apply(variables, frames, focus, train=False, num_iterations=num_iterations)[0]
    if prediction.history is None:
        return prediction
    return prediction._replace(history=prediction.history._replace(trace=None))  # of no use here, so not computed


@functools.partial(jax.jit, static_argnames="unit")
def _measure(prediction, yardsticks, focus, depth, mask, unit):
    """Regions of Sums, fields [rows,B]; mean |D - the D before| over valid pixels [stages-1,B], in `unit`."""
    low, high = focus[:, 0, None, None], focus[:, -1, None, None]
    in_range = (depth >= low) & (depth <= high)
    truth = focus_axis.from_q(depth, unit)
    maps = focus_axis.from_q(jnp.stack(row_maps(prediction, yardsticks)), unit)
    # one row after the other: a row's temporaries are several maps large
    regions = jax.lax.map(lambda one: metrics.measure(one, truth, mask, in_range), maps)
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
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Evaluates every row (see `rows`) on every stack.

    Compiles once for each shape of batch, also over repeated calls with the same estimator object.

    Args:
      batches: stacks in q, padding stacks named "" (`data.pipeline.evaluation_batches`).
      unit: of the data; metrics are computed in it.
      num_iterations: K of the unroll; None: as configured.
      yardstick: adds the rows `classical` and `sml`.
      on_batch: called after each batch with the number of stacks done, the batch and its Prediction.

    Raises:
      InputError: no stack, or none with ground truth.
    """
    focus_axis.check_unit(unit)
    clock, yardstick_clocks = _Clock(), {name: _Clock() for name in YARDSTICKS}
    start, done = time.perf_counter(), 0
    stacks: list[str] = []
    excluded: list[str] = []
    names: list[str] = []
    parts: list[metrics.Regions] = []
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
        found = _measure(prediction, yardsticks, focus, batch.depth, batch.mask, unit)
        regions, change = jax.device_get(found)  # the one transfer of this batch
        names = row_names(prediction.history, yardstick)
        keep = np.array([bool(name) for name in loaded.names]) & (regions.all.pixels[0] > 0)
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
    return gather(names, parts, changes, stacks, excluded, unit, seconds)


class _Clock:
    """Time per stack of one method, without the first call of each shape, which compiles, if possible."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, float, int]] = []  # first of its shape, seconds, stacks
        self._shapes: set[tuple[int, ...]] = set()

    def time(self, shape: tuple[int, ...], function: Callable, *args: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        self.calls.append((shape not in self._shapes, time.perf_counter() - start, shape[0]))
        self._shapes.add(shape)
        return result

    def only_first_calls(self) -> bool:
        return all(first for first, _, _ in self.calls)

    def per_stack(self) -> float:
        counted = self.calls if self.only_first_calls() else [call for call in self.calls if not call[0]]
        return sum(seconds for _, seconds, _ in counted) / sum(stacks for _, _, stacks in counted)


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
) -> dict[str, Any]:
    """Evaluates and writes `metrics.json`, `per_stack.csv`, `table.md` and `figures/*.png` into `output`.

    Args:
      spec: "classical", "sml", a weights file, or a run folder.
      dataset, source: exactly one: the name of a tfds dataset, or a folder of stacks like FlyingThings3D's.
      unit: of the focus settings and depth of `source`; None: disparity.
      split: of the dataset.
      iterations: K of the unroll; None: as trained.
      limit: evaluates only the first so many stacks.

    Returns:
      The contents of `metrics.json`.

    Raises:
      InputError: wrong arguments, unreadable data or weights, or an output folder that cannot be written.
        Nothing is left in `output` then.
    """
    if (dataset is None) == (source is None):
        raise InputError("evaluate: give exactly one of --dataset NAME and --source DIR")
    smallest = {"--iterations": (iterations, 0), "--batch-size": (batch_size, 1), "--limit": (limit, 1)}
    for name, (value, least) in smallest.items():
        if value is not None and value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")
    from dff_jax.data import pipeline
    from dff_jax.estimators import weights
    from dff_jax.evaluation import figures

    loaded = weights.load_estimator(spec)
    method = loaded.model.method
    estimator = _yardstick(method) if method in YARDSTICKS else loaded.estimator
    data = pipeline.open_named(dataset, source, unit, split, data_dir)

    def batches() -> Iterator[LoadedBatch]:
        for batch in pipeline.evaluation_batches(data, batch_size, limit):
            weights.check_frames(loaded, batch.batch.frames.shape[1])
            yield batch

    pictures = Path(output) / "figures"
    check_output(output, tables.FILES)
    check_output(pictures, figures.FILES)
    with _progress(min(len(data), limit or len(data))) as on_batch:
        evaluation = evaluate(
            estimator,
            loaded.variables,
            batches(),
            unit=data.unit,
            num_iterations=iterations,
            on_batch=on_batch,
        )
    report = tables.report(
        evaluation,
        spec=str(spec),
        label=loaded.label,
        model=config.to_dict(loaded.model),
        dataset=data.name,
        unit=data.unit,
        iterations=_iterations(loaded.model, iterations),
    )
    wanted = figures.choose(evaluation)
    shown = _predictions(estimator, loaded.variables, batches(), iterations, set(wanted))
    with staged_output(output, last="metrics.json") as staging, staged_output(pictures) as drawn:
        tables.write(staging, report, evaluation.per_stack)
        figures.write(drawn, evaluation, wanted, shown)
        stale = set(figures.FILES) - {path.name for path in drawn.iterdir()}
    for name in stale:  # of an earlier evaluation, of more stacks
        (pictures / name).unlink(missing_ok=True)
    return report


def _iterations(model: config.ModelConfig, asked: int | None) -> int | None:
    if model.method == "sml":
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
        batch, here = loaded.batch, []
        for i, name in enumerate(loaded.names):
            if name and np.asarray(batch.mask[i]).any():
                here += [(position, i)] if position in wanted else []
                position += 1
        if here:
            prediction = _predict(estimator, variables, batch.frames, batch.focus, num_iterations)
            if prediction.history is not None:  # the trace has other axes first, and no figure
                prediction = prediction._replace(history=prediction.history._replace(trace=None))
            depths = [_predict(_yardstick(name), {}, batch.frames, batch.focus, None).depth for name in YARDSTICKS]
            on_host = jax.device_get((batch, prediction, depths))
            for at, i in here:
                yield at, *jax.tree.map(lambda x, i=i: x[i : i + 1], on_host)
        if position > max(wanted):
            return


@contextmanager
def _progress(total: int) -> Iterator[OnBatch]:
    """A bar on a terminal, else a line about every ten seconds, with what is done and the time left."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        with tqdm(total=total, unit="stack", desc="evaluate") as bar:
            yield lambda done, loaded, prediction: bar.update(done - bar.n)
        return
    start = last = time.monotonic()

    def line(done: int, loaded: LoadedBatch, prediction: Prediction) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 or done == total:
            left = math.ceil((now - start) / done * (total - done))
            print(f"evaluate: {done}/{total} stacks, {left} s left", file=sys.stderr, flush=True)
            last = now

    yield line
