"""A stack of photographs to maps: what answers, units, memory, and the files.

An estimator works in q. Large images go through it in tiles (`tiled`), while the frames stay as they were photographed,
in memory or on disk.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dff_jax import config, estimators, focus_axis
from dff_jax.data.files.align import align_stack, remarks, report
from dff_jax.data.files.arrays import stack_from_arrays
from dff_jax.data.files.folder import Source, stacks_in
from dff_jax.data.files.frame_store import Allocate, allocator, on_disk
from dff_jax.data.files.reading import collecting
from dff_jax.data.files.stack import read_stack
from dff_jax.errors import InputError
from dff_jax.estimators.weights import PRETRAINED, LoadedEstimator, check_frames, identity, load_named
from dff_jax.focus_axis import Unit
from dff_jax.pictures import panels
from dff_jax.prediction.files import ALIGNMENT, FILES, write_alignment, write_maps
from dff_jax.prediction.result import Result
from dff_jax.prediction.tiled import RUNTIME, check_devices, estimate, memory_for_programs
from dff_jax.prediction.tiles import TilingOptions
from dff_jax.runtime.files import check_output, staged_output, write_text
from dff_jax.runtime.progress import track
from dff_jax.types import Estimator, FocalStack

STAGES_UP_TO = 2**22  # pixels of images of which the depths on the way to the answer are kept, too
IN_MEMORY = 1 / 8  # of `memory`: more than that of frames is kept on disk

Method = Literal["classical", "sml", "rdf", "rfvr_like"]
"""Methods without weights."""
Alignment = Literal["similarity", "translation", "affine", "homography"]


def predict(
    frames: np.ndarray | Sequence[np.ndarray],
    focus: Sequence[float] | None = None,
    *,
    unit: Unit | None = None,
    method: Method | None = None,
    weights: str | Path | None = None,
    iterations: int | None = None,
    tile: int = 1024,
    overlap: int | None = None,
    memory: float = 4.0,
    devices: int = 1,
    align: Alignment | None = None,
    progress: bool = False,
) -> Result:
    """Depth from a focal stack in memory.

    Args:
      frames: [Z,H,W,3], grey [Z,H,W], or a list of such frames; uint8, uint16, or float in [0,1]; any order.
      focus: [Z] focus settings in `unit`, one a frame; None: the frame index.
      unit: None: disparity if `focus` is given, otherwise index.

    The other arguments are those of `predict_to_folder`. `memory` does not count the given frames; on an accelerator
    the programs may take as much again there. With `align`, confidence is 0 where not all frames see.

    Raises:
      InputError: frames of several sizes or outside [0,1], focus settings that do not fit, unusable weights.
    """
    options = TilingOptions(tile, overlap, memory, devices, progress)
    chosen, notes = _choose(method, weights, iterations, options)
    stack, assumed = stack_from_arrays(frames, focus, unit)
    return _predict(stack, chosen, iterations, options, notes + assumed, align)


def predict_to_folder(
    source: Source,
    output: str | Path,
    *,
    focus: Sequence[float] | None = None,
    unit: Unit | None = None,
    reverse: bool = False,
    method: Method | None = None,
    weights: str | Path | None = None,
    iterations: int | None = None,
    max_size: int | None = None,
    tile: int = 1024,
    overlap: int | None = None,
    memory: float = 4.0,
    devices: int = 1,
    align: Alignment | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Depth of a folder, glob or list of photographs, written to a folder: the command `dff-jax predict`.

    Writes the files of `files.FILES`, and with `align` also alignment.png, before and after. The frames are decoded one
    by one. A large stack is kept in a file without a name on the disk of `output`.

    Args:
      source: a folder of frames, a quoted glob, the frames themselves, a TIFF file whose pages are the frames, or a
        folder of such folders, each of which gets a folder of its own in the output.
      output: folder for the maps.
      focus: focus settings, one a frame, in natural order of the file names, or in the order in which files are listed.
      unit: unit of the focus settings; default: from where they are read.
      reverse: the other end is the near one: the index is counted from the last file; of positions in mm or micron the
        smaller is the nearer.
      method: a method without weights.
      weights: a .safetensors file or a run folder; default: the network that comes with the package.
      iterations: iterations K of the unroll; default: as trained.
      max_size: longest side in pixels that the frames, and so all maps, are scaled down to.
      tile: longest side in pixels of the tiles that larger images are cut into (over about 1.5 tiles square).
      overlap: overlap of neighbouring tiles in pixels; default: as the method needs.
      memory: GB within which the process stays.
      devices: number of devices, each of which works on a tile.
      align: first brings the frames onto the middle one, by this kind of motion; needs the extra `align`.
      overwrite: replaces files in `output` that this program did not write, too.
      progress: shows progress on stderr.

    Returns:
      The summary, as in summary.json; of a folder of stacks {"stacks": {name: summary}}.

    Raises:
      InputError: bad photographs, focus settings, weights or output folder. They are found before anything is written;
        a disk that becomes full later leaves nothing behind either.
    """
    if source == "":
        raise InputError("source: an empty name; give a folder, a glob, or files")
    if stacks := stacks_in(source, output):
        given: dict[str, Any] = dict(
            focus=focus, unit=unit, reverse=reverse, method=method, weights=weights, iterations=iterations,
            max_size=max_size, tile=tile, overlap=overlap, memory=memory, devices=devices, align=align,
            overwrite=overwrite,
        )  # fmt: skip
        return _each(Path(str(source)), stacks, Path(output), progress, given)
    start = time.perf_counter()
    options = TilingOptions(tile, overlap, memory, devices, progress)
    files = FILES if align is None else (*FILES, ALIGNMENT)
    check_output(output, files, overwrite=overwrite)
    chosen, notes = _choose(method, weights, iterations, options)
    allocate = allocator(output, IN_MEMORY * memory * 1e9)
    stack, read = read_stack(
        source, focus=focus, unit=unit, reverse=reverse, max_size=max_size, allocate=allocate,
        memory=memory * 1e9 - RUNTIME,
    )  # fmt: skip
    if Path(output).resolve() in {file.resolve().parent for file in read.files}:
        raise InputError(f"{output}: is the folder of the frames; write the maps to another one")
    pixels = int(np.prod(stack.frames.shape[1:3]))
    check_output(output, needed=50 * pixels + 2**18 * (len(read.names) + 8))
    names = list(read.names)
    loading = threading.Thread(target=panels.load, daemon=True)  # an interrupted program does not wait for it
    loading.start()
    result = _predict(stack, chosen, iterations, options, notes + read.notes, align, names, allocate)
    if read.everywhere is not None:
        result.confidence[~read.everywhere] = 0
    result = result._replace(profile=read.profile, deep=stack.frames.dtype == np.uint16, unseen=read.nowhere)
    loading.join()  # two threads that import one module at once would see half of it
    summary = {
        "source": str(source) if isinstance(source, str | Path) else [str(item) for item in source],
        "frames": names,
        "focus": [float(value) if np.isfinite(value) else "infinity" for value in result.focus],
        "unit": focus_axis.base(result.unit),
        "near": {True: "larger", False: "smaller", None: "unknown"}[focus_axis.larger_is_nearer(result.unit)],
        "method": chosen.model.method,
        "weights": chosen.label or None,
        "iterations": _iterations(chosen, iterations),
        "size": list(result.depth.shape),
        "photograph_size": list(read.full_size),
        "notes": list(result.notes),
        "memory": {
            "bound_gb": memory if math.isfinite(memory) else None,
            "programs_gb": round(result.tiling.memory / 1e9, 3),
            "tile": list(result.tiling.tile),
            "tiles": result.tiling.tiles,
            "devices": devices,
            "frames_on_disk": on_disk(stack.frames),
        },
    }
    with staged_output(output, last="summary.json", overwrite=overwrite) as staging:
        frames = stack.frames if result.aligned is None else result.aligned.frames
        summary |= write_maps(staging, frames, names, result, f"{stack.name}, {chosen.model.method}")
        if result.aligned is not None:
            summary["alignment"] = report(result.aligned, names)
            write_alignment(staging, stack.frames, names, result.aligned)
        summary["seconds"] = round(time.perf_counter() - start, 2)
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        write_text(staging / "summary.json", text + "\n")
    return summary


