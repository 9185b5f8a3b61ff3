"""Time, FLOPs and memory of presets and compared networks: compilation, inference, a training step, parts.

All entries of a report are timed round-robin in one process, so ratios do not depend on changes in machine load.
Weights are random, which costs the same as trained ones.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import ModelConfig, Proximal
from dff_jax.errors import InputError
from dff_jax.runtime.compile import jit
from dff_jax.runtime.files import check_output, machine
from dff_jax.studies.bench import measuring, subjects
from dff_jax.studies.bench.measuring import number, table
from dff_jax.types import Array, History, Prediction, Variables

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
    _check(presets, sizes, frames, batches, iterations, dtypes, training, against, rounds)
    if output is not None:
        check_output(output, FILES)
    cases: dict[tuple, dict[str, Any]] = {}
    runs: dict[tuple, Callable[[], None]] = {}
    for name, size, Z, B, K, dtype in itertools.product(presets, sizes, frames, batches, iterations, dtypes):
        model = subjects.preset(name, num_iterations=K, dtype=dtype)
        case = name, model, size, Z, B
        if case in cases:  # a method without iterations is the same at every K
            continue
        row = {"preset": name, "size": size, "Z": Z, "B": B, "dtype": dtype, "K": model.num_iterations}
        cases[case] = row
        print(f"compiling {_label(row)}", file=sys.stderr, flush=True)
        found = _ours(model, (B, Z, size), row, training, parts)
        if against == "torch":
            found |= _torch(name, (B, Z, size), training)
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
        "memory": measuring.peak_memory(), "machine": _machine(against),
    }  # fmt: skip
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """A line for each variant, with ratios to the first line and to PyTorch where it ran."""
    rows = report["rows"]
    columns: dict[str, Callable[[dict], str]] = {
        "": _label,
        "compile, s": lambda r: number(r["compile_s"], ".1f"),
        "GFLOPs": lambda r: number(r["inference_GFLOPs"], ".1f"),
        "inference, s": lambda r: number(r["inference_s"], ".3g"),
        "stacks/s": lambda r: number(r["B"] / r["inference_s"], ".3g"),
        "to the first": lambda r: number(r["inference_s"] / rows[0]["inference_s"], ".2f"),
        "of a matrix product's speed": lambda r: number(r.get("share_of_peak"), ".0%"),
        "temporaries, MB": lambda r: number(r["inference_MB"], ".0f"),
        "PyTorch, s": lambda r: number(r.get("torch_inference_s"), ".3g"),
        "ours / PyTorch": lambda r: _ratio(r, "inference_s"),
        "training step, s": lambda r: number(r.get("step_s"), ".3g"),
        "its compile, s": lambda r: number(r.get("step_compile_s"), ".0f"),
        "its temporaries, MB": lambda r: number(r.get("step_MB"), ".0f"),
        "ours / PyTorch, step": lambda r: _ratio(r, "step_s"),
    } | {f"{part}, s": lambda r, part=part: number(r.get(f"{part}_s"), ".3g") for part in PARTS}
    columns = {name: cell for name, cell in columns.items() if any(map(cell, rows))}
    versions = report["machine"]["versions"]
    peak = ", ".join(f"{value:.0f} GFLOP/s in {dtype}" for dtype, value in report["peak_GFLOPs_per_s"].items())
    memory = ", ".join(f"{value:.0f} MB {name.removesuffix('_MB')}" for name, value in report["memory"].items())
    lines = [
        f"{report['machine']['device']}, {report['cores']} cores, "
        + ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch") if name in versions)
        + f"; medians of {report['rounds']} rounds, all entries round-robin. A product of two matrices of "
        f"{measuring.MATRIX_SIDE}: {peak}. Peak memory: {memory}.",
        "", *table(rows, columns),
    ]  # fmt: skip
    if any(f"{part}_s" in r for r in rows for part in PARTS):
        lines += ["", "Parts: seconds up to the end of each; a part takes what it adds to the one before."]
    return "\n".join(lines) + "\n"


def _check(presets, sizes, frames, batches, iterations, dtypes, training, against, rounds) -> None:
    for name in presets:
        configs.model_preset(name)
    least = {"--size": (sizes, 32), "--frames": (frames, 2), "--batch": (batches, 1), "--iterations": (iterations, 0)}
    for flag, (values, smallest) in (least | {"--rounds": ((rounds,), 1)}).items():
        for value in values:
            if value is not None and value < smallest:
                raise InputError(f"{flag}: must be at least {smallest}, got {value}")
    for dtype in dtypes:
        if dtype not in configs.DTYPES:
            raise InputError(f"--dtype: {dtype!r} is unknown; choose from {', '.join(configs.DTYPES)}")
    if against not in (None, "torch"):
        raise InputError(f"--against: {against!r} is unknown; only torch can be compared with")
    if against == "torch":
        if training and min(batches) < 2:
            raise InputError("--batch: PyTorch cannot train DFV on one stack (one value a channel); give 2 or more")
        from dff_jax.studies.bench import torch_peers

        missing = [name for name in presets if name not in torch_peers.PRESETS]
        if missing:
            print(f"note: no PyTorch counterpart of {', '.join(missing)}", file=sys.stderr)


def _ours(
    model: ModelConfig, shape: subjects.Shape, row: dict[str, Any], training: bool, parts: bool
) -> dict[str, Callable[[], None]]:
    """Compiles; returns the executions to time, by the key of their seconds. Adds costs to `row`."""
    function, arguments = subjects.inference(model, shape)
    row["parameters"] = sum(x.size for x in jax.tree.leaves(arguments[0].get("params", {})))
    program = measuring.compiled(jit(function), *jax.device_put(arguments), count=False)
    row |= {"compile_s": program.compile_s, "inference_MB": program.temporary_MB}
    row["inference_GFLOPs"] = subjects.gflops(model, shape, False)
    runs: dict[str, Callable[[], None]] = {"inference_s": program.run}
    if parts and isinstance(model, Proximal):
        for part, take in PARTS.items():
            if part != "refiner" or model.refiner_steps:
                runs[f"{part}_s"] = measuring.compiled(jit(_up_to(model, take)), *arguments, count=False).run
    if training and model.trained:
        update, arguments = subjects.training_step(model, subjects.batch(shape))
        step = measuring.compiled(jit(update), *jax.device_put(arguments), count=False)
        row |= {"step_compile_s": step.compile_s, "step_MB": step.temporary_MB}
        row["step_GFLOPs"] = subjects.gflops(model, shape, True)
        runs["step_s"] = step.run
    return runs


def _up_to(model: ModelConfig, take: Callable[[Array, History], Any]) -> Callable:
    estimator = estimators.build(model)

    def run(variables: Variables, frames: Array, focus: Array) -> Any:
        prediction: Prediction = estimator.apply(variables, frames, focus, train=False)[0]
        assert prediction.history is not None
        return take(prediction.depth, prediction.history)

    return run


def _torch(name: str, shape: subjects.Shape, training: bool) -> dict[str, Callable[[], None]]:
    from dff_jax.studies.bench import torch_peers

    return torch_peers.runs(name, shape, training) if name in torch_peers.PRESETS else {}


def _machine(against: str | None) -> dict[str, Any]:
    found = machine()
    if against == "torch":
        import torch

        found["versions"]["torch"] = torch.__version__
    return found


def _label(row: dict[str, Any]) -> str:
    iterations = "" if row["K"] is None else f", K = {row['K']}"
    dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    return f"{row['preset']}, {row['B']} x {row['Z']} x {row['size']} x {row['size']}{iterations}{dtype}"


def _ratio(row: dict[str, Any], what: str) -> str:
    return f"{row[what] / row[f'torch_{what}']:.2f}" if f"torch_{what}" in row else ""
