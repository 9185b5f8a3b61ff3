"""The machine: its names and versions, and how fast it multiplies matrices."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax.studies.bench import measuring
from dff_jax.studies.bench.gpu_report.job import PUBLISHED, Job, say

TF32_ERROR = 1e-4  # relative error of a product: float32 is far below, TF32 (10 bits) above


def run(job: Job, out: dict[str, Any]) -> None:
    """Fills `out` with names, versions, memory, and the measured and published peaks."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    out |= {
        "kind": device.device_kind, "platform": jax.default_backend(), "number": jax.device_count(),
        "cores": os.cpu_count(), "memory_limit_MB": stats["bytes_limit"] / 1e6 if "bytes_limit" in stats else None,
        "driver": _driver(), "versions": versions(), "published_TFLOPs_per_s": PUBLISHED.get(device.device_kind),
    }  # fmt: skip
    job.save()
    out["peaks"] = {}
    for name, dtype, precision in (
        ("float32", "float32", None), ("float32, highest", "float32", "highest"), ("bfloat16", "bfloat16", None)
    ):  # fmt: skip
        with jax.default_matmul_precision(precision):
            product, gflops = measuring.matrix_product(dtype, job.settings.matrix_side)
            single, rounds = measuring.median_seconds(product, job.settings.seconds)
            seconds = min(single, measuring.queued_seconds(product, rounds))
            found = {"TFLOPs_per_s": gflops / seconds / 1000, "relative_error": _error(dtype)}
        out["peaks"][name] = found
        say(f"matrix product, {name}: {found['TFLOPs_per_s']:.4g} TFLOP/s, error {found['relative_error']:.1e}")
        job.save()
    out["float32_is_tf32"] = out["peaks"]["float32"]["relative_error"] > TF32_ERROR


def _error(dtype: str) -> float:
    """Of a product of two matrices, relative to float64, in the norm."""
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512)).astype(np.float32)
    got = np.asarray(jax.jit(jnp.matmul)(jnp.asarray(a, dtype), jnp.asarray(b, dtype)), np.float64)
    want = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and of PyTorch if it is there."""
    found = {}
    names = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint", "numpy")
    for name in (*names, "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _driver() -> str | None:
    """What nvidia-smi says: name, memory, driver, power limit, highest clock."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "name,memory.total,driver_version,power.limit,clocks.max.sm"
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or None
