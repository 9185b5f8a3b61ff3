"""A stack through an estimator, tile by tile: within a bound of memory, on one device or several.

One program of one shape serves all tiles. With several devices each one works on a tile of its own, and nothing passes
between them, so the answer is that of one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Compiled

from dff_jax import focus_axis
from dff_jax.data.files.frame_store import release_pages
from dff_jax.errors import InputError
from dff_jax.prediction.result import TilingReport
from dff_jax.prediction.tiles import LEAST, STRIDE, Tile, TilingOptions, split
from dff_jax.runtime.compile import cache_folder, exported, jit
from dff_jax.runtime.progress import ProgressBar, say
from dff_jax.runtime.stopping import interrupt_held_back
from dff_jax.types import Estimator, FocalStack, Variables

RUNTIME = 0.7e9  # bytes of Python, JAX and its compiler
MAPS = 24  # bytes a pixel: those of `Maps`
DRAWING = 30  # bytes a pixel more while images of them are drawn
PROGRAMS = 8
"""Compiled programs that stay in memory for the next call."""

_programs: dict[Any, Compiled] = {}


class Maps(NamedTuple):
    """The answer for a stack, on the host; float32, but depths float64 where `focus_axis.origin` took one off."""

    depth: np.ndarray  # [H,W] in q
    confidence: np.ndarray  # [H,W]
    disagreement: np.ndarray  # [H,W] in q^2
    all_in_focus: np.ndarray  # [H,W,3]
    # Depths in q on the way to the answer, if they were asked for, else none (n = 0)
    expected: np.ndarray  # [H,W,1] Dbar
    iterates: np.ndarray  # [H,W,K+1]
    refined: np.ndarray  # [H,W,T]

    def stages(self) -> dict[str, np.ndarray]:
        """Name -> [H,W] in q."""
        steps = self.refined.shape[-1]
        names = ["Dbar"] * self.expected.shape[-1] + [f"D({k})" for k in range(self.iterates.shape[-1])]
        names += [f"refined {t + 1}" if steps > 1 else "refined" for t in range(steps)]
        maps = (values[..., i] for values in self[4:] for i in range(values.shape[-1]))
        return dict(zip(names, maps, strict=True))


def check_devices(count: int) -> None:
    """Raises InputError unless this process has so many devices."""
    have = jax.local_device_count()
    if not 1 <= count <= have:
        more = "; JAX_NUM_CPU_DEVICES simulates more" if jax.default_backend() == "cpu" else ""
        raise InputError(f"devices: must lie between 1 and the {have} that JAX sees here, got {count}{more}")


def memory_for_programs(memory: float, pixels: int, frames: float) -> float:
    """Bytes of `memory` GB that remain for the programs beside the maps of an image and `frames` bytes of frames.

    Raises:
      InputError: too little even for drawing the maps.
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
    options: TilingOptions,
    *,
    iterations: int | None = None,
    available: float = math.inf,
    bytes_per_pixel: float = 0.0,
    identity: str | None = None,
    in_metres: bool = False,
    stages: bool = False,
) -> tuple[Maps, TilingReport]:
    """Runs an estimator over a stack whose frames are sorted, in tiles.

    Args:
      options: with an `overlap`; tiles become smaller where `available` demands it.
      iterations: K of the unroll; None: as configured.
      available: bytes that programs may need, as `TilingReport.memory` counts them.
      bytes_per_pixel: about how many of them for each pixel of a frame, so that no program is compiled in vain.
      identity: names the estimator among all others, for the cache on disk; None: its programs are not written there.
      in_metres: the method needs q itself, as `ModelConfig.in_metres`.
      stages: also returns the depths on the way to the answer.

    Raises:
      InputError: even the smallest tile needs more memory.
    """
    devices = options.devices
    settings = focus_axis.to_q(stack.focus, stack.unit)
    origin = np.float64(0) if in_metres else focus_axis.origin(settings)
    q = np.asarray(settings - origin, np.float32)[None]
    height, width = stack.frames.shape[1:3]
    variables = jax.device_put(variables, _everywhere(devices))
    method = (estimator, identity, iterations, stages)

    def programs(tiles: tuple[Tile, ...]) -> tuple[Compiled, Compiled | None]:
        """For tiles of this shape: `apply`, and `global_statistics` where it is needed."""
        shape = (devices, len(stack.frames), *tiles[0].shape, 3)
        frames = jax.ShapeDtypeStruct(shape, stack.frames.dtype)
        focus, given, first = jax.ShapeDtypeStruct(q.shape, q.dtype), variables, None
        if len(tiles) > 1 and estimator.global_statistics is not None:
            first = _compiled((estimator, identity), _statistics, ({}, frames, focus), options.progress)
            whole = jax.ShapeDtypeStruct((1, *shape[1:]), np.float32)
            count = jax.eval_shape(estimator.global_statistics, whole, focus).shape[-1]
            given = {**variables, "global_statistics": jax.ShapeDtypeStruct((count,), np.float32)}
        quickly = len(tiles) == 1
        return _compiled(method, _answer, (given, frames, focus), options.progress, quickly), first

    with interrupt_held_back():
        tiles, (apply, statistics), memory = _plan(programs, stack.frames.shape, options, available, bytes_per_pixel)
    if statistics is not None:
        means = 0.0
        for part, found in _run(statistics, ({}, q), stack.frames, tiles, options, "measuring"):
            means += np.einsum("hwn,h,w->n", found, part.down, part.across, dtype=np.float64) / (height * width)
        variables = {**variables, "global_statistics": jax.device_put(np.float32(means), _everywhere(devices))}
    total = None
    for part, found in _run(apply, (variables, q), stack.frames, tiles, options, "estimating depth"):
        if total is None:
            total = Maps(*(np.zeros((height, width, *values.shape[2:]), np.float32) for values in found))
        for sums, values in zip(total, found, strict=True):
            weight = part.weight.reshape(part.shape + (1,) * (values.ndim - 2))
            sums[part.rows, part.columns] += weight * values
    assert total is not None  # there is at least one tile
    if origin:
        moved = ("depth", "expected", "iterates", "refined")
        total = total._replace(**{name: getattr(total, name) + origin for name in moved})
    return total, TilingReport(tiles[0].shape, len(tiles), memory, devices)


