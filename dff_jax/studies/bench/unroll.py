"""Compile time and compiled temporary memory of the unroll over K, by gradient mode.

Two subjects: a whole training step of a preset (forward, loss, gradient, AdamW), and the unroll alone (gradient of
`solve` with the preset's gated U-Net at the same size), where nothing else hides it. Nothing is run, only compiled,
without the compilation cache; memory is what XLA plans beside arguments and results.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import LossConfig, OptimizerConfig, Proximal
from dff_jax.errors import InputError
from dff_jax.network.prox import GatedProximalNetwork
from dff_jax.runtime.files import check_output
from dff_jax.studies.bench import measuring
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import create
from dff_jax.training.step import make_update
from dff_jax.types import Batch
from dff_jax.unroll import Problem, initial_depth, proximal_gradient, solve

FILES = ("unroll.json", "unroll.md")
MODES = ("remat", "backprop", "truncated(1)", "implicit")


def bench_unroll(
    preset: str = "tiny",
    iterations: Sequence[int] = (2, 4, 8, 16),
    size: int = 96,
    num_frames: int = 15,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Measures every mode at every K; returns the contents of `unroll.json`, and writes it where `output` says.

    Raises:
      InputError: K below 1, a size that is no multiple of 32, or an output folder that cannot be written.
    """
    if min(iterations) < 1:
        raise InputError(f"--iterations: must be 1 or more, got {min(iterations)}")
    if size < 64 or size % 32:
        raise InputError(f"--size: must be a multiple of 32 from 64 on, got {size}")
    if output is not None:
        check_output(output, FILES)
    model = configs.model_preset(preset)
    if not isinstance(model, Proximal):
        raise InputError(f"--preset: {preset} has no unroll")
    rows = []
    subjects = {"unroll alone": _unroll_alone, "training step": _training_step}
    _unroll_alone(model, "backprop", 1, 64, num_frames)  # whatever is slow the first time
    for subject, compiled in subjects.items():
        for mode in MODES:
            for K in iterations:
                seconds, memory = compiled(model, mode, K, size, num_frames)
                row = {"subject": subject, "gradient": mode, "K": K}
                rows.append(row | {"compile_s": seconds, "temporary_MB": memory})
                print(f"{subject}, {mode}, K = {K}: {memory:.1f} MB, {seconds:.1f} s", file=sys.stderr, flush=True)
    report = {
        "preset": preset, "size": size, "num_frames": num_frames, "batch": 1, "rows": rows,
        "device": jax.devices()[0].device_kind, "jax": jax.__version__,
    }  # fmt: skip
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """The table: one line a subject and mode, one column a K, and the ratio of the last K to the first."""
    ks = sorted({row["K"] for row in report["rows"]})
    lines = [
        f"Preset `{report['preset']}`, 1 x {report['num_frames']} x {report['size']} x {report['size']}, "
        f"{report['device']}, jax {report['jax']}. Compiled temporary memory in MB / compile time in s; last two "
        f"columns: K = {ks[-1]} against K = {ks[0]}. The unroll alone is a rolled scan; in a training step the scan is "
        "rolled or unrolled as the estimator does on this device.",
        "",
        f"| subject | gradient | {' | '.join(f'K = {k}' for k in ks)} | memory ratio | compile time ratio |",
        "|---|---|" + "---:|" * (len(ks) + 2),
    ]
    found = {(r["subject"], r["gradient"], r["K"]): r for r in report["rows"]}
    for subject, mode in dict.fromkeys((s, m) for s, m, _ in found):
        mine = [found[subject, mode, k] for k in ks]
        cells = [f"{r['temporary_MB']:.1f} / {r['compile_s']:.1f}" for r in mine]
        ratios = [f"{mine[-1][key] / mine[0][key]:.2f}" for key in ("temporary_MB", "compile_s")]
        lines.append(f"| {subject} | {mode} | {' | '.join(cells + ratios)} |")
    return "\n".join(lines) + "\n"


def _compile(function, *args) -> tuple[float, float]:
    """Seconds to compile (tracing included) and megabytes of temporaries."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    return seconds, compiled.memory_analysis().temp_size_in_bytes / 1e6


def _training_step(model: Proximal, mode: str, K: int, size: int, num_frames: int) -> tuple[float, float]:
    model = dataclasses.replace(model, num_iterations=K, gradient="remat" if mode == "remat" else mode)
    estimator = estimators.build(model)
    shape = jax.ShapeDtypeStruct
    frames, focus = shape((1, num_frames, size, size, 3), jnp.float32), shape((1, num_frames), jnp.float32)
    maps = shape((1, size, size), jnp.float32)
    batch = Batch(frames, focus, maps, shape((1, size, size), jnp.bool_))
    optimizer = optimizers.build(OptimizerConfig(), 100)
    state = jax.eval_shape(lambda key: create(key, estimator, optimizer, frames, focus), jax.random.key(0))
    update = make_update(estimator, optimizer, LossConfig(), model.coordinate)
    return _compile(update, state, batch)


def _unroll_alone(model: Proximal, mode: str, K: int, size: int, num_frames: int) -> tuple[float, float]:
    network = GatedProximalNetwork(model)
    planes = model.num_planes or num_frames
    shape = jax.ShapeDtypeStruct
    features = shape((1, size, size, planes + 3), jnp.float32)
    z = jax.eval_shape(lambda f: jnp.concatenate([f, f[..., :4]], -1), features)
    params = jax.eval_shape(network.init, jax.random.key(0), z)["params"]
    candidates = shape((1, size, size, model.num_candidates), jnp.float32)

    def prox(params, z, problem, eta):
        own = [jnp.broadcast_to(x, z.shape)[..., None] for x in (z, eta, 0.1, problem.previous)]
        return z + network.apply({"params": params}, jnp.concatenate([problem.context, *own], -1))

    def loss(params, candidates, weights, features):
        problem = Problem(candidates, weights, context=features)
        depth, _ = solve(proximal_gradient(prox), problem, initial_depth(problem), shared={"prox": params},
                         num_iterations=K, gradient=mode, unroll=1)  # fmt: skip
        return (depth**2).sum()

    return _compile(jax.grad(loss, (0, 1, 2, 3)), params, candidates, candidates, features)
