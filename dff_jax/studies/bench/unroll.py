"""Compile time and temporary memory of the unroll over K, in every gradient mode.

Two subjects: a whole training step of a preset, and the unroll alone (the gradient of `solve` with the preset's gated
U-Net at the same size). Nothing is run, only compiled, without the compilation cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax.config import Proximal
from dff_jax.errors import InputError
from dff_jax.network.prox import GatedProximalNetwork
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.files import check_output
from dff_jax.runtime.progress import say
from dff_jax.studies.bench import measuring, subjects
from dff_jax.unroll import Problem, initial_depth, proximal_gradient, solve

FILES = ("unroll.json", "unroll.md")
MODES = ("remat", "backprop", "truncated(1)", "implicit")


def bench_unroll(
    preset: str = "tiny", iterations: Sequence[int] = (2, 4, 8, 16), size: int = 96, num_frames: int = 15,
    output: str | Path | None = None, modes: Sequence[str] = MODES,
) -> dict[str, Any]:  # fmt: skip
    """Measures every mode at every K; returns the contents of `unroll.json`, and writes it into `output`.

    Raises:
      InputError: a preset without an unroll, K below 1, a size that is no multiple of 32, or an output folder that
        cannot be written.
    """
    model = configs.model_preset(preset)
    if not isinstance(model, Proximal):
        raise InputError(f"--preset: {preset} has no unroll to train; choose one of paper, physical, tiny")
    if min(iterations) < 1:
        raise InputError(f"--iterations: must be 1 or more, got {min(iterations)}")
    if size < 64 or size % 32:
        raise InputError(f"--size: must be a multiple of 32 from 64 on, got {size}")
    if output is not None:
        check_output(output, FILES)
    rows = []
    for subject, make in {"unroll alone": _unroll_alone, "training step": _training_step}.items():
        for mode in modes:
            for K in iterations:
                function, arguments = make(replace(model, gradient=mode, num_iterations=K), size, num_frames)
                program = measuring.compiled(jax.jit(function), *arguments)
                row = {"subject": subject, "gradient": mode, "K": K}
                rows.append(row | {"compile_s": program.compile_s, "temporary_MB": program.temporary_MB})
                say(f"{subject}, {mode}, K = {K}: {program.temporary_MB:.1f} MB, {program.compile_s:.1f} s")
    report = {
        "preset": preset, "size": size, "num_frames": num_frames, "batch": 1, "rows": rows,
        "device": jax.devices()[0].device_kind, "jax": jax.__version__,
    }  # fmt: skip
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """A line for each subject and mode, a column for each K, and the ratio of the last K to the first."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in report["rows"]:
        case = row["subject"], row["gradient"]
        line = lines.setdefault(case, {"subject": case[0], "gradient": case[1]})
        line[f"K = {row['K']}"] = f"{row['temporary_MB']:.1f} / {row['compile_s']:.1f}"
    for case, line in lines.items():
        first, *_, last = [row for row in report["rows"] if (row["subject"], row["gradient"]) == case] * 2
        line["memory ratio"] = last["temporary_MB"] / first["temporary_MB"]
        line["compile time ratio"] = last["compile_s"] / first["compile_s"]
    head = (
        f"Preset `{report['preset']}`, 1 x {report['num_frames']} x {report['size']} x {report['size']}, "
        f"{report['device']}, jax {report['jax']}. Temporary memory in MB / compile time in s; the ratios are those of "
        "the last K to the first. The unroll alone is a rolled scan; in a training step the estimator rolls or unrolls "
        "the scan as it does on this device."
    )
    return "\n".join([head, "", *texts.records(list(lines.values()))]) + "\n"


def _training_step(model: Proximal, size: int, num_frames: int) -> tuple[Any, tuple]:
    return subjects.training_step(model, subjects.batch((1, num_frames, size)))


def _unroll_alone(model: Proximal, size: int, num_frames: int) -> tuple[Any, tuple]:
    network = GatedProximalNetwork(model)
    shape = jax.ShapeDtypeStruct
    features = shape((1, size, size, (model.num_planes or num_frames) + 3), jnp.float32)
    z = jax.eval_shape(lambda f: jnp.concatenate([f, f[..., :4]], -1), features)
    params = jax.eval_shape(network.init, jax.random.key(0), z)["params"]
    candidates = shape((1, size, size, model.num_candidates), jnp.float32)

    def prox(params, z, problem, eta):
        own = [jnp.broadcast_to(x, z.shape)[..., None] for x in (z, eta, 0.1, problem.previous)]
        return z + network.apply({"params": params}, jnp.concatenate([problem.context, *own], -1))

    def loss(params, candidates, weights, features):
        problem = Problem(candidates, weights, context=features)
        depth, _ = solve(proximal_gradient(prox), problem, initial_depth(problem), shared={"prox": params},
                         num_iterations=model.num_iterations, gradient=model.gradient, unroll=1)  # fmt: skip
        return (depth**2).sum()

    return jax.grad(loss, (0, 1, 2, 3)), (params, candidates, candidates, features)
