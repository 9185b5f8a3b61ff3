"""Time, FLOPs and memory of presets and compared networks: compilation, inference, a training step, parts.

All entries of a report are timed round-robin in one process, so ratios do not depend on changes in machine load.
Weights are random, which costs the same as trained ones.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import ModelConfig, Proximal
from dff_jax.errors import InputError
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.compile import jit
from dff_jax.runtime.files import check_output, machine
from dff_jax.runtime.progress import say
from dff_jax.studies.bench import measuring, subjects
from dff_jax.studies.bench.measuring import Run
from dff_jax.types import Array, History, Variables

FILES = ("model.json", "model.md")
PARTS: dict[str, Callable[[Array, History], Any]] = {
    "focus volume": lambda depth, history: history.expected,
    "candidates": lambda depth, history: (history.candidates, history.weights),
    "unroll": lambda depth, history: history.iterates[:, -1],
    "refiner": lambda depth, history: depth,
}
"""Results at the end of each part. The compiler leaves out what comes after."""


def bench_model(
    presets: Sequence[str] = ("physical", "dfv_diff"), *, sizes: Sequence[int] = (256,), frames: Sequence[int] = (15,),
    batches: Sequence[int] = (1,), iterations: Sequence[int | None] = (None,), dtypes: Sequence[str] = ("float32",),
    training: bool = False, parts: bool = False, against: str | None = None, rounds: int = 5,
    output: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures every combination; returns the contents of `model.json`, and writes it into `output`.

    Args:
      presets: names of `config.MODEL_PRESETS`.
      sizes: sides of the square images, pixels.
      frames: Z.
      batches: B.
      iterations: K, for methods that have it; None: the preset's.
      dtypes: of the networks' computation.
      training: times a training step (loss, gradient, AdamW) as well.
      parts: times inference up to the end of each part as well, for methods that have parts.
      against: "torch" times a PyTorch implementation of the same networks in the same rounds.
      rounds: of which the median counts.

    Raises:
      InputError: a value out of range, an output folder that cannot be written, or `against` without PyTorch.
    """
    least = {"size": (sizes, 32), "frames": (frames, 2), "batch": (batches, 1), "iterations": (iterations, 0)}
    for flag, (values, smallest) in (least | {"rounds": ((rounds,), 1)}).items():
        for value in values:
            if value is not None and value < smallest:
                raise InputError(f"--{flag}: must be at least {smallest}, got {value}")
    for dtype in dtypes:
        if dtype not in configs.DTYPES:
            raise InputError(f"--dtype: {dtype!r} is unknown; choose from {', '.join(configs.DTYPES)}")
    models = {name: configs.model_preset(name) for name in presets}
    info, torch_runs = machine(), _no_runs
    if against == "torch":
        if training and min(batches) < 2:
            raise InputError("--batch: PyTorch cannot train DFV on one stack (one value a channel); give 2 or more")
        from dff_jax.studies.bench import torch_peers

        info["versions"]["torch"], torch_runs = torch_peers.torch.__version__, torch_peers.runs
    if output is not None:
        check_output(output, FILES)
    cases: dict[tuple, dict[str, Any]] = {}
    runs: dict[tuple, Run] = {}
    for name, size, Z, B, K, dtype in itertools.product(presets, sizes, frames, batches, iterations, dtypes):
        model = models[name].replace_known(dtype=dtype, **({} if K is None else {"num_iterations": K}))
        case = name, model, size, Z, B
        if case in cases:  # a method without iterations is the same at every K
            continue
        cases[case] = row = {"preset": name, "size": size, "Z": Z, "B": B, "dtype": dtype, "K": model.num_iterations}
        say(f"compiling {_label(row)}")
        found = _ours(model, (B, Z, size), row, training, parts) | torch_runs(name, (B, Z, size), training)
        runs |= {(case, what): run for what, run in found.items()}
    products = {dtype: measuring.matrix_product(dtype) for dtype in dict.fromkeys(dtypes)}
    seconds = measuring.round_robin(runs | {("product", d): run for d, (run, _) in products.items()}, rounds)
    peak = {dtype: gflops / seconds["product", dtype] for dtype, (_, gflops) in products.items()}
    for case, row in cases.items():
        row |= {what: value for (of, what), value in seconds.items() if of == case}
        if row["inference_GFLOPs"]:
            row["share_of_peak"] = row["inference_GFLOPs"] / row["inference_s"] / peak[row["dtype"]]
    report = {
        "rows": list(cases.values()), "rounds": rounds, "peak_GFLOPs_per_s": peak, "cores": os.cpu_count(),
        "memory": measuring.peak_memory(), "machine": info,
    }  # fmt: skip
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """A line for each variant, with ratios to the first line and to PyTorch where it ran."""
    rows = report["rows"]
    lines = []
    for row in rows:
        line = {
            "": _label(row),
            "compile, s": row["compile_s"],
            "GFLOPs": row["inference_GFLOPs"],
            "inference, s": row["inference_s"],
            "to the first": row["inference_s"] / rows[0]["inference_s"],
            "to PyTorch": _ratio(row, "inference_s"),
            "of a matrix product's speed": row.get("share_of_peak"),
            "temporaries, MB": row["inference_MB"],
            "training step, s": row.get("step_s"),
            "step to PyTorch's": _ratio(row, "step_s"),
            "step's temporaries, MB": row.get("step_MB"),
        }
        lines.append(line | {f"{part}, s": row.get(f"{part}_s") for part in PARTS})
    versions = report["machine"]["versions"]
    peak = ", ".join(f"{value:.0f} GFLOP/s in {dtype}" for dtype, value in report["peak_GFLOPs_per_s"].items())
    memory = ", ".join(f"{value:.0f} MB {name.removesuffix('_MB')}" for name, value in report["memory"].items())
    head = (
        f"{report['machine']['device']}, {report['cores']} cores, "
        + ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch") if name in versions)
        + f"; medians of {report['rounds']} rounds, all entries round-robin. A product of two matrices of "
        f"{measuring.MATRIX_SIDE}: {peak}. Peak memory: {memory}. Parts: seconds up to the end of each."
    )
    formats = {"of a matrix product's speed": ".0%", "to the first": ".2f", "to PyTorch": ".2f"}
    return "\n".join([head, "", *texts.records(lines, formats)]) + "\n"


