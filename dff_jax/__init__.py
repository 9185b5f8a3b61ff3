"""Depth from focus in JAX: multi-candidate estimation fused by unrolled proximal gradient descent.

    import dff_jax
    result = dff_jax.predict(frames, focus, unit="diopter")       # result.depth [H,W]

Names are loaded when first used, so `import dff_jax` costs nothing and `dff_jax.unroll` needs only JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "predict": "dff_jax.prediction.predict",
    "predict_to_folder": "dff_jax.prediction.predict",
    "evaluate_to_folder": "dff_jax.evaluation.evaluate",
    "train": "dff_jax.training.loop",
    "build": "dff_jax.estimators",
    "load_estimator": "dff_jax.estimators.weights",
    "Config": "dff_jax.config",
    "ModelConfig": "dff_jax.config",
    "InputError": "dff_jax.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dff_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
