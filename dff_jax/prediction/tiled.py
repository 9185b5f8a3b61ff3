"""A stack through an estimator, tile by tile: within a bound of memory, on one device or several.

One program of one shape serves all tiles. Several devices work on a tile each: nothing passes between them, so
that the answer is that of one device. The compiler could also cut one tile into rows for several devices, with an
exchange of halos that it makes itself; with four that lowered the memory of each to between 28 % and 52 %, and took
twice to four times as long to compile, while a smaller tile costs only its overlap.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dff_jax import focus_axis
from dff_jax.data.files.frame_store import let_go
from dff_jax.errors import InputError
from dff_jax.prediction.tiles import LEAST, STRIDE, Tile, split
from dff_jax.runtime import program_cache as kept
from dff_jax.runtime.compile import jit
from dff_jax.runtime.progress import ProgressBar
from dff_jax.runtime.stopping import interrupt_held_back
from dff_jax.types import Estimator, FocalStack, History, Variables

RUNTIME = 0.7e9  # bytes of Python, JAX and its compiler
MAPS = 24  # bytes a pixel: those of `Maps`
DRAWING = 30  # bytes a pixel more while pictures of them are drawn

_tell = contextvars.ContextVar("tell", default=False)  # of compiling; as an argument it would keep programs apart


class Maps(NamedTuple):
    """What an estimator says of a stack, on the host; numpy float32."""

    depth: np.ndarray  # [H,W] in q
    confidence: np.ndarray  # [H,W]
    disagreement: np.ndarray  # [H,W] in q^2
    all_in_focus: np.ndarray  # [H,W,3]
    stages: np.ndarray  # [H,W,n] in q, if asked for: Dbar, D(0)..D(K), Dhat(1)..Dhat(T)


class Work(NamedTuple):
    """How the picture was cut."""

    tile: tuple[int, int]  # H, W
    tiles: int
    memory: int  # bytes of the program with what goes in and comes out: of all devices on CPU, else of each
    devices: int
    stages: tuple[str, ...]  # names of `Maps.stages`


class _Method(NamedTuple):
    estimator: Estimator
    identity: str | None
    iterations: int | None
    stages: bool


class _Program(NamedTuple):
    run: Any
    memory: int  # bytes, with what goes in and comes out
    stages: tuple[str, ...]


class _Programs(NamedTuple):
    apply: Any
    survey: Any  # None: not needed
    memory: int
    stages: tuple[str, ...]


def check_devices(count: int) -> None:
    """Raises InputError unless this process has so many devices."""
    have = jax.local_device_count()
    if not 1 <= count <= have:
        more = "; JAX_NUM_CPU_DEVICES simulates more" if jax.default_backend() == "cpu" else ""
        raise InputError(f"devices: must lie between 1 and the {have} that JAX sees here, got {count}{more}")


def left_for_programs(memory: float, pixels: int, frames: float) -> float:
    """Bytes of `memory` GB that are left to the programs beside a picture's maps and `frames` bytes of frames.

    Raises:
      InputError: not even the pictures can be drawn.
    """
    least = RUNTIME + (MAPS + DRAWING) * pixels + frames
    if memory * 1e9 < least:
        raise InputError(
            f"memory: {memory:g} GB are too little for the maps of {pixels / 1e6:.1f} megapixels; allow "
            f"{np.ceil(least / 1e8) / 10:.1f} GB or more (--memory), or scale the frames down (--max-size)"
        )
    if jax.default_backend() != "cpu":
        return memory * 1e9
    return memory * 1e9 - RUNTIME - MAPS * pixels - frames


def estimate(
    estimator: Estimator,
    variables: Variables,
    stack: FocalStack,
    *,
    iterations: int | None = None,
    tile: int = 512,
    overlap: int = 64,
    memory: float = math.inf,
    expected: float = 0.0,
    devices: int = 1,
    progress: bool = False,
    identity: str | None = None,
    stages: bool = False,
) -> tuple[Maps, Work]:
    """Runs an estimator over a stack whose frames are sorted, in tiles.

    Args:
      tile, overlap: as `tiles.split`; tiles become smaller where `memory` demands it.
      memory: bytes that programs may need, as `Work.memory` counts them.
      expected: of which, about, for each pixel of a frame, so that no program is compiled in vain.
      devices: so many tiles at a time, each on a device.
      identity: names the estimator among all, so that its programs may be kept between runs (`kept`); None: they are
        not.
      stages: also keeps the depths on the way to the answer.

    Raises:
      InputError: even the smallest tile needs more memory.
    """
    q = np.asarray(focus_axis.to_q(stack.focus, stack.unit), np.float32)[None]
    height, width = stack.frames.shape[1:3]
    variables = jax.device_put(variables, _everywhere(devices))
    with interrupt_held_back():
        wanted = (tile, overlap, memory, expected * _sharers(devices))
        method = _Method(estimator, identity, iterations, stages)
        told = _tell.set(progress)
        try:
            tiles, programs = _plan(method, variables, stack.frames, wanted, devices)
        finally:
            _tell.reset(told)
    if programs.survey is not None:
        means = 0.0
        for part, found in _answers(programs.survey, ({}, q), stack.frames, tiles, devices, "measuring", progress):
            means += np.einsum("hwn,h,w->n", found, part.down, part.across, dtype=np.float64) / (height * width)
        variables = {**variables, "global_statistics": jax.device_put(means.astype(np.float32), _everywhere(devices))}
    shapes = ((), (), (), (3,), (len(programs.stages),))
    total = Maps(*(np.zeros((height, width, *more), np.float32) for more in shapes))
    doing = "estimating depth"
    for part, answer in _answers(programs.apply, (variables, q), stack.frames, tiles, devices, doing, progress):
        for sums, values in zip(total, answer, strict=True):
            weight = part.weight.reshape(part.shape + (1,) * (values.ndim - 2))
            sums[part.rows, part.columns] += weight * values
    return total, Work(tiles[0].shape, len(tiles), programs.memory, devices, programs.stages)


def _answers(
    program: Any, given: tuple[Variables, np.ndarray], frames: np.ndarray, tiles: tuple[Tile, ...], devices: int,
    doing: str, progress: bool,
) -> Iterator[tuple[Tile, Any]]:  # fmt: skip
    """Each tile and what the program says of it, without the axis of the batch."""
    variables, q = given
    sharding = None if devices == 1 else NamedSharding(_mesh(devices), PartitionSpec("tiles"))
    with ProgressBar(doing, len(tiles), "tile", shown=progress) as bar:
        for start in range(0, len(tiles), devices):
            parts = tiles[start : start + devices]
            full = parts + parts[-1:] * (devices - len(parts))  # the last devices repeat a tile
            crops = np.stack([frames[:, part.rows, part.columns] for part in full])
            let_go(frames)
            with interrupt_held_back():
                answer = jax.device_get(program(variables, jax.device_put(crops, sharding), q))
            for i, part in enumerate(parts):
                yield part, jax.tree.map(lambda values, i=i: values[i], answer)
            bar.advance(len(parts))


def _plan(
    method: _Method, variables: Variables, frames: np.ndarray, wanted: tuple[int, int, float, float], devices: int
) -> tuple[tuple[Tile, ...], _Programs]:
    """The largest tiles whose programs keep within the memory: as wanted if possible, else as measured allows."""
    side, overlap, memory, expected = wanted
    count, height, width = frames.shape[:3]
    tiles, cut = split(height, width, side, overlap), False
    need = expected * count * math.prod(tiles[0].shape)
    while True:
        if need <= memory:
            shape = (devices, count, *tiles[0].shape, 3)
            programs = _programs(method, variables, shape, frames.dtype, len(tiles) > 1)
            need = programs.memory
            if need <= memory:
                return tiles, programs
        if cut and side == LEAST:
            raise InputError(
                f"memory: tiles of {tiles[0].shape[1]} x {tiles[0].shape[0]} pixels of {count} frames need "
                f"{need / 1e9:.2f} GB, and {memory / 1e9:.2f} GB are left for them; allow more "
                "(--memory), or scale the frames down (--max-size)"
            )
        fitting = int(math.sqrt(math.prod(tiles[0].shape) * memory / need)) // STRIDE * STRIDE
        side = max(LEAST, min(fitting, side if len(tiles) == 1 else side - STRIDE))
        tiles = split(height, width, side, min(overlap, side // 2), may_be_whole=False)
        need, cut = 0, True


def _programs(method: _Method, variables: Variables, shape: tuple[int, ...], dtype: Any, tiled: bool) -> _Programs:
    """For tiles [N,Z,h,w,3]; global statistics only if there are others."""
    frames, q = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((1, shape[1]), np.float32)
    survey, look_over = None, method.estimator.global_statistics
    if tiled and look_over is not None:
        bare = method._replace(iterations=None, stages=False)
        survey = _compiled(bare, "global_statistics", *_structure(({}, frames, q)))
        means = jax.eval_shape(look_over, jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32), q)
        variables = {**variables, "global_statistics": jax.ShapeDtypeStruct(means.shape[-1:], np.float32)}
    apply = _compiled(method, "apply", *_structure((variables, frames, q)), quickly=not tiled)
    need = max(program.memory for program in (survey, apply) if program)
    return _Programs(apply.run, survey and survey.run, need * _sharers(shape[0]), apply.stages)


def _structure(arguments: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in leaves)


@functools.lru_cache(maxsize=8)
def _compiled(
    method: _Method, part: str, tree: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], quickly: bool = False
) -> _Program:
    """`apply` without its history, or `global_statistics`, of tiles as photographed, each on a device of its own."""
    identity = method.identity
    devices, count, height, width = jax.tree.unflatten(tree, shapes)[1].shape[:4]
    sizes = [(x.shape, x.dtype.name) for x in shapes]
    key = (identity, part, method.iterations, method.stages, str(tree), sizes, quickly)
    keep = identity is not None and devices == 1
    if keep and (found := kept.load_program(*key)) is not None:
        return _Program(found[0], found[1]["memory"], tuple(found[1]["stages"]))
    store = keep and kept.folder() is not None
    if _tell.get():
        kept_how = ", kept for the next time" if store else ""
        print(f"compiling for {count} frames of {width} x {height} pixels{kept_how}", file=sys.stderr, flush=True)
    with kept.compiled_anew() if store else contextlib.nullcontext():
        compiled, names = _compile(method, part, jax.tree.unflatten(tree, shapes), quickly)
    found = compiled.memory_analysis()
    memory = found.temp_size_in_bytes + 2 * (found.argument_size_in_bytes + found.output_size_in_bytes)
    if store:
        kept.store_program(compiled, {"memory": memory, "stages": names}, *key)
    return _Program(compiled, memory, names)


def _compile(
    method: _Method, part: str, arguments: tuple[Variables, Any, Any], quickly: bool
) -> tuple[jax.stages.Compiled, tuple[str, ...]]:
    """The program, and the names of the stages that it gives."""
    estimator, names = method.estimator, []

    def run(variables, frames, focus):
        if jnp.issubdtype(frames.dtype, jnp.integer):
            frames = frames.astype(jnp.float32) / jnp.iinfo(frames.dtype).max
        if part == "global_statistics":
            return estimator.global_statistics(frames, focus)
        answer, _ = estimator.apply(variables, frames, focus, train=False, num_iterations=method.iterations)
        found = _stages(answer.history) if method.stages and answer.history is not None else {}
        names[:] = found
        stages = jnp.stack([*found.values()], -1) if found else jnp.zeros((*answer.depth.shape, 0))
        return answer.depth, answer.confidence, answer.disagreement, answer.all_in_focus, stages

    devices = arguments[1].shape[0]
    if devices == 1:
        return jit(run, quickly).lower(*arguments).compile(), tuple(names)
    mesh, tiles = _mesh(devices), PartitionSpec("tiles")
    each = jax.shard_map(
        run, mesh=mesh, in_specs=(PartitionSpec(), tiles, PartitionSpec()), out_specs=tiles, check_vma=False
    )
    where = _everywhere(devices), NamedSharding(mesh, tiles), _everywhere(devices)
    return jit(each, in_shardings=where).lower(*arguments).compile(), tuple(names)


def _stages(history: History) -> dict[str, jax.Array]:
    """Name -> [B,H,W] in q."""
    found = {"Dbar": history.expected}
    found |= {f"D({k})": history.iterates[:, k] for k in range(history.iterates.shape[1])}
    steps = history.refined.shape[1]
    return found | {f"refined {t + 1}" if steps > 1 else "refined": history.refined[:, t] for t in range(steps)}


def _sharers(devices: int) -> int:
    """How many devices share a memory."""
    return devices if jax.default_backend() == "cpu" else 1


def _mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (devices,), ("tiles",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:devices]
    )


def _everywhere(devices: int) -> NamedSharding | None:
    """All of it on each device; None for one device, the default."""
    return None if devices == 1 else NamedSharding(_mesh(devices), PartitionSpec())
