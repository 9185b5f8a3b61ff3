"""Is the device right? Each check compares with float64 on the host, or with this process's CPU, in full precision."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import LossConfig, ModelConfig, OptimizerConfig, TrainingConfig, WorldConfig
from dff_jax.data import live
from dff_jax.ops import convolutions
from dff_jax.studies.bench.gpu_report.job import Job, fill, inference, make_batch, say, training_step
from dff_jax.training import checkpoint, parallel
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import TrainState
from dff_jax.training.step import make_update
from dff_jax.unroll import Problem, initial_depth, learned_step, proximal_gradient, solve

SHAPE = (2, 4, 32)  # stacks, frames, side
FOCUS_RANGE = 90.0  # of `job.make_batch`

Found = tuple[float, float]  # error, tolerance


def run(job: Job, out: dict[str, Any]) -> None:
    """Fills `out["rows"]` with name, error, tolerance and whether it passed; a check that breaks is one that failed."""
    out["rows"], out["left_out"] = [], []
    for name, check in all_checks():
        if job.late():
            out["left_out"].append(name)
            continue
        row: dict[str, Any] = {"check": name}
        try:
            with jax.default_matmul_precision("highest"):
                row["error"], row["tolerance"] = check()
            row["passed"] = bool(row["error"] <= row["tolerance"])
        except Exception as error:  # reported, and the next check goes on
            row |= {"passed": False, "raised": f"{type(error).__name__}: {error}"[:500]}
        out["rows"].append(row)
        say(f"check {'passed' if row['passed'] else 'FAILED'}: {name} {row.get('raised', row.get('error'))}")
        job.save()


def _on_cpu(tree: Any) -> Any:
    return jax.device_put(tree, jax.devices("cpu")[0])


def _on_device(tree: Any) -> Any:
    return jax.device_put(tree, jax.devices()[0])


def _jit(function: Callable, backend: str | None = None) -> Callable:
    """Unoptimised on a CPU, which takes longer to compile these than to run them."""
    on_cpu = (backend or jax.default_backend()) == "cpu"
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None)


def distance(got: Any, want: Any) -> float:
    """|got - want| / |want| over all leaves of two trees, in the Euclidean norm."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    difference = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float(np.sqrt(difference / sum(float((b**2).sum()) for _, b in pairs)))


# Convolutions: every lowering, on the device, against sums in float64 ---------------------------------------


def _reference(x: np.ndarray, kernel: np.ndarray, dilation: int = 1) -> np.ndarray:
    """SAME convolution [B,Z,H,W,C] by [kz,ky,kx,C,O] in float64."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    steps = (1, dilation, dilation)
    reach = [s * (k // 2) for s, k in zip(steps, kernel.shape[:3], strict=True)]
    padded = np.pad(x, [(0, 0), *((r, r) for r in reach), (0, 0)])
    total = np.zeros((*x.shape[:4], kernel.shape[-1]))
    for at in np.ndindex(*kernel.shape[:3]):
        window = tuple(slice(s * i, s * i + n) for s, i, n in zip(steps, at, x.shape[1:4], strict=True))
        total += padded[(slice(None), *window)] @ kernel[at]
    return total


def _convolution(lowering: Callable, x_shape: tuple, kernel_shape: tuple, want: Callable) -> Callable[[], Found]:
    """A check of a lowering; its gradients are checked by <conv(x, k), g> being linear in x and in k."""

    def check() -> Found:
        rng = np.random.default_rng(0)
        x, kernel = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, kernel_shape))
        expected = want(x, kernel)
        g = rng.standard_normal(expected.shape).astype(np.float32)

        def loss(x, kernel):
            y = lowering(x, kernel)
            return (y * g).sum(), y

        (_, y), (dx, dk) = _jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*_on_device((x, kernel)))
        u, v = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, kernel_shape))
        slopes = (np.vdot(u, dx), (want(u, kernel) * g).sum()), (np.vdot(v, dk), (want(x, v) * g).sum())
        scale = np.linalg.norm(expected) * np.linalg.norm(g) / np.sqrt(g.size)
        return max(distance(y, expected), *(float(abs(a - b) / scale) for a, b in slopes)), 1e-5

    return check


def _two_dimensional(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return _reference(x[:, None], kernel[None])[:, 0]


def _enlarged(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return _two_dimensional(x.repeat(2, 1).repeat(2, 2), kernel)


def _by_products(x, kernel):
    return convolutions.conv_by_products(x, kernel, 1, ((1, 1), (1, 1)))


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = ((1, 1), (1, 1))
    return convolutions.conv_general(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = ((1, 1), (1, 1))
    return convolutions.upsampled_conv_general(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _dilated(lowering: Callable) -> Callable[[], Found]:
    return _convolution(
        lambda x, k: lowering(x, k, 1, 2), (2, 4, 12, 16, 8), (3, 3, 3, 8, 4), lambda x, k: _reference(x, k, 2)
    )


# The network ------------------------------------------------------------------------------------------------


def _small(**changes: Any) -> ModelConfig:
    return dataclasses.replace(configs.tiny(), num_iterations=2, **changes)


@functools.cache
def _depth(precision: str | None) -> np.ndarray:
    function, arguments = inference(_small(), SHAPE)
    with jax.default_matmul_precision(precision):
        return np.asarray(_jit(function)(*_on_device(arguments)).depth)


def _forward() -> Found:
    function, arguments = inference(_small(), SHAPE)
    cpu = np.asarray(_jit(function, "cpu")(*_on_cpu(arguments)).depth)
    return float(np.abs(_depth("highest") - cpu).max() / FOCUS_RANGE), 3e-4


def _default_precision() -> Found:
    """What JAX's default (TF32 on new cards) changes in the depth: the mean over pixels, as a share of the range."""
    return float(np.abs(_depth(None) - _depth("highest")).mean() / FOCUS_RANGE), 2e-3


