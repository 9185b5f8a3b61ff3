"""What each method costs: parameters, FLOPs, memory and time, measured in turn in one process.

Times are medians over rounds in which each method has its turn, so that a machine that slows down slows all. FLOPs
are the compiler's count of the program as written, before it is optimised; memory is what the compiled program keeps
beside its arguments and results.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import estimators
from dff_jax.config import Config, ModelConfig
from dff_jax.data.parts import StackSource, to_batch
from dff_jax.errors import InputError
from dff_jax.estimators import weights
from dff_jax.evaluation.tables import machine
from dff_jax.runtime.compile import jit
from dff_jax.runtime.progress import say
from dff_jax.studies.bench import measuring
from dff_jax.training import optimizer
from dff_jax.training.state import TrainState
from dff_jax.training.step import make_update
from dff_jax.types import Batch, Estimator, Prediction

if TYPE_CHECKING:
    from dff_jax.studies.compare import Trained

ROUNDS = 3


def kept(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call left in a JSON file, if it was of the same `key`."""
    try:
        before = json.loads(path.read_text())
        return before if before["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(spec: str) -> weights.LoadedEstimator:
    """As `weights.load_estimator`, with one estimator object for equal models: seeds and recipes share what is
    compiled."""
    loaded = weights.load_estimator(spec)
    return loaded._replace(estimator=_built(loaded.model))


@functools.lru_cache(maxsize=64)
def _built(model: ModelConfig) -> Estimator:
    return estimators.build(model)


@functools.lru_cache(maxsize=64)
def infer(estimator: Estimator) -> Callable[..., Prediction]:
    """The jitted (variables, frames, focus) -> Prediction, without its history."""
    return jit(measuring.without_history(estimator))


def measure_all(field: list[Trained], source: StackSource, path: Path) -> dict[str, Any]:
    """Costs by label, from `path` if it has those of the same methods, and then kept there.

    Inference is of the first stack of `source`, alone; a training step of the entrant's own batch and crop.

    Returns:
      {"shape": [Z,H,W], "machine": ..., "methods": {label: {"parameters", "inference_GFLOPs", "inference_s",
      "inference_MB", and for a trained one "step_GFLOPs", "step_s", "step_MB", "step_shape"}}}.
    """
    stack = source[0]
    shape = list(stack.frames.shape[:3])
    key = {"shape": shape, "configs": {one.entrant.label: repr(one.entrant) for one in field}}
    if before := kept(path, key):
        return before
    batch = to_batch([stack])
    methods: dict[str, dict[str, Any]] = {}
    turns: dict[tuple[str, str], Callable[[], None]] = {}
    for one in field:
        label = one.entrant.label
        say(f"costs of {label}")
        loaded = load(one.spec)
        row = {"parameters": sum(x.size for x in jax.tree.leaves(loaded.variables.get("params", {})))}
        arguments = loaded.variables, jnp.asarray(batch.frames), jnp.asarray(batch.focus)
        turns[label, "inference_s"] = _compiled(infer(loaded.estimator), arguments, row, "inference")
        if one.entrant.config is not None:
            step, arguments = _step(one.entrant.config, loaded, batch)
            turns[label, "step_s"] = _compiled(step, arguments, row, "step")
            row["step_shape"] = [*arguments[1].frames.shape[:4]]
        methods[label] = row
    for (label, what), times in measuring.in_turns(turns, ROUNDS).items():
        methods[label][what] = statistics.median(times)
    result = {"key": key, "shape": shape, "rounds": ROUNDS, "machine": machine(), "methods": methods}
    try:
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    return result


def _compiled(function: Callable, arguments: tuple, row: dict[str, Any], what: str) -> Callable[[], None]:
    """Compiles, notes FLOPs and memory, warms up; returns a call that waits for its end."""
    program = measuring.compiled(function, *arguments)
    row |= {f"{what}_GFLOPs": program.gflops, f"{what}_MB": program.temporary_MB}
    return program.run


def _step(config: Config, loaded: weights.LoadedEstimator, stack: Batch) -> tuple[Callable, tuple[TrainState, Batch]]:
    """The jitted update and arguments of the entrant's own batch and crop, filled with the first stack."""
    tx = optimizer.build(config.optimizer, config.training.num_steps)
    update = jit(make_update(loaded.estimator, tx, config.loss, config.model.coordinate))
    height, width = config.data.crop
    down, across = (np.arange(n) % size for n, size in zip((height, width), stack.depth.shape[1:], strict=True))

    def cut(x, first):
        x = np.take(np.take(np.asarray(x), down, first), across, first + 1)
        return jnp.asarray(np.repeat(x, config.data.batch_size, 0))

    batch = Batch(
        cut(stack.frames, 2), jnp.repeat(jnp.asarray(stack.focus), config.data.batch_size, 0), cut(stack.depth, 1),
        cut(stack.mask, 1),
    )  # fmt: skip
    params = loaded.variables["params"]
    state = TrainState(
        jnp.int32(0), params, loaded.variables.get("batch_stats", {}), tx.init(params), jnp.int32(-1)
    )
    return update, (state, batch)
