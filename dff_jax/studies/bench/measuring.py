"""Compile, count, time: what the benchmarks and the comparison share."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from dff_jax.runtime.files import staged_output

MATRIX_SIDE = 2048
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Run = Callable[[], None]
"""One execution, waited for."""


class Program(NamedTuple):
    """A compiled program with its arguments."""

    run: Run
    compile_s: float  # tracing included; without the compilation cache, if that is off
    gflops: float | None  # XLA's count; a custom kernel counts nothing
    temporary_MB: float  # planned by the compiler beside arguments and results


def lower(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """Compiles a jitted function for its arguments (or their shapes): the program, and seconds with tracing."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - start


def compiled(function: Callable, *arguments: Any, count: bool = True) -> Program:
    """Compiles a jitted function for its arguments and runs it once; `count` its FLOPs, which lowers it again."""
    program, seconds = lower(function, *arguments)
    gflops = count_gflops(function, *arguments) if count else None
    return Program(_runner(program, *arguments), seconds, gflops, program.memory_analysis().temp_size_in_bytes / 1e6)


def _runner(program: Callable, *arguments: Any) -> Run:
    def run() -> None:
        jax.block_until_ready(program(*arguments))

    run()  # the first execution allocates and loads
    return run


def count_gflops(function: Callable, *arguments: Any) -> float | None:
    """GFLOPs of a jitted function by XLA's count before optimisation; None if it counts nothing.

    The body of a loop counts once. Only the CPU client counts a program that is not compiled yet.
    """
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu), arguments)
    counted = (function.lower(*shapes).cost_analysis() or {}).get("flops", 0)
    return counted / 1e9 if counted > 0 else None


def round_robin(runs: Mapping[Key, Callable[[], None]], rounds: int) -> dict[Key, float]:
    """Median seconds of each run over `rounds`. Each round runs all of them once, so that a change in machine load
    meets all alike."""
    seconds: dict[Key, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_product(dtype: str, side: int = MATRIX_SIDE) -> tuple[Run, float]:
    """A product of two square matrices and its GFLOPs: what the machine can do at best."""
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    return _runner(jax.jit(lambda a: a @ a).lower(a).compile(), a), 2 * side**3 / 1e9


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, MB: resident, and on the device where that is counted."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    stats = jax.devices()[0].memory_stats() or {}
    found = {"resident_MB": resident}
    if "peak_bytes_in_use" in stats:
        found["device_MB"] = stats["peak_bytes_in_use"] / 1e6
    return found


def table(rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]]) -> list[str]:
    """Lines of a markdown table: one for each of `rows`, each cell by its column's function."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    return lines + [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]


def number(value: float | None, form: str = ".4g", factor: float = 1.0) -> str:
    """A cell of a table; empty for None."""
    return "" if value is None else format(factor * value, form)


def write(output: str | Path | None, files: tuple[str, str], report: dict[str, Any], text: str) -> None:
    """Writes a report as JSON and as text, under the two names; nothing without `output`.

    Raises:
      InputError: as `staged_output`.
    """
    if output is not None:
        with staged_output(output, last=files[0]) as folder:
            (folder / files[0]).write_text(json.dumps(report, indent=2) + "\n")
            (folder / files[1]).write_text(text)