def _update() -> Found:
    """The device rematerialises a rolled loop, the CPU goes back through the plain steps."""
    ours, (state, batch) = training_step(_small(gradient="remat"), SHAPE)
    plain, _ = training_step(_small(gradient="backprop"), SHAPE)
    (now, logged), (cpu, wanted) = jax.device_get(
        (_jit(ours)(*_on_device((state, batch))), _jit(plain, "cpu")(*_on_cpu((state, batch))))
    )
    moments = [optax.tree_utils.tree_get(one.opt_state, "mu") for one in (now, cpu)]
    loss = float(abs(logged["loss"] - wanted["loss"]) / abs(wanted["loss"]))
    return max(loss, distance(*moments), distance(now.batch_stats, cpu.batch_stats)), 5e-3


def _world() -> Found:
    """Share of values that are not as the CPU's: frames by more than one of 255 levels, depth by more than 0.1 %."""
    world = WorldConfig(height=64, width=64, num_frames=5, num_objects=4)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 2))

    def render(keys: jax.Array) -> Any:
        return live.make_batch(jax.random.wrap_key_data(keys), world)

    ours, cpu = jax.device_get((_jit(render)(_on_device(keys)), _jit(render, "cpu")(_on_cpu(keys))))
    frames = np.abs(ours.frames - cpu.frames) > 1.01 / 255
    depth = np.abs(ours.depth - cpu.depth) > 1e-3 * FOCUS_RANGE
    return float(max(frames.mean(), depth.mean())), 2e-3


# The unroll, in float64 -------------------------------------------------------------------------------------


def _unroll_problem() -> tuple[dict[str, Any], Callable[..., Any]]:
    shape = (2, 8, 9)
    rng = np.random.default_rng(0)
    learned = {
        "candidates": rng.random((*shape, 3)), "weights": 0.2 + rng.random((*shape, 3)), "step_size": np.float64(-1),
        "regularization": np.float64(-1.5), "prox": rng.standard_normal((3, 3)) / 3,
    }  # fmt: skip

    def prox(params, z, problem, eta):
        around = jnp.pad(z, ((0, 0), (1, 1), (1, 1)), "edge")
        seen = sum(params[i, j] * around[:, i : i + 8, j : j + 9] for i in range(3) for j in range(3))
        return z + 0.3 * eta * problem.regularization * jnp.tanh(seen)

    def loss(learned, **options):
        problem = Problem(learned["candidates"], learned["weights"], 0.1)
        shared = {name: learned[name] for name in ("prox", "step_size", "regularization")}
        depth, _ = solve(
            proximal_gradient(prox), problem, initial_depth(problem) + 0.5, step_size=learned_step, shared=shared,
            num_iterations=4, **options,
        )  # fmt: skip
        return ((depth - 0.3) ** 2).sum()

    return learned, loss


def _unroll_modes() -> Found:
    with jax.enable_x64(True):
        learned, loss = _unroll_problem()
        ways = ({"gradient": "remat"}, {"gradient": "backprop"}, {"gradient": "backprop", "unroll": True})
        found = [
            jax.device_get(_jit(jax.grad(lambda x, way=way: loss(x, **way)))(_on_device(learned))) for way in ways
        ]
    return max(distance(found[0], found[1]), distance(found[0], found[2])), 1e-10


