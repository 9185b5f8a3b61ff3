"""The compiled programs of an evaluation, and the way of a batch to the device. One image size is one program."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dff_jax import focus_axis
from dff_jax.evaluation import calibration, conventions, images, metrics
from dff_jax.evaluation.rows import row_maps
from dff_jax.runtime.compile import jit
from dff_jax.types import Array, Batch, Estimator, LoadedBatch, Prediction, Variables


@functools.partial(jit, static_argnames=("estimator", "num_iterations"))
def predict(
    estimator: Estimator, variables: Variables, frames: Array, focus: Array, num_iterations: int | None
) -> Prediction:
    """The estimator's answer for frames [B,Z,H,W,3] and focus settings [B,Z], without a trace."""
    prediction = estimator.apply(variables, frames, focus, train=False, num_iterations=num_iterations)[0]
    if prediction.history is None:
        return prediction
    return prediction._replace(history=prediction.history._replace(trace=None))  # not read, so not computed


@functools.partial(jax.jit, static_argnames=("unit", "convention"))
def measure(
    prediction: Prediction, baselines: Sequence[Array], batch: Batch, unit: str, convention: conventions.Convention
) -> tuple[tuple[metrics.Sums, ...], Array | None, Array]:
    """Measures every row on a batch.

    Args:
      baselines: the depths [B,H,W] in q of `rows.BASELINES`, or none.

    Returns:
      Sums with fields [rows,B] of both regions and of each variant of the convention; mean |D - the D before| over
      valid pixels [stages-1,B] in `unit`, None without stages; the histogram of `calibration`.
    """
    focus, depth, mask = batch.focus, batch.depth, batch.mask
    low, high = focus[:, 0, None, None], focus[:, -1, None, None]
    in_range = (depth >= low) & (depth <= high)
    rows = jnp.stack([focus_axis.short_of_infinity(q, focus, unit) for q in row_maps(prediction, baselines).values()])
    truth, maps, ends = (jnp.asarray(focus_axis.from_q(x, unit)) for x in (depth, rows, focus[:, jnp.array([0, -1])]))
    ends = jnp.sort(ends, axis=1)

    def of_row(one: Array) -> tuple[metrics.Sums, ...]:
        return *metrics.measure(one, truth, mask, in_range), *conventions.measure(one, truth, mask, ends, convention)

    sums = jax.lax.map(of_row, maps)  # one after the other: a row's temporaries are several maps large
    confident = calibration.histogram(prediction.confidence, prediction.depth, depth, mask, focus)
    if prediction.history is None:
        return sums, None, confident
    h = prediction.history
    stages = focus_axis.short_of_infinity(jnp.concatenate([h.iterates, h.refined], axis=1), focus, unit)
    stages = focus_axis.from_q(stages, unit)
    changes = jax.vmap(metrics.mean_over, (1, None))(jnp.abs(stages[:, 1:] - stages[:, :-1]), mask)
    return sums, changes, confident


class Task(NamedTuple):
    """One method, to be run on every batch."""

    estimator: Estimator
    variables: Variables = {}
    num_iterations: int | None = None  # K of the unroll; None: as configured

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """The arguments of `predict`."""
        return self.estimator, self.variables, batch.frames, batch.focus, self.num_iterations


def compile_for(
    batch: Batch, tasks: Sequence[Task], baselines: Sequence[int], unit: str, convention: conventions.Convention
) -> None:
    """Compiles all that a batch of this shape runs. JAX keeps the programs for every later evaluation.

    Args:
      baselines: the number of the task that answers for each of `rows.BASELINES`, or none.
    """
    found = []
    for task in tasks:
        lowered = predict.lower(*task.arguments(batch))
        lowered.compile()
        found.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info))
    measure.lower(found[0], [found[i].depth for i in baselines], batch, unit, convention).compile()
    if batch.all_in_focus is not None:
        images.measure.lower([found[i].all_in_focus for i in (0, *baselines)], batch.all_in_focus).compile()


def split_over_devices(stacks: int) -> NamedSharding | None:
    """How a batch of so many stacks lies on the devices of this process; None: on one, as it does not divide."""
    devices = jax.local_devices()
    if len(devices) == 1 or stacks % len(devices):
        return None
    return NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))


def placed(batches: Iterable[LoadedBatch]) -> Iterator[tuple[LoadedBatch, Batch]]:
    """Each batch as it came and on the device; the copy of the next one is begun before."""
    before = None
    for loaded in batches:
        now = loaded, jax.device_put(loaded.batch, split_over_devices(len(loaded.names)))
        if before is not None:
            yield before
        before = now
    if before is not None:
        yield before
