"""How programs are compiled on this device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA's newer CPU convolutions (YNNPACK) run on one core wherever a row of the picture is little work, which is most of
# this package; without them all cores work. Measured with `dff-jax bench model`.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """For `jax.jit(..., compiler_options=...)`; None where the device or this version of XLA knows none."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _CPU_OPTIONS


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with `compiler_options`, chosen at the first call, as choosing them starts JAX's backend."""

    @functools.cache
    def compiled() -> Callable:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return compiled()(*args, **kwargs)

    call.lower = lambda *args, **kwargs: compiled().lower(*args, **kwargs)
    return call
