"""What each method costs: parameters, FLOPs, memory and time, timed round-robin in one process.

FLOPs are the compiler's count of the program as written, before it is optimised. Memory is what the compiled program
keeps beside its arguments and results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax import estimators
from dff_jax.config import Method, ModelConfig
from dff_jax.data.parts import StackSource, to_batch
from dff_jax.estimators import weights
from dff_jax.runtime.compile import jit
from dff_jax.runtime.files import machine, staged_output
from dff_jax.runtime.progress import say
from dff_jax.studies.bench import measuring, subjects
from dff_jax.types import Estimator, Prediction

ROUNDS = 3


class Trained(NamedTuple):
    """A method with its weights: trained with one seed, or in no need of training."""

    method: Method
    seed: int | None
    folder: Path  # of its results
    spec: str  # what `weights.load_estimator` takes

    @property
    def name(self) -> str:
        """What to call it in a message."""
        recipe = f", {self.method.recipe}" if self.method.recipe else ""
        return f"{self.method.label}{recipe}" + (f", seed {self.seed}" if self.seed is not None else "")


def stored(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call left in a JSON file, if it was of the same `key`."""
    try:
        before = json.loads(path.read_text())
        return before if before["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(spec: str) -> weights.LoadedEstimator:
    """As `weights.load_estimator`, with one estimator object for equal models, which share compiled programs."""
    loaded = weights.load_estimator(spec)
    return loaded._replace(estimator=_built(loaded.model))


@functools.cache
def _built(model: ModelConfig) -> Estimator:
    return estimators.build(model)


@functools.cache
def infer(estimator: Estimator) -> Callable[..., Prediction]:
    """The jitted (variables, frames, focus) -> Prediction, without its history."""
    return jit(subjects.without_history(estimator))


def measure_all(methods: list[Trained], source: StackSource, path: Path) -> dict[str, Any]:
    """Costs by label; from `path` if it has those of the same methods, else measured and written there.

    Inference is of the first stack of `source`; a training step of the method's own batch and crop.

    Returns:
      {"shape": [Z,H,W], "machine": ..., "methods": {label: {"parameters", "inference_GFLOPs", "inference_s",
      "inference_MB", and for a trained one "step_GFLOPs", "step_s", "step_MB", "step_shape"}}}.
    """
    stack = source[0]
    shape = list(stack.frames.shape[:3])
    key = {"shape": shape, "configs": {one.method.label: repr(one.method) for one in methods}}
    if before := stored(path, key):
        return before
    batch = to_batch([stack])
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[tuple[str, str], Callable[[], None]] = {}
    for one in methods:
        label, config = one.method.label, one.method.config
        say(f"costs of {label}")
        loaded = load(one.spec)
        row = rows[label] = {"parameters": sum(x.size for x in jax.tree.leaves(loaded.variables.get("params", {})))}
        inputs = loaded.variables, *map(jnp.asarray, batch[:2])
        programs: dict[str, tuple[Callable, tuple]] = {"inference": (infer(loaded.estimator), inputs)}
        if config is not None:
            crops = subjects.batch((config.data.batch_size, shape[0], *config.data.crop))
            step, arguments = subjects.training_step(
                loaded.model, crops, loaded.variables, config.loss, config.optimizer, config.training.num_steps
            )
            programs["step"] = jit(step), arguments
            row["step_shape"] = [*crops.frames.shape[:4]]
        for what, (function, arguments) in programs.items():
            program = measuring.compiled(function, *arguments)
            row[f"{what}_GFLOPs"] = measuring.count_gflops(function, *arguments)
            row[f"{what}_MB"] = program.temporary_MB
            runs[label, f"{what}_s"] = program.run(*arguments)
    for (label, what), seconds in measuring.round_robin(runs, ROUNDS).items():
        rows[label][what] = seconds
    result = {"key": key, "shape": shape, "rounds": ROUNDS, "machine": machine(), "methods": rows}
    with staged_output(path.parent, overwrite=True) as staging:
        (staging / path.name).write_text(json.dumps(result, indent=2) + "\n")
    return result
