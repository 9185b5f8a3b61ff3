"""How fast presets and compared networks are, and how memory and time grow with the size of the problem."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dff_jax.config import DTYPES, ModelConfig
from dff_jax.runtime.compile import jit
from dff_jax.studies.bench import measuring
from dff_jax.studies.bench.gpu_report.device import has_torch
from dff_jax.studies.bench.gpu_report.job import (
    Job,
    inference,
    say,
    shares_of_peak,
    stack_gflops,
    training_step,
    variant,
)


def bench(job: Job, out: dict[str, Any]) -> None:
    """Fills `out["rows"]`, the most telling first, until time is up; `out["left_out"]` names what there was none for.

    PyTorch, where it is installed, runs beside ours: eager, and compiled for the networks of the first group.
    """
    out |= {"rows": [], "left_out": [], "torch": has_torch()}
    if not out["torch"]:
        say("bench: PyTorch is not installed, so nothing is compared with it")
    for preset, dtype, B, training, compiled in _cases(job, out["torch"]):
        shape = B, job.settings.frames, job.settings.size
        row = {"preset": preset, "dtype": dtype, "B": B, "Z": shape[1], "size": shape[2]}
        row |= {"what": "training step" if training else "inference"}
        label = f"{preset}, {dtype}, batch {B}, {row['what']}{', torch.compile' if compiled else ''}"
        if job.late():
            out["left_out"].append(label)
            continue
        try:
            if compiled:
                _torch_compiled(job, out["rows"], row, shape, training)
            else:
                out["rows"].append(row)
                _measure(job, row, variant(preset, dtype=dtype), shape, training, out["torch"])
            say(f"bench: {label}: {1000 * row['seconds']:.4g} ms")
        except Exception as error:  # such as memory that does not suffice; the next may do
            row["raised"] = f"{type(error).__name__}: {error}"[:500]
            say(f"bench: {label} FAILED: {row['raised'][:200]}")
        gc.collect()
        job.save()


def _cases(job: Job, with_torch: bool) -> Iterator[tuple[str, str, int, bool, bool]]:
    """Preset, dtype, batch, training, whether it is PyTorch's compiled one; in order of interest."""
    for number, group in enumerate(job.settings.groups):
        for (B, training), preset, dtype in itertools.product(job.settings.kinds, group, DTYPES):
            yield preset, dtype, B, training, False
            if with_torch and number == 0 and preset == "dfv_diff" and (B > 1) == training:
                yield preset, dtype, B, training, True


def _measure(
    job: Job, row: dict[str, Any], model: ModelConfig, shape: tuple[int, int, int], training: bool, with_torch: bool
) -> None:
    function, arguments = (training_step if training else inference)(model, shape)
    program = measuring.compiled(jit(function), *jax.device_put(arguments), count=False)
    row |= {"compile_s": program.compile_s, "temporary_MB": program.temporary_MB, "planned_MB": program.planned_MB}
    row["seconds"], row["rounds"] = measuring.median_seconds(program.run, job.settings.seconds)
    row["queued_s"] = measuring.queued_seconds(program.run, row["rounds"])
    row["stacks_per_s"] = shape[0] / row["queued_s"]
    of_one = stack_gflops(variant(row["preset"]), shape[1], shape[2], training)
    if of_one:
        row["GFLOPs"] = shape[0] * of_one
        row |= shares_of_peak(job.report, row["dtype"], row["GFLOPs"] / row["queued_s"])
    if with_torch:
        try:
            row |= _torch(job, row, shape, training, compiled=False)
        except Exception as error:  # ours is measured all the same
            row["torch_raised"] = f"{type(error).__name__}: {error}"[:500]


def _torch(job: Job, row: dict[str, Any], shape: tuple[int, int, int], training: bool, compiled: bool) -> dict:
    """Seconds and, on a GPU, the most memory of PyTorch's own; {} for what it has not or cannot train on."""
    import torch

    from dff_jax.studies.bench import torch_peers

    if row["preset"] not in torch_peers.PRESETS or (training and shape[0] == 1):
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as JAX by default
    torch.backends.cudnn.benchmark = True
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    options = {"dtype": row["dtype"], "compiled": compiled}
    runs = torch_peers.runs(row["preset"], shape, training, **options)
    run = runs["torch_step_s" if training else "torch_inference_s"]
    run()
    name = "torch_compiled" if compiled else "torch_eager"
    found = {f"{name}_s": measuring.median_seconds(run, job.settings.seconds)[0]}
    if on_gpu:
        found[f"{name}_MB"] = torch.cuda.max_memory_allocated() / 1e6
        del run, runs
        gc.collect()
        torch.cuda.empty_cache()
    return found


