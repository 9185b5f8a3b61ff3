"""Evaluation while training: metrics and images of the held-out stacks, and the weights to keep."""

from __future__ import annotations

import math
import shlex
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dff_jax import config as configs
from dff_jax.config import Config
from dff_jax.data import pipeline
from dff_jax.errors import ConfigError
from dff_jax.estimators import weights
from dff_jax.evaluation import images
from dff_jax.evaluation.evaluate import evaluated
from dff_jax.evaluation.metrics import Sums
from dff_jax.evaluation.rows import Evaluation, Measured, gather
from dff_jax.focus_axis import from_q
from dff_jax.runtime import processes
from dff_jax.runtime.progress import ProgressBar, say
from dff_jax.training.checkpoint import Progress
from dff_jax.training.logging import Writer
from dff_jax.training.statistics import Population
from dff_jax.types import Estimator, Variables

BEST_WEIGHTS = weights.FILE_NAME
LAST_WEIGHTS = "weights_last.safetensors"


def open_sources(config: Config) -> dict[str, pipeline.StackSource]:
    """The stacks to evaluate on: "validation", and "transfer" if wanted.

    Raises:
      ConfigError: no ground truth, which an evaluation needs also where training does not; as `check_unit`.
      InputError: as `pipeline.open_source`.
    """
    sources = {"validation": pipeline.open_source(config.data, "validation")}
    if (transfer := config.training.transfer) is not None:
        sources["transfer"] = pipeline.open_data(configs.DataSpec(source=transfer, unit=config.data.unit))
    for source in sources.values():
        config.model.check_unit(source.unit)
        if not source.has_truth:
            raise ConfigError(
                f"data.dataset: {source.name} has no ground truth, by which the best weights are chosen; give the "
                "validation split of a few stacks with disp.* or depth.*"
            )
    return sources


class Validator(NamedTuple):
    """Everything that evaluations of a run have in common."""

    config: Config
    output: Path
    estimator: Estimator
    sources: Mapping[str, pipeline.StackSource]  # "validation", and "transfer" if wanted
    writers: list[Writer]
    num_frames: int
    population: Population

    def run(
        self, step: int, variables: Variables, progress: Progress, bar: ProgressBar, asked: threading.Event
    ) -> Progress:
        """Evaluates, logs, and exports the weights if they are the best so far; each process its share of the stacks.

        Returns:
          The new progress. If `asked` was set meanwhile in any process, the old one: the evaluation is not done.
        """
        began = time.perf_counter()
        variables = self.population(step, variables, asked.is_set)
        found: dict[str, Evaluation] = {}
        shown: dict[str, dict[str, np.ndarray]] = {}
        constant: dict[str, float] = {}
        share = jax.process_index(), jax.process_count()
        data = self.config.data
        for name, source in self.sources.items():
            batches = pipeline.evaluation_batches(source, data.eval_batch_size, data.eval_limit, share)
            parts: list[Measured] = []
            middles: list[float] = []
            for measured, loaded, prediction in evaluated(
                self.estimator, variables, batches, unit=source.unit, baselines=False
            ):
                parts.append(measured)
                middles += errors_of_middle(loaded.batch, source.unit)
                if name not in shown and len(self.writers) > 1:  # the first writes no pictures
                    shown[name] = draw(*jax.device_get((loaded.batch, prediction.depth)))
                if asked.is_set():
                    break
            everywhere = processes.gather((asked.is_set(), parts, middles))
            if any(stopped for stopped, *_ in everywhere):
                return progress
            found[name] = gather([_rebuilt(part) for _, theirs, _ in everywhere for part in theirs], source.unit)
            constant[name] = float(np.mean([error for *_, theirs in everywhere for error in theirs]))
        for name, evaluation in found.items():
            values = flatten(evaluation) | {"seconds": evaluation.seconds["total"], "MAE/constant": constant[name]}
            for writer in self.writers:
                writer.scalars(step, name, values)
                writer.images(step, name, shown.get(name, {}))
        mae = found["validation"].rows["final"]["MAE"]
        mae = float(mae) if mae is not None and math.isfinite(mae) else math.inf
        text = "  ".join(in_words(name, e, constant[name]) for name, e in found.items())
        if mae < progress.best_mae:
            progress = progress._replace(best_step=step, best_mae=mae)
            self._export(BEST_WEIGHTS, step, variables, {"MAE": mae})
            text += "  (best so far)"
        bar.say(f"step {step}: MAE of {text}, in {time.perf_counter() - began:.1f} s")
        return progress._replace(evaluated=step)

    def export_last(self, step: int, variables: Variables) -> None:
        """Writes the weights of the last step, beside the best."""
        self._export(LAST_WEIGHTS, step, self.population(step, variables), {})

    def _export(self, name: str, step: int, variables: Variables, metric: dict[str, float]) -> None:
        if jax.process_index() != 0:
            return
        source = self.sources["validation"]
        info = {
            "name": self.config.name,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "config": configs.to_dict(self.config),
            "step": step,
            "metric": metric,
            "data": source.name,
            "unit": source.unit,
            "num_frames": self.num_frames,
        }
        model = self.config.model
        try:
            weights.save_weights(self.output / name, model, jax.device_get(variables), info)
        except ImportError:
            say(f"safetensors is not installed: no {name}; the checkpoints hold the weights")