def _finite_differences() -> Found:
    with jax.enable_x64(True):
        learned, loss = _unroll_problem()
        value = _jit(loss)
        gradient = jax.device_get(_jit(jax.grad(loss))(_on_device(learned)))
        worst = 0.0
        for seed in range(3):
            direction = fill(learned, seed)
            ends = [jax.tree.map(lambda x, d, s=s: x + s * 1e-5 * d, learned, direction) for s in (1, -1)]
            slope = float(value(_on_device(ends[0])) - value(_on_device(ends[1]))) / 2e-5
            exact = sum(float(np.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
            worst = max(worst, abs(slope - exact) / abs(exact))
    return worst, 1e-6


# Devices and checkpoints ------------------------------------------------------------------------------------


def _jit_and_pmap() -> Found:
    """One update over all devices by each, and the spread of loss, moments and statistics between them.

    Random frames have maxima that nearly tie, where rounding decides which pixel a gradient goes to. So each of the
    three may differ by 1e-3, and up to a tenth by as much as frames do that differ by 1e-5; 1 is the tolerance used up.
    """
    model, number = _small(), jax.device_count()
    batch = make_batch((2 * number, *SHAPE[1:]))
    moved = batch._replace(frames=batch.frames * np.float32(1 + 1e-5 * (-1) ** np.arange(SHAPE[2])[:, None]))
    _, (state, _) = training_step(model, SHAPE)
    found = []
    for mode, given in (("jit", (batch, moved)), ("pmap", (batch,))):
        devices = parallel.choose_devices(TrainingConfig(parallel=mode), 2 * number)
        learner = estimators.build(model)
        tx = optimizers.build(OptimizerConfig(), 1000)
        update = make_update(learner, tx, LossConfig(), model.coordinate)
        compiled = parallel.compile_update(devices, update)
        for seen in given:
            now, logged = compiled(parallel.to_devices(devices, state), parallel.put_batch(devices, seen))
            now, logged = jax.device_get(parallel.local_copy(devices, (now, logged)))
            moments = optax.tree_utils.tree_get(now.opt_state, "mu")
            found.append((logged["loss"], moments, now.batch_stats))
    by_jit, from_moved, by_pmap = found
    spread, most = ([distance(a, b) for a, b in zip(other, by_jit, strict=True)] for other in (by_pmap, from_moved))
    return max(found / min(0.1, max(1e-3, moves)) for found, moves in zip(spread, most, strict=True)), 1.0


def _checkpoint() -> Found:
    """Number of leaves of a training state that orbax brings back with other bits, types or on another device."""
    model = _small()
    _, (state, _) = training_step(model, SHAPE)
    devices = parallel.choose_devices(TrainingConfig(), jax.device_count())
    now: TrainState = parallel.to_devices(devices, state)
    config = configs.Config(name="checkpoint", model=model)
    with tempfile.TemporaryDirectory() as folder, checkpoint.open_manager(Path(folder), 1) as manager:
        checkpoint.save(manager, config, now, {"next_index": 3}, checkpoint.Progress())
        abstract = checkpoint.abstract(now, devices.whole)
        back = checkpoint.restore(manager, config, abstract)
    same = [
        a.dtype == b.dtype and a.sharding == b.sharding and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*map(jax.tree.leaves, (now, back.state)), strict=True)
    ]
    return float(same.count(False) + (back.data != {"next_index": 3})), 0.0


def all_checks() -> Iterator[tuple[str, Callable[[], Found]]]:
    """Names and checks."""
    flat, volume = ((2, 16, 20, 6), (3, 3, 6, 5)), ((2, 4, 12, 16, 8), (3, 3, 3, 8, 4))
    yield "convolution 3 x 3, as this device has it", _convolution(_plain, *flat, _two_dimensional)
    yield "convolution 3 x 3, by products", _convolution(_by_products, *flat, _two_dimensional)
    yield "convolution of an enlarged picture, as this device has it", _convolution(_upsampled, *flat, _enlarged)
    yield "convolution of an enlarged picture, by phases", _convolution(convolutions.conv_upsampled, *flat, _enlarged)
    yield "convolution 3 x 3 x 3, by XLA", _convolution(convolutions.conv3d_by_lax, *volume, _reference)
    yield "convolution 3 x 3 x 3, by slices", _convolution(convolutions.conv3d_by_slices, *volume, _reference)
    yield "dilated convolution, by XLA", _dilated(convolutions.conv3d_by_lax)
    yield "dilated convolution, by slices", _dilated(convolutions.conv3d_by_slices)
    yield "unroll: gradients of scan, remat and plain steps, float64", _unroll_modes
    yield "unroll: gradient against finite differences, float64", _finite_differences
    yield "tiny: depth against the CPU, share of the focus range", _forward
    yield "tiny: one update, rematerialised, against plain back-propagation on the CPU", _update
    yield "tiny: JAX's default precision against the highest, share of the focus range", _default_precision
    yield "procedural_live: share of values unlike the CPU's", _world
    yield f"tiny: one update by jit and by pmap, share of the tolerance, {jax.device_count()} devices", _jit_and_pmap
    yield "checkpoint: leaves that orbax brings back changed", _checkpoint
