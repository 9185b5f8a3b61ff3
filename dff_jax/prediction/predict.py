"""A stack of photographs to maps: units, memory, and the files written.

The estimator works in q; large pictures go through it in tiles (`tiled`), while the frames stay on the host, or on
disk, as they were photographed.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dff_jax import config, estimators, focus_axis
from dff_jax.data.files.align import Aligned, align_stack, remarks, report
from dff_jax.data.files.arrays import stack_from_arrays
from dff_jax.data.files.folder import Source, read_stack
from dff_jax.data.files.frame_store import Allocate, allocator, on_disk
from dff_jax.errors import InputError
from dff_jax.pictures import panels as pictures
from dff_jax.prediction.files import ALIGNMENT, FILES, write_alignment, write_maps
from dff_jax.prediction.tiled import Work, check_devices, estimate, left_for_programs
from dff_jax.prediction.tiles import check_tiling
from dff_jax.runtime.files import check_output, staged_output
from dff_jax.runtime.progress import track
from dff_jax.types import Estimator, FocalStack, Variables

STAGES_UP_TO = 2**22  # pixels of pictures of which the way to the answer is kept, too
MEMORY = 4.0  # GB, unless told otherwise
IN_MEMORY = 1 / 8  # of the memory: more than that of frames is kept on disk


class Result(NamedTuple):
    """Depth of one stack, on the host."""

    depth: np.ndarray  # [H,W] float32, in `unit`
    confidence: np.ndarray  # [H,W] float32 in [0,1]
    disagreement: np.ndarray  # [H,W] float32 >= 0: V of the candidates, in q^2 (for metres: 1/metre^2)
    all_in_focus: np.ndarray  # [H,W,3] float32 in [0,1]
    focus: np.ndarray  # [Z] float64, in `unit`, in the order used: ascending q
    unit: str
    order: np.ndarray  # [Z] which of the given frames stands where in `focus`
    notes: tuple[str, ...]  # what was assumed
    aligned: Aligned | None = None  # with `align`: the frames used, their motions, where all of them see
    work: Work | None = None  # the tiles and the memory they took
    stages: Mapping[str, np.ndarray] = {}  # [H,W] in q: Dbar, D(0)..D(K), refined; none of large pictures


class _Means(NamedTuple):
    """How large stacks are worked on."""

    tile: int
    overlap: int | None
    memory: float  # GB
    devices: int
    progress: bool


class _Method(NamedTuple):
    model: config.ModelConfig
    estimator: Estimator
    variables: Variables
    weights: str | None
    iterations: int | None
    num_frames: int | None  # the only Z it can take; None: any
    notes: tuple[str, ...]
    identity: str | None  # see `tiled.estimate`


def predict(
    frames: np.ndarray | Sequence[np.ndarray],
    focus: Sequence[float] | None = None,
    *,
    unit: str | None = None,
    method: str | None = None,
    weights: str | Path | None = None,
    iterations: int | None = None,
    tile: int = 1024,
    overlap: int | None = None,
    memory: float = MEMORY,
    devices: int = 1,
    align: str | None = None,
    progress: bool = False,
) -> Result:
    """Depth from a focal stack in memory.

    Args:
      frames: [Z,H,W,3], grey [Z,H,W], or a list of such frames; uint8, uint16, or float in [0,1]; any order.
      focus: [Z] focus settings in `unit`, one a frame; None: the frame index.
      unit: "disparity", "diopter", "metre" or "index"; None: disparity if `focus` is given, else index.
      method: one of `config.UNTRAINED`, estimators without weights; None: `weights` decide.
      weights: a `.safetensors` file or a run folder; without, the network of this package answers.
      iterations: K of the unroll; None: as trained.
      tile, overlap: side of a tile and how far neighbours overlap, pixels; pictures up to about 1.5 tiles
        square go in one piece. `overlap` None: by how far the method looks.
      memory: GB within which the process keeps beside the given frames; on an accelerator the programs have as much
        for themselves. Tiles become smaller for it.
      devices: so many tiles are worked on at a time.
      align: brings the frames onto the middle one first: "similarity", "translation", "affine" or "homography";
        confidence is 0 where not all frames see. Needs the extra `align`.
      progress: shows a bar on a terminal, plain lines elsewhere (stderr).

    Raises:
      InputError: frames of several sizes or outside [0,1], focus settings that do not fit, unusable weights.
    """
    means = _Means(tile, overlap, memory, devices, progress)
    _check(means)
    chosen = _choose(method, weights, iterations)
    stack, notes = stack_from_arrays(frames, focus, unit)
    return _predict(stack, chosen, means, notes, align)


def predict_to_folder(
    source: Source,
    output: str | Path,
    *,
    focus: Sequence[float] | None = None,
    unit: str | None = None,
    reverse: bool = False,
    method: str | None = None,
    weights: str | Path | None = None,
    iterations: int | None = None,
    max_size: int | None = None,
    tile: int = 1024,
    overlap: int | None = None,
    memory: float = MEMORY,
    devices: int = 1,
    align: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Depth of a folder, glob or list of photographs, written to `output`; `dff-jax predict`.

    Writes depth.npy [H,W] float32 in the unit of the focus axis, depth.png (16 bit, scale in the summary),
    depth_color.png, confidence.npy, disagreement.npy, all_in_focus.png, overview.png, report.html, points.ply
    and summary.json; with `align` also alignment.png, before and after.
    Arguments are those of `predict` and `folder.read_stack`; `max_size` makes all outputs smaller too. The frames are
    decoded one by one, and many of them kept in a file without a name on the disk of `output`, so that the process
    stays within `memory` with them.

    Returns:
      The summary, as in summary.json.

    Raises:
      InputError: bad photographs, focus settings, weights or output folder, found before anything is computed
        or written, save a disk that fills up meanwhile, which leaves nothing behind either.
    """
    start = time.perf_counter()
    means = _Means(tile, overlap, memory, devices, progress)
    _check(means)
    files = FILES if align is None else (*FILES, ALIGNMENT)
    check_output(output, files)
    chosen = _choose(method, weights, iterations)
    allocate = allocator(output, IN_MEMORY * memory * 1e9)
    stack, read = read_stack(source, focus=focus, unit=unit, reverse=reverse, max_size=max_size, allocate=allocate)
    if Path(output).resolve() in {file.resolve().parent for file in read.files}:
        raise InputError(f"{output}: is the folder of the frames; write the maps to another one")
    pixels = int(np.prod(stack.frames.shape[1:3]))
    check_output(output, files, needed=50 * pixels + 2**18 * (len(read.files) + 8))
    names = [file.name for file in read.files]
    loading = threading.Thread(target=pictures.load)
    loading.start()
    result = _predict(stack, chosen, means, read.notes, align, names, allocate)
    loading.join()  # half a module is what two threads would see that import it at once
    summary = {
        "source": str(source) if isinstance(source, str | Path) else [str(item) for item in source],
        "frames": names,
        "focus": result.focus.tolist(),
        "unit": result.unit,
        "near": {True: "larger", False: "smaller", None: "unknown"}[focus_axis.larger_is_nearer(result.unit)],
        "method": chosen.model.method,
        "weights": chosen.weights,
        "iterations": chosen.iterations,
        "size": list(result.depth.shape),
        "photograph_size": list(read.full_size),
        "notes": list(result.notes),
        "memory": {
            "bound_gb": memory,
            "programs_gb": round(result.work.memory / 1e9, 3),
            "tile": list(result.work.tile),
            "tiles": result.work.tiles,
            "devices": devices,
            "frames_on_disk": on_disk(stack.frames),
        },
    }
    with staged_output(output, last="summary.json") as staging:
        title = f"{stack.name}, {chosen.model.method}"
        frames = stack.frames if result.aligned is None else result.aligned.frames
        summary |= write_maps(staging, frames, names, result, title)
        if result.aligned is not None:
            summary["alignment"] = report(result.aligned, names)
            write_alignment(staging, stack.frames, names, result.aligned)
        summary["seconds"] = round(time.perf_counter() - start, 2)
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        (staging / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


@functools.lru_cache(maxsize=8)
def _built(model: config.ModelConfig) -> Estimator:
    """The estimator of `model`. A network has no `global_statistics` and is built when it is traced: a kept program
    needs neither it nor flax."""
    if not model.trained:
        return estimators.build(model)
    build = functools.cache(lambda: estimators.build(model))
    return Estimator(lambda *a, **more: build().init(*a, **more), lambda *a, **more: build().apply(*a, **more))


def _choose(method: str | None, weights: str | Path | None, iterations: int | None) -> _Method:
    from dff_jax.estimators.weights import PRETRAINED, identity, load_named

    if method not in (None, *config.UNTRAINED):
        choices = ", ".join(config.UNTRAINED)
        raise InputError(f"method: {method!r} is unknown; choose one of {choices}, or give weights")
    if method and weights is not None:
        raise InputError(f"method, weights: {method} needs no weights; give one of the two")
    if iterations is not None and iterations < 0:
        raise InputError(f"iterations: must be at least 0, got {iterations}")
    notes: tuple[str, ...] = ()
    if method is None and weights is None:
        weights = PRETRAINED
        notes = ("the network of this package answers; --method classical does without one, --weights takes another",)
    model, variables, label = config.model_preset(method or "classical"), {}, None
    num_frames = None
    if weights is not None:
        loaded, _ = load_named(weights)
        model, variables, label = loaded.model, loaded.variables, str(weights)
        num_frames = None if model.any_length else loaded.info.get("num_frames")
    used = model.num_iterations
    if iterations is not None:
        if used is None:
            notes += (f"iterations has no effect on {model.method}",)
        else:
            used = iterations
    return _Method(model, _built(model), variables, label, used, num_frames, notes, identity(model))


def _check(means: _Means) -> None:
    check_tiling(means.tile, means.overlap)
    check_devices(means.devices)
    if not means.memory > 0:
        raise InputError(f"memory: must be more than 0 GB, got {means.memory}")


def _predict(
    stack: FocalStack, chosen: _Method, means: _Means, notes: tuple[str, ...], align: str | None = None,
    names: Sequence[str] | None = None, allocate: Allocate | None = None,
) -> Result:  # fmt: skip
    """`allocate`, which the frames come from too, counts their memory; None: they are the caller's."""
    if chosen.num_frames not in (None, len(stack.focus)):
        raise InputError(
            f"{chosen.weights}: this network takes stacks of {chosen.num_frames} frames, as in its training, "
            f"and here are {len(stack.focus)}"
        )
    held = 0 if allocate is None or on_disk(stack.frames) else stack.frames.nbytes * (1 if align is None else 2)
    pixels = int(np.prod(stack.frames.shape[1:3]))
    size = 4 * pixels * ((chosen.iterations or 0) + 3)
    stages = pixels <= STAGES_UP_TO and size <= means.memory * 1e9 / 16
    held += size * stages
    left = left_for_programs(means.memory, pixels, held)
    order = focus_axis.sort_order(stack.focus, stack.unit)
    if not np.array_equal(order, np.arange(len(order))):
        stack = stack._replace(frames=stack.frames[order], focus=stack.focus[order])
    aligned = None
    if align is not None:
        each = functools.partial(track, label="aligning", total=len(order) - 1, unit="frame", shown=means.progress)
        aligned = align_stack(stack.frames, align, each=each, allocate=allocate or np.empty)
        stack = stack._replace(frames=aligned.frames)
        notes = (*notes, *remarks(aligned, names or [f"frame {i}" for i in order]))
    overlap = min(chosen.model.tile_overlap, means.tile // 2) if means.overlap is None else means.overlap
    maps, work = estimate(
        chosen.estimator, chosen.variables, stack, iterations=chosen.iterations, tile=means.tile, overlap=overlap,
        memory=left, expected=chosen.model.bytes_per_pixel, devices=means.devices, progress=means.progress,
        identity=chosen.identity, stages=stages,
    )  # fmt: skip
    for name in ("depth", "confidence", "disagreement"):
        if not np.isfinite(getattr(maps, name)).all():
            source = chosen.weights or chosen.model.method
            raise InputError(f"weights: {source} gives a {name} that is NaN or infinite")
    depth = focus_axis.from_q(maps.depth, stack.unit).astype(np.float32, copy=False)
    if aligned is not None:
        maps.confidence[~aligned.mask] = 0
    np.clip(maps.confidence, 0, 1, out=maps.confidence)
    np.maximum(maps.disagreement, 0, out=maps.disagreement)
    np.clip(maps.all_in_focus, 0, 1, out=maps.all_in_focus)
    return Result(
        depth, maps.confidence, maps.disagreement, maps.all_in_focus, stack.focus, stack.unit, order,
        chosen.notes + tuple(notes), aligned, work,
        dict(zip(work.stages, np.moveaxis(maps.stages, -1, 0), strict=True)),
    )  # fmt: skip
