"""Compile, count, time: what the benchmarks and the comparison share."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.runtime.files import staged_output
from dff_jax.types import Array, Estimator, Prediction

MATRIX_SIDE = 2048


class Program(NamedTuple):
    """A compiled program with its arguments."""

    run: Callable[..., None]  # one execution, waited for; with wait=False only queued
    compile_s: float  # tracing included; without the compilation cache, if that is off
    gflops: float | None  # by XLA's count; a custom kernel counts nothing
    temporary_MB: float  # planned by the compiler beside arguments and results
    planned_MB: float  # these, too


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


def compiled(function: Callable, *arguments: Any, count: bool = True) -> Program:
    """Compiles a jitted function for its arguments and runs it once; `count` its FLOPs, which is a lowering more."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    program = lowered.compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    whole = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes

    def run(wait: bool = True) -> None:
        result = program(*arguments)
        if wait:
            jax.block_until_ready(result)

    run()
    counted = count_gflops(function, *arguments) if count else None
    return Program(run, seconds, counted, memory.temp_size_in_bytes / 1e6, whole / 1e6)


def count_gflops(function: Callable, *arguments: Any) -> float | None:
    """GFLOPs of a jitted function by XLA's count, before optimisation; None if it counts nothing. The body of a loop
    counts once. Only the CPU's client counts what is not yet compiled, so that is who is asked."""
    there = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
    counted = (function.lower(*shapes).cost_analysis() or {}).get("flops", 0)
    return counted / 1e9 if counted > 0 else None


def in_turns(runs: Mapping[Hashable, Callable[[], None]], rounds: int) -> dict[Hashable, list[float]]:
    """Seconds of each run, `rounds` of them; all take their turn in each round, so that a ratio is of one moment."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_seconds(run: Callable[[], None], seconds: float, most: int = 30) -> tuple[float, int]:
    """The median of as many runs as fit into `seconds`, at least 3, and their number."""
    start = time.perf_counter()
    run()
    rounds = min(max(3, int(seconds / max(time.perf_counter() - start, 1e-6))), most)
    return statistics.median(in_turns({0: run}, rounds)[0]), rounds


def queued_seconds(run: Callable[..., None], number: int) -> float:
    """Seconds of each of `number` runs that are queued one behind the other, which hides the host's work."""
    start = time.perf_counter()
    for _ in range(number - 1):
        run(wait=False)
    run()
    return (time.perf_counter() - start) / number


def matrix_product(dtype: str, side: int = MATRIX_SIDE) -> tuple[Callable[..., None], float]:
    """A product of two square matrices, with its GFLOPs: what the machine can do at best."""
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    program = jax.jit(lambda a: a @ a).lower(a).compile()

    def run(wait: bool = True) -> None:
        result = program(a)
        if wait:
            jax.block_until_ready(result)

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
