"""Compile, count, time: what the benchmarks and the comparison share."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from dff_jax.runtime.files import staged_output, write_text

MATRIX_SIDE = 2048
Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], None]
"""One execution, waited for."""


class Program(NamedTuple):
    """A compiled program."""

    call: Callable
    compile_s: float  # tracing included; without the compilation cache, if that is off
    temporary_MB: float  # planned by the compiler beside arguments and results

    def run(self, *arguments: Any) -> Run:
        """An execution to time. It is done once here: the first allocates and loads."""

        def run() -> None:
            jax.block_until_ready(self.call(*arguments))

        run()
        return run


def compiled(function: Callable, *arguments: Any) -> Program:
    """Compiles a jitted function for its arguments, or their shapes."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Program(program, seconds, program.memory_analysis().temp_size_in_bytes / 1e6)


def count_gflops(function: Callable, *arguments: Any) -> float | None:
    """GFLOPs of a jitted function by XLA's count before optimisation; None if it counts nothing.

    The body of a loop counts once. Only the CPU client counts a program that is not compiled yet.
    """
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu), arguments)
    counted = (function.lower(*shapes).cost_analysis() or {}).get("flops", 0)
    return counted / 1e9 if counted > 0 else None


def round_robin(runs: Mapping[Key, Run], rounds: int) -> dict[Key, float]:
    """Median seconds of each run over `rounds`. Each round runs all of them once, so that a change in machine load
    meets all alike."""
    seconds: dict[Key, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_product(dtype: str, side: int | None = None) -> tuple[Run, float]:
    """A product of two square matrices and its GFLOPs: what the machine can do at best. No `side`: MATRIX_SIDE."""
    side = side or MATRIX_SIDE
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    return compiled(jax.jit(lambda a: a @ a), a).run(a), 2 * side**3 / 1e9


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, MB: resident, and on the device where that is counted."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    stats = jax.devices()[0].memory_stats() or {}
    on_device = {"device_MB": stats["peak_bytes_in_use"] / 1e6} if "peak_bytes_in_use" in stats else {}
    return {"resident_MB": resident} | on_device


def write(output: str | Path | None, files: tuple[str, str], report: dict[str, Any], text: str) -> None:
    """Writes a report as JSON and as text, under the two names; nothing without `output`.

    Raises:
      InputError: as `staged_output`.
    """
    if output is not None:
        with staged_output(output, last=files[0]) as folder:
            write_text(folder / files[0], json.dumps(report, indent=2) + "\n")
            write_text(folder / files[1], text)
