"""What the parts of the report share: sizes, the clock, filled networks, the published peaks."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import LossConfig, ModelConfig, OptimizerConfig
from dff_jax.runtime.compile import jit
from dff_jax.studies.bench import measuring
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import TrainState
from dff_jax.training.step import make_update
from dff_jax.types import Batch, Variables

Shape = tuple[int, int, int]  # stacks B, frames Z, side of the pictures


class Settings(NamedTuple):
    """Sizes of all parts."""

    size: int = 256
    frames: int = 15
    batch: int = 8  # of training
    kinds: tuple[tuple[int, bool], ...] = ((1, False), (8, True), (8, False), (1, True))  # batch, training
    matrix_side: int = 8192
    groups: tuple[tuple[str, ...], ...] = (("physical", "dfv_diff"), ("paper", "tiny"), ("dfv_fv", "aifdnet", "dwild"))
    subject: str = "physical"  # of memory, scaling and training
    memory_iterations: tuple[int, ...] = (1, 3, 6, 12)
    iterations: tuple[int, ...] = (0, 3, 6, 12)
    numbers_of_frames: tuple[int, ...] = (5, 15, 25, 35)
    sizes: tuple[int, ...] = (128, 256, 384, 512)
    seconds: float = 1.0  # to time one thing for
    evaluations: int = 5  # during training


FULL = Settings()
SMALL = Settings(
    size=64, frames=5, batch=2, kinds=((1, False), (2, True)), matrix_side=512, groups=(("tiny", "dfv_diff"),),
    subject="tiny",
    memory_iterations=(1, 3), iterations=(0, 2, 4), numbers_of_frames=(3, 5, 7), sizes=(64, 96, 128), seconds=0.3,
    evaluations=2,
)  # fmt: skip

# Dense, TFLOP/s, from the makers' data sheets, by JAX's name of the card
PUBLISHED = {
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989.0, "tf32": 494.5, "float32": 67.0},
    "NVIDIA H200": {"bfloat16": 989.0, "tf32": 494.5, "float32": 67.0},
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
    "NVIDIA A100 80GB PCIe": {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
}


class Job(NamedTuple):
    """What a part is given. It fills its dict as it goes and saves after every step."""

    settings: Settings
    folder: Path
    report: dict[str, Any]  # all parts so far
    deadline: float  # of time.monotonic: begin nothing new after it
    save: Callable[[], None]

    def late(self) -> bool:
        return time.monotonic() > self.deadline


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def fill(shapes: Any, seed: int = 0) -> Any:
    """Numbers for the variables of a network, on the host, that keep its activations at about one.

    As good as an initialisation to time with, and nothing to compile.
    """
    rng = np.random.default_rng(seed)

    def one(path: tuple, x: Any) -> np.ndarray:
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("scale", "var"):
            return np.ones(x.shape, x.dtype)
        if name in ("bias", "mean"):
            return np.zeros(x.shape, x.dtype)
        spread = np.sqrt(1 / np.prod(x.shape[:-1])) if name == "kernel" else 0.1
        return (spread * rng.standard_normal(x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def variables_of(model: ModelConfig, frames: int) -> Variables:
    """Filled variables for stacks of so many frames. They are made for K = 1, and an estimator takes them at any K."""
    return _variables_of(model.replace_known(num_iterations=1, dtype="float32", gradient="auto"), frames)


@functools.cache
def _variables_of(model: ModelConfig, frames: int) -> Variables:
    shape = jax.ShapeDtypeStruct
    inputs = shape((1, frames, 64, 64, 3), np.float32), shape((1, frames), np.float32)
    return fill(jax.eval_shape(estimators.build(model).init, jax.random.key(0), *inputs))


def make_batch(shape: Shape, seed: int = 0) -> Batch:
    """Random frames and truth, on the host."""
    B, Z, size = shape
    frames = np.random.default_rng(seed).random((B, Z, size, size, 3), np.float32)
    focus = np.tile(np.linspace(10, 100, Z, dtype=np.float32), (B, 1))
    return Batch(frames, focus, 10 + 90 * frames[:, 0, ..., 0], np.ones((B, size, size), bool))


def inference(model: ModelConfig, shape: Shape) -> tuple[Callable, tuple]:
    """An inference and its arguments, on the host."""
    estimator = estimators.build(model)
    batch = make_batch(shape)
    return measuring.without_history(estimator), (variables_of(model, shape[1]), batch.frames, batch.focus)


def training_step(model: ModelConfig, shape: Shape) -> tuple[Callable, tuple[TrainState, Batch]]:
    """An update and its arguments, on the host."""
    estimator = estimators.build(model)
    tx = optimizers.build(OptimizerConfig(), 1000)
    given = variables_of(model, shape[1])
    params, stats = given["params"], given["batch_stats"]
    opt_state = jax.device_get(jax.jit(tx.init)(params))
    state = TrainState(np.int32(0), params, stats, opt_state, np.int32(-1))
    return make_update(estimator, tx, loss_of(model), model.coordinate), (state, make_batch(shape))


def loss_of(model: ModelConfig) -> LossConfig:
    """The loss that goes with a method."""
    if not model.num_scales:
        return LossConfig()
    return LossConfig(kind="multi_scale", scale_weights=(1.0,) * model.num_scales, penalty="smooth_l1")


@functools.cache
def stack_gflops(model: ModelConfig, frames: int, size: int, training: bool) -> float | None:
    """GFLOPs that one stack needs, nothing computed twice. XLA counts the body of a loop once, so iterations are
    counted one by one: f(K) = f(0) + K (f(1) - f(0))."""
    make = training_step if training else inference

    def count(changes: dict[str, Any]) -> float | None:
        function, arguments = make(dataclasses.replace(model, **changes), (1, frames, size))
        return measuring.count_gflops(jit(function), *arguments)

    if model.num_iterations is None:
        return count({})
    none, one = (count({"num_iterations": K, "gradient": "backprop"}) for K in (0, 1))
    return none + model.num_iterations * (one - none) if none and one else None


def shares_of_peak(report: dict[str, Any], dtype: str, gflops_per_s: float) -> dict[str, float]:
    """Of the measured and of the published peak, where known; float32 is what JAX makes of it by default."""
    device = report["parts"].get("device", {})
    found = {}
    if measured := device.get("peaks", {}).get(dtype):
        found["share_of_measured"] = gflops_per_s / 1000 / measured["TFLOPs_per_s"]
    published = PUBLISHED.get(report["device"], {})
    kind = "tf32" if dtype == "float32" and device.get("float32_is_tf32") else dtype
    if kind in published:
        found["share_of_published"] = gflops_per_s / 1000 / published[kind]
    return found


def variant(preset: str, **changes: Any) -> ModelConfig:
    """A preset with some fields changed."""
    return dataclasses.replace(configs.model_preset(preset), **changes)
