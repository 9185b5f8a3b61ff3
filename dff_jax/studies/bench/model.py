"""How long presets and compared networks take: compilation, inference, a training step, and the parts of both.

Everything that is compared is timed in turns, in one process: only ratios within one report mean anything. Weights are
random, which costs the same as trained ones.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import LossConfig, ModelConfig, OptimizerConfig
from dff_jax.errors import InputError
from dff_jax.evaluation.tables import machine
from dff_jax.runtime.compile import jit
from dff_jax.runtime.files import check_output
from dff_jax.studies.bench import measuring
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import create
from dff_jax.training.step import make_update
from dff_jax.types import Batch, Estimator, Prediction

FILES = ("model.json", "model.md")
PARTS: dict[str, Callable[[Prediction], Any]] = {
    "focus volume": lambda p: p.history.expected,
    "candidates": lambda p: (p.history.candidates, p.history.weights),
    "unroll": lambda p: p.history.iterates[:, -1],
    "refiner": lambda p: p.depth,
}
"""What is computed up to the end of a part; the compiler leaves out what comes after."""


def bench_model(
    presets: Sequence[str] = ("physical", "dfv_diff"), *, sizes: Sequence[int] = (256,), frames: Sequence[int] = (15,),
    batches: Sequence[int] = (1,), iterations: Sequence[int | None] = (None,),
    candidates: Sequence[int | None] = (None,), dtypes: Sequence[str] = ("float32",), training: bool = False,
    parts: bool = False, against: str | None = None, rounds: int = 5, output: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures every combination; returns the contents of `model.json`, and writes it where `output` says.

    Args:
      presets: names of `config.MODEL_PRESETS`.
      sizes: sides of the square pictures, pixels.
      frames, batches: Z and B.
      iterations, candidates: K and N, for methods that have them; None: the preset's.
      dtypes: of the networks' computation, "float32" or "bfloat16".
      training: times a training step (loss, gradient, AdamW) as well.
      parts: times inference up to the end of each part as well, for methods that have them.
      against: "torch" times a PyTorch implementation of the same networks in the same rounds, where there is one.
      rounds: of which the median counts.

    Raises:
      InputError: a value that makes no sense, an output folder that cannot be written, or `against` without PyTorch.
    """
    _check(presets, sizes, frames, batches, iterations, candidates, dtypes, training, against, rounds)
    if output is not None:
        check_output(output, FILES)
    rows: list[dict[str, Any]] = []
    turns: dict[tuple[int, str], Callable[[], None]] = {}
    seen = set()
    for name, size, Z, B, K, N, dtype in itertools.product(
        presets, sizes, frames, batches, iterations, candidates, dtypes
    ):
        model = _variant(name, K, N, dtype)
        if (name, model, size, Z, B) in seen:  # K and N say nothing to some
            continue
        seen.add((name, model, size, Z, B))
        row = {"preset": name, "size": size, "Z": Z, "B": B, "dtype": dtype}
        row |= {"K": model.num_iterations, "N": getattr(model, "num_candidates", None)}
        print(f"compiling {_label(row)}", file=sys.stderr, flush=True)
        number = len(rows)
        rows.append(row)
        for what, run in _ours(model, (B, Z, size), row, training, parts).items():
            turns[number, what] = run
        if against == "torch":
            for what, run in _torch(name, (B, Z, size), training).items():
                turns[number, what] = run
    peaks = {dtype: measuring.matrix_product(dtype) for dtype in dict.fromkeys(dtypes)}
    turns |= {(-1, dtype): run for dtype, (run, _) in peaks.items()}
    seconds = {turn: statistics.median(s) for turn, s in measuring.in_turns(turns, rounds).items()}
    for (number, what), value in seconds.items():
        if number >= 0:
            rows[number][what] = value
    peak = {dtype: gflops / seconds[-1, dtype] for dtype, (_, gflops) in peaks.items()}
    for row in rows:
        if row["inference_GFLOPs"]:
            row["share_of_peak"] = row["inference_GFLOPs"] / row["inference_s"] / peak[row["dtype"]]
    report = {
        "rows": rows, "rounds": rounds, "peak_GFLOPs_per_s": peak, "cores": os.cpu_count(),
        "memory": measuring.peak_memory(), "machine": _machine(against),
    }  # fmt: skip
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """The table: one line a variant, ratios to the first line of the same shape, and to PyTorch where it ran."""
    rows = report["rows"]
    versions = report["machine"]["versions"]
    peak = ", ".join(f"{value:.0f} GFLOP/s in {dtype}" for dtype, value in report["peak_GFLOPs_per_s"].items())
    columns: list[tuple[str, Callable[[dict], str]]] = [
        ("", _label),
        ("compile, s", lambda r: f"{r['compile_s']:.1f}"),
        ("GFLOPs", lambda r: _number(r["inference_GFLOPs"], ".1f")),
        ("inference, s", lambda r: f"{r['inference_s']:.3g}"),
        ("stacks/s", lambda r: f"{r['B'] / r['inference_s']:.3g}"),
        ("to the first", lambda r: f"{r['inference_s'] / rows[0]['inference_s']:.2f}"),
        (
            "of a matrix product's speed",
            lambda r: "" if "share_of_peak" not in r else f"{100 * r['share_of_peak']:.0f} %",
        ),
        ("temporaries, MB", lambda r: f"{r['inference_MB']:.0f}"),
    ]
    if any("torch_inference_s" in r for r in rows):
        columns += [
            ("PyTorch, s", lambda r: _number(r.get("torch_inference_s"), ".3g")),
            ("ours / PyTorch", lambda r: _ratio(r, "inference_s")),
        ]
    if any("step_s" in r for r in rows):
        columns += [
            ("training step, s", lambda r: _number(r.get("step_s"), ".3g")),
            ("its compile, s", lambda r: _number(r.get("step_compile_s"), ".0f")),
            ("its temporaries, MB", lambda r: _number(r.get("step_MB"), ".0f")),
        ]
    if any("torch_step_s" in r for r in rows):
        columns += [("ours / PyTorch, step", lambda r: _ratio(r, "step_s"))]
    for part in PARTS:
        if any(f"{part}_s" in r for r in rows):
            columns.append((f"{part}, s", lambda r, part=part: _number(r.get(f"{part}_s"), ".3g")))
    held = ", ".join(f"{value:.0f} MB {name.removesuffix('_MB')}" for name, value in report["memory"].items())
    lines = [
        f"{report['machine']['device']}, {report['cores']} cores, "
        + ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch") if name in versions)
        + f"; medians of {report['rounds']} rounds in which all take turns. A product of two matrices of "
        f"{measuring.MATRIX_SIDE}: {peak}. The most held at once: {held}.",
        "",
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows),
    ]
    if any(f"{part}_s" in r for r in rows for part in PARTS):
        lines += ["", "Parts: seconds to the end of each, so that a part takes what it adds to the one before."]
    return "\n".join(lines) + "\n"


