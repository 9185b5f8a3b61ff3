"""Batch statistics that hold at evaluation: of training stacks at the size of evaluation, with the weights as they are.

Running averages follow the weights late and are those of crops, while bins of pyramid pooling grow with the picture.
Population statistics are the mean and variance over many batches (Wu and Johnson, Rethinking "Batch" in BatchNorm,
2021, section 3). The train state keeps its own running averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dff_jax.config import CameraConfig, Config, DataConfig
from dff_jax.data import pipeline
from dff_jax.data.parts import Wanted
from dff_jax.network.layers import TorchBatchNorm
from dff_jax.runtime.compile import jit
from dff_jax.types import Array, Estimator, Variables

TOGETHER = 4  # stacks; with a batch of one the answers are 20 % worse, of two sometimes still 15 %
FEWEST = 8  # values a channel that a training batch should have where it is normalised


class Population:
    """Replaces the batch statistics of variables by those of `training.statistics` training stacks.

    The stacks are the same ones at each step and in each process. They are shown as an evaluation shows them: whole,
    with all frames (a network with C = Z: `data.frames`), not augmented. Larger ones than the validation stacks are cut
    to their size, or to the median of heights and widths where these are known to differ; RGB-D scenes to `data.crop`,
    as in their evaluation. A batch is TOGETHER stacks of one size, or those that are left of it: the coarsest bin of
    pyramid pooling has one value a stack, which alone is normalised to zero, and with one other to 1 or -1.
    """

    def __init__(self, config: Config, estimator: Estimator, validation: pipeline.StackSource):
        self._config, self._estimator, self._validation = config, estimator, validation
        self._loader: pipeline.Loader | None = None
        self._known: tuple[int, Any] = (-1, None)  # step, batch statistics

    def __call__(
        self, step: int, variables: Variables, stopped: Callable[[], bool] = lambda: False,
        batches: Iterable[tuple[Array, Array]] | None = None,
    ) -> Variables:  # fmt: skip
        """The variables of this step with population statistics; as they are once `stopped`.

        Args:
          batches: what `self.batches` gives, if it is at hand.

        Raises:
          InputError: a stack cannot be read.
        """
        if not self._config.training.statistics or not variables["batch_stats"]:
            return variables
        if self._known[0] != step:
            found = []
            for frames, focus in self.batches() if batches is None else batches:
                found.append(jax.device_get(moments(self._estimator, variables, frames, focus)))
                if stopped():
                    return variables
            self._known = step, combine(found, variables["batch_stats"])
        return {**variables, "batch_stats": self._known[1]}

    def batches(self) -> Iterator[tuple[Array, Array]]:
        """Frames [B,Z,H,W,3] and focus settings [B,Z], B = TOGETHER or fewer."""
        if self._loader is None:
            self._loader = pipeline.training_loader(
                self.data, self._config.seed, fit=True, wanted=Wanted(depth=False)
            )
        self._loader.set_state({"next_index": 0})
        waiting: dict[tuple[int, ...], list[tuple[Array, Array]]] = {}
        with closing(self._loader):
            for _ in range(self._config.training.statistics):
                one = next(self._loader).batch
                alike = waiting.setdefault(one.frames.shape, [])
                alike.append((one.frames, one.focus))
                if len(alike) == TOGETHER:
                    yield jax.tree.map(lambda *x: jnp.concatenate(x), *alike)
                    alike.clear()
        for alike in filter(None, waiting.values()):
            yield jax.tree.map(lambda *x: jnp.concatenate(x), *alike)

    @cached_property
    def data(self) -> DataConfig:
        """Where the stacks come from, and in which form."""
        shapes = self._validation.shapes or [self._validation[0].frames.shape]
        size = tuple(int(n) for n in np.median([shape[1:3] for shape in shapes], 0))
        data, plain = self._config.data, {"flips": False, "colour": 0.0, "noise": 0.0, "camera": CameraConfig()}
        plain |= {"reverse": False, "focus_jitter": 0.0} | ({"frames": None} if self._config.model.any_length else {})

        def shown(part: Any) -> Any:
            crop = part.crop or data.crop if part.source == "rgbd" else size
            return dataclasses.replace(part, crop=crop, **plain)

        return dataclasses.replace(shown(data), batch_size=1, num_workers=0, mixture=tuple(map(shown, data.mixture)))


def inputs_of_norms(estimator: Estimator, variables: Variables, frames: Array, focus: Array) -> dict[str, Array]:
    """What each BatchNorm gets in a training step, [...,c] by the name of its statistics."""
    found: dict[str, Array] = {}

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm | TorchBatchNorm) and context.method_name == "__call__":
            found["/".join(context.module.path)] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        estimator.apply(variables, frames, focus, train=True)
    return found


@partial(jit, static_argnames="estimator")
def moments(estimator: Estimator, variables: Variables, frames: Array, focus: Array) -> dict[str, tuple[Array, Array]]:
    """Mean and (biased) variance [c] of what each BatchNorm gets, by its name."""
    given = inputs_of_norms(estimator, variables, frames, focus)
    values = {name: x.astype(jnp.float32).reshape(-1, x.shape[-1]) for name, x in given.items()}
    return {name: (x.mean(0), x.var(0)) for name, x in values.items()}


def combine(found: list[dict[str, tuple[Array, Array]]], before: Any) -> Any:
    """The batch statistics of all values together, from the moments of batches of one size.

    Args:
      before: the statistics to replace; those of norms that get no values (DWild has idle ones) stay.
    """
    stacked = jax.tree.map(lambda *x: np.stack(x).astype(np.float64), *found)
    whole = {f"{name}/mean": mean.mean(0) for name, (mean, _) in stacked.items()}
    whole |= {f"{name}/var": var.mean(0) + mean.var(0) for name, (mean, var) in stacked.items()}
    now = flatten_dict(before, sep="/") | {name: np.float32(x) for name, x in whole.items()}
    return unflatten_dict(now, sep="/")


def note_small_maps(estimator: Estimator, variables: Variables, batch: tuple[int, ...]) -> str | None:
    """Says which BatchNorms get fewer than FEWEST values a channel from a `batch` (B, Z, H, W, 3); None: none does."""
    stack = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (batch, batch[:2]))
    given = jax.eval_shape(partial(inputs_of_norms, estimator), variables, *stack)
    counts = {name: x.size // x.shape[-1] for name, x in given.items()}
    least = min(counts, key=lambda name: counts[name], default="")
    if not counts or counts[least] >= FEWEST:
        return None
    few = sum(count < FEWEST for count in counts.values())
    return (
        f"note: a batch of {batch[0]} crops of {batch[2]} x {batch[3]} leaves {few} of {len(counts)} BatchNorms fewer "
        f"than {FEWEST} values a channel (the fewest: {counts[least]}, in {least}), which is mostly noise; a larger "
        "data.crop or data.batch_size helps"
    )
