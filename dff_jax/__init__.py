"""Depth from focus in JAX: several depth candidates a pixel, fused by unrolled proximal gradient descent.

    import dff_jax
    result = dff_jax.predict(frames, focus, unit="diopter")       # result.depth [H,W]
    depth_of = jax.jit(dff_jax.depth_function())                  # depth_of(frames [B,Z,H,W,3], focus [B,Z]).depth

Each name is imported when it is first used. So `import dff_jax` costs nothing, and `dff_jax.unroll` needs only JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dff_jax.config import Config, DataSpec, ModelConfig
    from dff_jax.errors import InputError
    from dff_jax.estimators import build
    from dff_jax.estimators.weights import load_estimator
    from dff_jax.evaluation.folder import evaluate_to_folder
    from dff_jax.prediction.function import depth_function
    from dff_jax.prediction.predict import predict, predict_to_folder
    from dff_jax.training.loop import train

__version__ = "0.1.0"
__all__ = [
    "Config", "DataSpec", "InputError", "ModelConfig", "build", "depth_function", "evaluate_to_folder",
    "load_estimator", "predict", "predict_to_folder", "train",
]  # fmt: skip

_HOMES = {
    "depth_function": "prediction.function",
    "predict": "prediction.predict", "predict_to_folder": "prediction.predict",
    "evaluate_to_folder": "evaluation.folder", "train": "training.loop", "build": "estimators",
    "load_estimator": "estimators.weights", "Config": "config", "DataSpec": "config", "ModelConfig": "config",
    "InputError": "errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dff_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dff_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return ["__version__", *__all__]
