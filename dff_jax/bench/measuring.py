"""Compile, count, time: what the benchmarks and the comparison share."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.output import staged_output
from dff_jax.types import Array, Estimator, Prediction

MATRIX_SIDE = 2048


class Program(NamedTuple):
    """A compiled program with its arguments."""

    run: Callable[[], None]  # one execution, waited for
    compile_s: float  # tracing included; without the compilation cache, if that is off
    gflops: float | None  # by XLA's count; a custom kernel counts nothing
    temporary_MB: float  # planned by the compiler beside arguments and results


def without_history(estimator: Estimator) -> Callable[[Any, Array, Array], Prediction]:
    """Inference as users see it, to be jitted: (variables, frames [B,Z,H,W,3], focus [B,Z]) -> Prediction."""

    def infer(variables: Any, frames: Array, focus: Array) -> Prediction:
        return estimator.apply(variables, frames, focus, train=False)[0]._replace(history=None)

    return infer


def write(output: str | Path | None, files: tuple[str, str], report: dict[str, Any], table: str) -> None:
    """Writes a report as JSON and its table, under the two names; nothing without `output`.

    Raises:
      InputError: as `staged_output`.
    """
    if output is not None:
        with staged_output(output, last=files[0]) as folder:
            (folder / files[0]).write_text(json.dumps(report, indent=2) + "\n")
            (folder / files[1]).write_text(table)


def compiled(function: Callable, *arguments: Any) -> Program:
    """Compiles a jitted function for its arguments and runs it once."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    program = lowered.compile()
    seconds = time.perf_counter() - start
    counted = (lowered.cost_analysis() or {}).get("flops", 0)
    memory = program.memory_analysis().temp_size_in_bytes / 1e6

    def run() -> None:
        jax.block_until_ready(program(*arguments))

    run()
    return Program(run, seconds, counted / 1e9 if counted > 0 else None, memory)


def in_turns(runs: Mapping[Hashable, Callable[[], None]], rounds: int) -> dict[Hashable, list[float]]:
    """Seconds of each run, `rounds` of them; all take their turn in each round, so that a ratio is of one moment."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product(dtype: str, side: int = MATRIX_SIDE) -> tuple[Callable[[], None], float]:
    """A product of two square matrices, with its GFLOPs: what the machine can do at best."""
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    program = jax.jit(lambda a: a @ a).lower(a).compile()

    def run() -> None:
        jax.block_until_ready(program(a))

    run()
    return run, 2 * side**3 / 1e9


def peak_memory() -> dict[str, float]:
    """The most this process has held so far: resident, and on the device where it counts. MB."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    stats = jax.devices()[0].memory_stats() or {}
    found = {"resident_MB": resident}
    if "peak_bytes_in_use" in stats:
        found["device_MB"] = stats["peak_bytes_in_use"] / 1e6
    return found