def _torch_compiled(job: Job, rows: list, row: dict[str, Any], shape: tuple[int, int, int], training: bool) -> None:
    """Into the row of ours, which was measured just before."""
    found = _torch(job, row, shape, training, compiled=True)
    rows[-1].update(found)
    row["seconds"] = found["torch_compiled_s"]


def memory(job: Job, out: dict[str, Any]) -> None:
    """A training step on one stack over K, rematerialised and by back-propagation: what the compiler plans, and the
    device's own peak where that rose above all before it (it cannot be set back)."""
    model, shape = job.settings.subject, (1, job.settings.frames, job.settings.size)
    out |= {"preset": model, "shape": shape, "rows": [], "left_out": []}
    for mode, K in itertools.product(("remat", "backprop"), job.settings.memory_iterations):
        if job.late():
            out["left_out"].append(f"{mode}, K = {K}")
            continue
        row: dict[str, Any] = {"gradient": mode, "K": K}
        before = measuring.peak_memory().get("device_MB")
        try:
            function, arguments = training_step(variant(model, gradient=mode, num_iterations=K), shape)
            program = measuring.compiled(jit(function), *jax.device_put(arguments), count=False)
            row |= {"compile_s": program.compile_s, "temporary_MB": program.temporary_MB}
            row["planned_MB"] = program.planned_MB
            row["seconds"] = measuring.median_seconds(program.run, job.settings.seconds / 3)[0]
            after = measuring.peak_memory().get("device_MB")
            row["device_peak_MB"] = after if before is not None and after > before else None
            say(f"memory: {mode}, K = {K}: {program.temporary_MB:.1f} MB of temporaries")
        except Exception as error:
            row["raised"] = f"{type(error).__name__}: {error}"[:500]
        out["rows"].append(row)
        gc.collect()
        job.save()


def scaling(job: Job, out: dict[str, Any]) -> None:
    """Inference of one stack over K, pixels and Z, and by how much a straight line misses it at most."""
    chosen, size, Z = job.settings, job.settings.size, job.settings.frames
    out |= {"preset": chosen.subject, "lines": {}, "left_out": []}
    lines: dict[str, list[tuple[float, str, dict[str, Any], tuple[int, int, int]]]] = {
        "K": [(K, f"K = {K}", {"num_iterations": K}, (1, Z, size)) for K in chosen.iterations],
        "pixels": [(s * s, f"{s} x {s}", {}, (1, Z, s)) for s in chosen.sizes],
        "frames": [(z, f"Z = {z}", {}, (1, z, size)) for z in chosen.numbers_of_frames],
    }
    known: dict[Any, float] = {}
    for name, points in lines.items():
        line: dict[str, Any] = {"rows": []}
        out["lines"][name] = line
        for at, label, changes, shape in points:
            model = variant(chosen.subject, **changes)
            if (model, shape) not in known:
                if job.late():
                    out["left_out"].append(label)
                    continue
                function, arguments = inference(model, shape)
                program = measuring.compiled(jit(function), *jax.device_put(arguments), count=False)
                rounds = measuring.median_seconds(program.run, chosen.seconds / 2)[1]
                known[model, shape] = measuring.queued_seconds(program.run, rounds)
                gc.collect()
            line["rows"].append({"at": at, "label": label, "seconds": known[model, shape]})
            say(f"scaling: {label}: {1000 * known[model, shape]:.4g} ms")
        if len(line["rows"]) > 2:
            x, y = (np.array([row[key] for row in line["rows"]]) for key in ("at", "seconds"))
            slope, start = np.polyfit(x, y, 1)
            line |= {"slope_s": float(slope), "start_s": float(start)}
            line["largest_deviation"] = float(np.abs((start + slope * x) / y - 1).max())
        job.save()