def _rebuilt(part: Sequence[Any]) -> Measured:
    """A `Measured` of what `processes.gather` hands on, in which tuples and arrays may have become lists."""
    one = Measured(*part)
    return one._replace(
        sums=tuple(Sums(*map(np.asarray, sums)) for sums in one.sums),
        changes=None if one.changes is None else np.asarray(one.changes),
        confidence=np.asarray(one.confidence), shape=tuple(one.shape),
        images=None if one.images is None else np.asarray(one.images),
    )  # fmt: skip


def errors_of_middle(batch: Any, unit: str) -> list[float]:
    """MAE of each stack of a batch, in `unit`, of the middle of its focus range everywhere: the least to be beaten."""
    focus, depth, mask = (np.asarray(x) for x in (batch.focus, batch.depth, batch.mask))
    middle = from_q(focus[:, [0, -1]].mean(-1), unit)[:, None, None]
    error = np.where(mask, np.abs(from_q(np.where(mask, depth, 1.0), unit) - middle), 0.0)
    return [float(e.sum() / m.sum()) for e, m in zip(error, mask, strict=True) if m.any()]


def in_words(name: str, evaluation: Evaluation, constant: float) -> str:
    """The MAE of the answer, of the stages on the way to it, and of the middle of the focus range."""
    rows = {row: x["MAE"] for row, x in evaluation.rows.items() if not row.startswith("candidate")}
    answer = rows.pop("final")
    stages = ", ".join(f"{row} {mae:.4g}" for row, mae in rows.items() if mae is not None)
    return f"{name} {answer:.4g} ({stages}{'; ' if stages else ''}constant {constant:.4g})"


def flatten(evaluation: Evaluation) -> dict[str, float]:
    """One level of numbers: `<metric>` of the answer and of its all-in-focus image, `MAE/<row>`,
    `step/<stage>` = mean |D(k) - D(k-1)|, `gain/<row>`.

    Only `step` and `gain` show that a proximal network no longer changes anything.
    """
    numbers: dict[str, Any] = dict(evaluation.rows["final"])
    numbers |= {name: evaluation.all_in_focus["final"][name] for name in images.METRICS if evaluation.all_in_focus}
    numbers |= {f"MAE/{row}": metrics["MAE"] for row, metrics in evaluation.rows.items() if row != "final"}
    for kind, by_name in evaluation.dynamics.items():
        numbers |= {f"{kind}/{name}": value for name, value in by_name.items()}
    return {name: float(x) for name, x in numbers.items() if isinstance(x, int | float)}


def draw(batch: Any, depth: np.ndarray) -> dict[str, np.ndarray]:
    """Depth, ground truth and error (full scale: a tenth of the focus range) of a batch's first stack."""
    from dff_jax.pictures import panels  # whose drawing libraries a run without images does not need

    focus, truth, mask, depth = batch.focus[0], batch.depth[0], batch.mask[0], depth[0]
    low, high = float(focus[0]), float(focus[-1])
    return {
        "depth": panels.colorize(depth, low, high),
        "truth": panels.colorize(truth, low, high, mask=mask),
        "error": panels.colorize(np.abs(depth - truth), 0.0, (high - low) / 10, mask=mask),
    }