def _check(presets, sizes, frames, batches, iterations, candidates, dtypes, training, against, rounds) -> None:
    for name in presets:
        configs.model_preset(name)
    for flag, values, least in (
        ("--size", sizes, 32), ("--frames", frames, 2), ("--batch", batches, 1), ("--iterations", iterations, 0),
        ("--candidates", candidates, 1), ("--rounds", (rounds,), 1),
    ):  # fmt: skip
        for value in values:
            if value is not None and value < least:
                raise InputError(f"{flag}: must be at least {least}, got {value}")
    for dtype in dtypes:
        if dtype not in configs.DTYPES:
            raise InputError(f"--dtype: {dtype!r} is no choice; choose of {', '.join(configs.DTYPES)}")
    if against not in (None, "torch"):
        raise InputError(f"--against: {against!r} is no choice; only torch")
    if against == "torch":
        if training and min(batches) < 2:
            raise InputError("--batch: PyTorch cannot train DFV on one stack (one value a channel); give 2 or more")
        from dff_jax.studies.bench import torch_peers

        missing = [name for name in presets if name not in torch_peers.PRESETS]
        if missing:
            print(f"note: no PyTorch counterpart of {', '.join(missing)}", file=sys.stderr)


def _variant(name: str, K: int | None, N: int | None, dtype: str) -> ModelConfig:
    changes = {"num_iterations": K, "num_candidates": N, "dtype": dtype}
    return configs.model_preset(name).replace_known(**{key: x for key, x in changes.items() if x is not None})


