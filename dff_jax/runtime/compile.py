"""How programs are compiled on this device."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

# XLA's newer CPU convolutions (YNNPACK) run on one core wherever a row of the picture is little work, which is most of
# this package; without them all cores work. Measured with `dff-jax bench model`.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# For a program that runs once or twice: the network of this package compiles in .7 of the time and runs 4 % slower (ten
# frames of 640 x 480 on two cores; `XLA_FLAGS=--xla_backend_optimization_level=1 dff-jax bench` shows it of others).
_QUICKLY = {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": os.cpu_count() or 1}


@functools.cache
def compiler_options(quickly: bool = False) -> dict[str, Any] | None:
    """For `jax.jit(..., compiler_options=...)`; None where the device or this version of XLA knows none.

    Args:
      quickly: for a program that runs once or twice, so that compiling it counts for more.
    """
    if jax.default_backend() != "cpu":
        return None
    flags = os.environ.get("XLA_FLAGS", "")  # which these options would override
    options = _CPU_OPTIONS | {name: value for name, value in _QUICKLY.items() if quickly and name not in flags}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return compiler_options() if quickly else None
    return options


def jit(function: Callable, quickly: bool = False, **options: Any) -> Callable:
    """`jax.jit` with `compiler_options`, chosen at the first call, as choosing them starts JAX's backend."""

    @functools.cache
    def compiled() -> Callable:
        return jax.jit(function, compiler_options=compiler_options(quickly), **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return compiled()(*args, **kwargs)

    call.lower = lambda *args, **kwargs: compiled().lower(*args, **kwargs)
    return call