def _plan(
    programs: Callable, shape: tuple[int, ...], options: TilingOptions, available: float, bytes_per_pixel: float
) -> tuple[tuple[Tile, ...], tuple[Compiled, Compiled | None], int]:
    """The largest tiles whose programs need no more than `available` bytes, these programs and what they need.

    Args:
      programs: compiles for given tiles.
      shape: Z, H, W, 3.
    """
    count, height, width = shape[:3]
    side, overlap = options.tile, options.overlap or 0
    tiles, cut = split(height, width, side, overlap), False
    need = bytes_per_pixel * _sharers(options.devices) * count * math.prod(tiles[0].shape)
    while True:
        if need <= available:
            found = programs(tiles)
            need = max(_bytes(program) for program in found if program) * _sharers(options.devices)
            if need <= available:
                return tiles, found, need
        if cut and side == LEAST:
            raise InputError(
                f"memory: tiles of {tiles[0].shape[1]} x {tiles[0].shape[0]} pixels of {count} frames need "
                f"{need / 1e9:.2f} GB, and {available / 1e9:.2f} GB are left for them; allow more "
                "(--memory), or scale the frames down (--max-size)"
            )
        fitting = int(math.sqrt(math.prod(tiles[0].shape) * available / need)) // STRIDE * STRIDE
        side = max(LEAST, min(fitting, side if len(tiles) == 1 else side - STRIDE))
        tiles = split(height, width, side, min(overlap, side // 2), may_be_whole=False)
        need, cut = 0, True


def _run(
    program: Compiled, given: tuple[Variables, np.ndarray], frames: np.ndarray, tiles: tuple[Tile, ...],
    options: TilingOptions, label: str,
) -> Iterator[tuple[Tile, Any]]:  # fmt: skip
    """Each tile and the program's output for it, without the axis of the batch."""
    variables, q = given
    devices = options.devices
    sharding = None if devices == 1 else NamedSharding(_mesh(devices), PartitionSpec("tiles"))
    with ProgressBar(label, len(tiles), "tile", shown=options.progress) as bar:
        for start in range(0, len(tiles), devices):
            parts = tiles[start : start + devices]
            full = parts + parts[-1:] * (devices - len(parts))  # the last devices repeat a tile
            crops = np.stack([frames[:, part.rows, part.columns] for part in full])
            release_pages(frames)
            with interrupt_held_back():
                found = jax.device_get(program(variables, jax.device_put(crops, sharding), q))
            for i, part in enumerate(parts):
                yield part, jax.tree.map(lambda values, i=i: values[i], found)
            bar.advance(len(parts))


def _compiled(
    method: tuple, make: Callable[..., Callable], arguments: tuple[Variables, Any, Any], progress: bool,
    quickly: bool = False,
) -> Compiled:  # fmt: skip
    """The program `make(*method)` for these arguments: from memory, from the cache on disk, or compiled now.

    Args:
      method: the estimator, its identity, and what else decides on the program.
      arguments: variables, frames [N,Z,h,w,3] with a tile for each of N devices, focus [1,Z]; arrays or their shapes.
    """
    leaves, tree = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
    key = (method, make, tree, shapes, quickly)
    if key not in _programs:
        devices, count, height, width = arguments[1].shape[:4]
        run, arguments = make(*method), jax.tree.unflatten(tree, shapes)
        kept = devices == 1 and method[1] is not None and cache_folder() is not None

        def traced(*given: Any) -> Any:
            if progress:
                later = ", kept for the next time" * kept
                say(f"compiling for {count} frames of {width} x {height} pixels{later}")
            return run(*given)

        if kept:
            sizes = [(x.shape, x.dtype.name) for x in shapes]
            program = jit(exported(traced, arguments, make.__name__, method[1:], str(tree), sizes), quickly)
        elif devices == 1:
            program = jit(traced, quickly)
        else:
            specs = PartitionSpec(), PartitionSpec("tiles"), PartitionSpec()
            each = jax.shard_map(
                traced, mesh=_mesh(devices), in_specs=specs, out_specs=PartitionSpec("tiles"), check_vma=False
            )
            program = jit(each, in_shardings=tuple(NamedSharding(_mesh(devices), spec) for spec in specs))
        while len(_programs) >= PROGRAMS:
            del _programs[next(iter(_programs))]
        _programs[key] = program.lower(*arguments).compile()
    return _programs[key]


def _answer(estimator: Estimator, identity: str | None, iterations: int | None, stages: bool) -> Callable:
    """`Maps` [B,...] as a tuple, of frames as they were photographed."""

    def run(variables: Variables, frames: jax.Array, focus: jax.Array) -> tuple[jax.Array, ...]:
        found, _ = estimator.apply(variables, scaled(frames), focus, train=False, num_iterations=iterations)
        history, way = found.history, (jnp.zeros((*found.depth.shape, 0)),) * 3
        if stages and history is not None:
            way = history.expected[..., None], *(jnp.moveaxis(x, 1, -1) for x in (history.iterates, history.refined))
        return found.depth, found.confidence, found.disagreement, found.all_in_focus, *way

    return run


def _statistics(estimator: Estimator, identity: str | None) -> Callable:
    """The maps [B,h,w,n] of `global_statistics`, of frames as they were photographed."""
    assert estimator.global_statistics is not None
    return lambda variables, frames, focus: estimator.global_statistics(scaled(frames), focus)  # pyright: ignore


def scaled(frames: jax.Array) -> jax.Array:
    """Integers as floats in [0,1]."""
    if jnp.issubdtype(frames.dtype, jnp.integer):
        return frames.astype(jnp.float32) / jnp.iinfo(frames.dtype).max
    return frames


def _bytes(program: Compiled) -> int:
    """Memory of a program with its inputs and outputs."""
    found = program.memory_analysis()
    assert found is not None  # only a device that is not there has none
    return found.temp_size_in_bytes + 2 * (found.argument_size_in_bytes + found.output_size_in_bytes)


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