def _ours(
    model: ModelConfig, shape: subjects.Shape, row: dict[str, Any], training: bool, parts: bool
) -> dict[str, Run]:
    """Compiles; returns the executions to time, by the key of their seconds. Adds costs to `row`."""
    function, arguments = subjects.inference(model, shape)
    arguments = jax.device_put(arguments)
    row["parameters"] = sum(x.size for x in jax.tree.leaves(arguments[0].get("params", {})))
    program = measuring.compiled(jit(function), *arguments)
    row |= {"compile_s": program.compile_s, "inference_MB": program.temporary_MB}
    row["inference_GFLOPs"] = subjects.gflops(model, shape, False)
    runs = {"inference_s": program.run(*arguments)}
    if parts and isinstance(model, Proximal):
        for part, take in PARTS.items():
            if part != "refiner" or model.refiner_steps:
                runs[f"{part}_s"] = measuring.compiled(jit(_up_to(model, take)), *arguments).run(*arguments)
    if training and model.trained:
        update, arguments = subjects.training_step(model, subjects.batch(shape))
        arguments = jax.device_put(arguments)
        step = measuring.compiled(jit(update), *arguments)
        row |= {"step_compile_s": step.compile_s, "step_MB": step.temporary_MB}
        row["step_GFLOPs"] = subjects.gflops(model, shape, True)
        runs["step_s"] = step.run(*arguments)
    return runs


def _up_to(model: ModelConfig, take: Callable[[Array, History], Any]) -> Callable:
    estimator = estimators.build(model)

    def run(variables: Variables, frames: Array, focus: Array) -> Any:
        prediction = estimator.apply(variables, frames, focus, train=False)[0]
        assert prediction.history is not None
        return take(prediction.depth, prediction.history)

    return run


def _no_runs(preset: str, shape: subjects.Shape, training: bool) -> dict[str, Run]:
    return {}


def _label(row: dict[str, Any]) -> str:
    iterations = "" if row["K"] is None else f", K = {row['K']}"
    dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    return f"{row['preset']}, {row['B']} x {row['Z']} x {row['size']} x {row['size']}{iterations}{dtype}"


def _ratio(row: dict[str, Any], what: str) -> float | None:
    return row[what] / row[f"torch_{what}"] if f"torch_{what}" in row else None