def _each(source: Path, stacks: Sequence[Path], output: Path, progress: bool, given: dict[str, Any]) -> dict[str, Any]:
    """Depth of every stack below a folder, each written to the folder of its name below `output`.

    Raises:
      InputError: stacks that cannot be used; the others are done before.
    """
    done, problems = {}, []
    for stack in track(stacks, "stacks", len(stacks), shown=progress):
        name = stack.relative_to(source).as_posix()
        with collecting(problems):
            done[name] = predict_to_folder(stack, output / name, progress=False, **given)
    if problems:
        written = f"; {len(done)} others are written to {output}" if done else ""
        raise InputError(f"{len(problems)} of {len(stacks)} stacks cannot be used: {'; '.join(problems)}{written}")
    return {"stacks": done}


@functools.lru_cache(maxsize=8)
def _built(model: config.ModelConfig) -> Estimator:
    """The estimator of `model`. A network has no `global_statistics` and is built when it is traced: a cached program
    needs neither it nor flax."""
    if not model.trained:
        return estimators.build(model)
    build = functools.cache(lambda: estimators.build(model))
    return Estimator(lambda *a, **more: build().init(*a, **more), lambda *a, **more: build().apply(*a, **more))


def _choose(
    method: str | None, weights: str | Path | None, iterations: int | None, options: TilingOptions
) -> tuple[LoadedEstimator, tuple[str, ...]]:
    """What answers, labelled with its weights (or ""), and notes on the choice; raises InputError for bad options."""
    options.check()
    check_devices(options.devices)
    if method not in (None, *config.UNTRAINED):
        choices = ", ".join(config.UNTRAINED)
        raise InputError(f"method: {method!r} is unknown; choose one of {choices}, or give weights")
    if method and weights is not None:
        raise InputError(f"method, weights: {method} needs no weights; give one of the two")
    if iterations is not None and iterations < 0:
        raise InputError(f"iterations: must be at least 0, got {iterations}")
    notes: tuple[str, ...] = ()
    if method is None and weights is None:
        notes = ("the network of this package answers; --method classical does without one, --weights takes another",)
    if method is not None:
        model = config.model_preset(method)
        chosen = LoadedEstimator(model, _built(model), {}, "")
    else:
        label = PRETRAINED if weights is None else str(weights)
        loaded, _ = load_named(label)
        chosen = LoadedEstimator(loaded.model, _built(loaded.model), loaded.variables, label, loaded.info)
    if iterations is not None and chosen.model.num_iterations is None:
        notes += (f"iterations has no effect on {chosen.model.method}",)
    return chosen, notes


