"""The compiled programs of an evaluation, and batches on their way to the device."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dff_jax import extent, focus_axis
from dff_jax.evaluation import calibration, conventions, metrics
from dff_jax.evaluation.buckets import BucketOf, Size
from dff_jax.evaluation.rows import row_maps
from dff_jax.runtime.compile import jit
from dff_jax.types import Batch, Estimator, LoadedBatch, Prediction, Variables


class Placed(NamedTuple):
    """A batch as the device has it, or will have: copies are made while it computes."""

    loaded: LoadedBatch  # as it came
    batch: Batch  # on the device, padded to its bucket
    size: tuple[np.int32, np.int32] | None  # H, W of the pictures where the bucket is shared; None: all is picture
    split: NamedSharding | None  # over several devices; None: on one


@functools.partial(jit, static_argnames=("estimator", "num_iterations"))
def predict(estimator, variables, frames, focus, size, num_iterations) -> Prediction:
    """What the estimator says of [B,Z,H,W,3], of which `size` is picture, without a trace."""
    with extent.within(size, full=frames.shape[2:4]):
        prediction = estimator.apply(variables, frames, focus, train=False, num_iterations=num_iterations)[0]
    if prediction.history is None:
        return prediction
    return prediction._replace(history=prediction.history._replace(trace=None))  # of no use here, so not computed


@functools.partial(jax.jit, static_argnames=("unit", "convention"))
def measure(prediction, yardsticks, focus, depth, mask, size, unit, convention):
    """Sums, fields [rows,B], of both regions and of each variant of the convention; mean |D - the D before| over
    valid pixels [stages-1,B], in `unit`; and the histogram of `calibration`."""
    low, high = focus[:, 0, None, None], focus[:, -1, None, None]
    in_range = (depth >= low) & (depth <= high)
    truth = focus_axis.from_q(depth, unit)
    maps = focus_axis.from_q(jnp.stack(row_maps(prediction, yardsticks)), unit)
    ends = jnp.sort(focus_axis.from_q(jnp.stack([focus[:, 0], focus[:, -1]], 1), unit), axis=1)

    def of_row(one):
        return *metrics.measure(one, truth, mask, in_range), *conventions.measure(one, truth, mask, ends, convention)

    with extent.within(size, full=depth.shape[1:]):
        regions = jax.lax.map(of_row, maps)  # one after the other: a row's temporaries are several maps large
    confident = calibration.histogram(prediction.confidence, prediction.depth, depth, mask, focus)
    if prediction.history is None:
        return regions, None, confident
    h = prediction.history
    stages = focus_axis.from_q(jnp.concatenate([h.iterates, h.refined], axis=1), unit)
    changes = jax.vmap(metrics.mean_over, (1, None))(jnp.abs(stages[:, 1:] - stages[:, :-1]), mask)
    return regions, changes, confident


class Task(NamedTuple):
    """One method, to be run on every batch."""

    estimator: Estimator
    variables: Variables
    num_iterations: int | None

    def arguments(self, placed: Placed) -> tuple[Any, ...]:
        """Of `predict`."""
        return self.estimator, self.variables, placed.batch.frames, placed.batch.focus, placed.size, self.num_iterations


class Compiler:
    """Compiles what a batch needs before it runs, so that no run's time includes it.

    The programs are JAX's to keep: what was compiled for an earlier evaluation with the same estimator object is not
    compiled again.
    """

    def __init__(self, tasks: Sequence[Task], unit: str, convention: conventions.Convention):
        self.tasks, self.unit, self.convention = tasks, unit, convention
        self.seconds = 0.0
        self._ready: set[Any] = set()

    def prepare(self, placed: Placed, answers: Sequence[int]) -> None:
        """Compiles for batches of this kind, unless done.

        Args:
          answers: for each row of `measure` that is a method, the number of its task.
        """
        key = placed.batch.frames.shape, placed.size is None
        if key in self._ready:
            return
        start = time.perf_counter()
        found = []
        for task in self.tasks:
            lowered = predict.lower(*task.arguments(placed))
            lowered.compile()
            found.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info))
        first, *others = (found[i] for i in answers)
        self.measuring(placed, first, [one.depth for one in others], measure.lower).compile()
        self._ready.add(key)
        self.seconds += time.perf_counter() - start

    def measuring(self, placed: Placed, prediction, yardsticks, how=measure):
        """`how`, which is `measure`, of this batch."""
        batch = placed.batch
        return how(
            prediction, yardsticks, batch.focus, batch.depth, batch.mask, placed.size, self.unit, self.convention
        )

    @property
    def programs(self) -> int:
        """How many kinds of batches there were, so programs of each method."""
        return len(self._ready)


def place(loaded: LoadedBatch, bucket_of: BucketOf) -> Placed:
    """The batch padded to its bucket, its copy to the device begun."""
    batch = loaded.batch
    shape = batch.frames.shape[1:4]
    bucket = bucket_of(shape)
    missing = [have - has for have, has in zip(bucket.size, shape[1:], strict=True)]
    if any(missing):
        below, right = ((0, n) for n in missing)
        batch = Batch(
            np.pad(batch.frames, ((0, 0), (0, 0), below, right, (0, 0))), batch.focus,
            *(np.pad(x, ((0, 0), below, right)) for x in (batch.depth, batch.mask)),
        )  # fmt: skip
    split = _split_over_devices(len(batch.mask))
    size = tuple(map(np.int32, shape[1:])) if bucket.shared else None
    return Placed(loaded, jax.device_put(batch, split), size, split)


@functools.cache
def _split_over_devices(stacks: int) -> NamedSharding | None:
    devices = jax.local_devices()
    if len(devices) == 1 or stacks % len(devices):
        return None
    return NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))


def placed_ahead(batches: Iterable[LoadedBatch], bucket_of: BucketOf) -> Iterator[Placed]:
    """Each batch placed, when the next one is on its way to the device as well."""
    before = None
    for loaded in batches:
        now = place(loaded, bucket_of)
        if before is not None:
            yield before
        before = now
    if before is not None:
        yield before


def cropped(prediction: Prediction, placed: Placed) -> Prediction:
    """The prediction for the batch as it came, on the device."""
    size = placed.loaded.batch.mask.shape[1:]
    return prediction if prediction.depth.shape[1:] == size else _crop(prediction, size)


@functools.partial(jax.jit, static_argnames="size")
def _crop(prediction: Prediction, size: Size) -> Prediction:
    maps = lambda x: x[..., : size[0], : size[1]]  # noqa: E731
    with_channels = lambda x: x[:, : size[0], : size[1]]  # noqa: E731
    h = prediction.history
    if h is not None:
        h = h._replace(
            expected=maps(h.expected), candidates=with_channels(h.candidates), weights=with_channels(h.weights),
            iterates=maps(h.iterates), refined=maps(h.refined),
        )  # fmt: skip
    return Prediction(
        maps(prediction.depth), maps(prediction.confidence), maps(prediction.disagreement),
        with_channels(prediction.all_in_focus), h,
        None if prediction.scales is None else with_channels(prediction.scales),
    )  # fmt: skip