def _ours(
    model: ModelConfig, shape: tuple[int, int, int], row: dict[str, Any], training: bool, parts: bool
) -> dict[str, Callable[[], None]]:
    """Programs to time, by the name of their entry; what compiling tells goes into `row`."""
    B, Z, size = shape
    estimator = estimators.build(model)
    frames = jax.random.uniform(jax.random.key(0), (B, Z, size, size, 3))
    focus = jnp.tile(jnp.linspace(10.0, 100.0, Z), (B, 1))
    variables = estimator.init(jax.random.key(1), frames, focus)
    row["parameters"] = sum(x.size for x in jax.tree.leaves(variables.get("params", {})))
    arguments = variables, frames, focus
    program = measuring.compiled(jit(measuring.without_history(estimator)), *arguments)
    row |= {
        "compile_s": program.compile_s, "inference_GFLOPs": program.gflops, "inference_MB": program.temporary_MB,
    }  # fmt: skip
    runs = {"inference_s": program.run}
    if parts and isinstance(model, configs.Proximal):
        for part, take in PARTS.items():
            if part != "refiner" or model.refiner_steps:
                runs[f"{part}_s"] = measuring.compiled(_up_to(estimator, take), *arguments).run
    if training and model.trained:
        tx = optimizers.build(OptimizerConfig(), 1000)
        update = jit(make_update(estimator, tx, _loss(model), model.coordinate))
        depth = focus[:, :1, None] + 90 * frames[:, 0, ..., 0]
        batch = Batch(frames, focus, depth, jnp.ones(depth.shape, bool))
        step = measuring.compiled(update, create(jax.random.key(1), estimator, tx, frames, focus), batch)
        row |= {"step_compile_s": step.compile_s, "step_GFLOPs": step.gflops, "step_MB": step.temporary_MB}
        runs["step_s"] = step.run
    return runs


def _up_to(estimator: Estimator, take: Callable[[Prediction], Any]) -> Callable:
    return jit(lambda variables, frames, focus: take(estimator.apply(variables, frames, focus, train=False)[0]))


def _loss(model: ModelConfig) -> LossConfig:
    if not model.num_scales:
        return LossConfig()
    return LossConfig(kind="multi_scale", scale_weights=(1.0,) * model.num_scales, penalty="smooth_l1")


def _torch(name: str, shape: tuple[int, int, int], training: bool) -> dict[str, Callable[[], None]]:
    from dff_jax.studies.bench import torch_peers

    return torch_peers.runs(name, shape, training) if name in torch_peers.PRESETS else {}


def _machine(against: str | None) -> dict[str, Any]:
    found = machine()
    if against == "torch":
        import torch

        found["versions"]["torch"] = torch.__version__
    return found


def _label(row: dict[str, Any]) -> str:
    more = "".join(f", {key} = {row[key]}" for key in ("K", "N") if row[key] is not None)
    dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    return f"{row['preset']}, {row['B']} x {row['Z']} x {row['size']} x {row['size']}{more}{dtype}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratio(row: dict[str, Any], what: str) -> str:
    return f"{row[what] / row[f'torch_{what}']:.2f}" if f"torch_{what}" in row else ""