def _iterations(chosen: LoadedEstimator, wanted: int | None) -> int | None:
    """K of the unroll; None for a method without one."""
    configured = chosen.model.num_iterations
    return configured if wanted is None or configured is None else wanted


def _predict(
    stack: FocalStack, chosen: LoadedEstimator, iterations: int | None, options: TilingOptions, notes: tuple[str, ...],
    align: str | None, names: Sequence[str] | None = None, allocate: Allocate | None = None,
) -> Result:  # fmt: skip
    """`allocate` made the frames, so their memory counts; None: they are the caller's."""
    count = len(stack.focus)
    check_frames(chosen, count)
    chosen.model.check_unit(stack.unit)
    pixels, K = int(np.prod(stack.frames.shape[1:3])), _iterations(chosen, iterations)
    held = 0 if allocate is None or on_disk(stack.frames) else stack.frames.nbytes * (1 if align is None else 2)
    way = 4 * pixels * ((K or 0) + 3)  # bytes of the depths on the way to the answer
    stages = pixels <= STAGES_UP_TO and way <= options.memory * 1e9 / 16
    available = memory_for_programs(options.memory, pixels, held + way * stages)
    order = focus_axis.sort_order(stack.focus, stack.unit)
    if not np.array_equal(order, np.arange(count)):
        stack = stack._replace(frames=stack.frames[order], focus=stack.focus[order])
    aligned = None
    if align is not None:
        each = functools.partial(track, label="aligning", total=count - 1, unit="frame", shown=options.progress)
        aligned = align_stack(stack.frames, align, each=each, allocate=allocate or np.empty)
        stack = stack._replace(frames=aligned.frames)
        notes += remarks(aligned, list(names or [f"frame {i}" for i in order]))
    if options.overlap is None:
        options = options._replace(overlap=min(chosen.model.tile_overlap, options.tile // 2))
    maps, tiling = estimate(
        chosen.estimator, chosen.variables, stack, options, iterations=K, available=available,
        bytes_per_pixel=chosen.model.bytes_per_pixel, identity=identity(chosen.model), in_metres=chosen.model.in_metres,
        stages=stages,
    )  # fmt: skip
    for name in ("depth", "confidence", "disagreement"):
        if not np.isfinite(getattr(maps, name)).all():
            raise InputError(f"weights: {chosen.label or chosen.model.method} gives a {name} that is NaN or infinite")
    if aligned is not None:
        maps.confidence[~aligned.mask] = 0
    np.clip(maps.confidence, 0, 1, out=maps.confidence)
    np.maximum(maps.disagreement, 0, out=maps.disagreement)
    np.clip(maps.all_in_focus, 0, 1, out=maps.all_in_focus)
    depth = np.asarray(focus_axis.from_q(maps.depth, stack.unit))
    return Result(
        depth, maps.confidence, maps.disagreement, maps.all_in_focus, stack.focus, stack.unit, order, notes, tiling,
        aligned, maps.stages(),
    )  # fmt: skip
