"""A stack of photographs to maps: tiles, units, and the files written.

The estimator works in q on a batch of one; large pictures go through it in overlapping tiles of one shape, so
that one compilation serves them all, while the frames stay on the host as they were photographed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dff_jax import config, estimators, focus_axis
from dff_jax.compilation import jit
from dff_jax.data.align import Aligned, align_stack, remarks, report
from dff_jax.data.arrays import stack_from_arrays
from dff_jax.data.folder import Source, read_stack
from dff_jax.errors import InputError
from dff_jax.output import check_output, staged_output
from dff_jax.prediction_files import ALIGNMENT, FILES, write_alignment, write_maps
from dff_jax.tiles import check_tiling, split
from dff_jax.types import Estimator, FocalStack, Variables


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


class _Method(NamedTuple):
    estimator: Estimator
    variables: Variables
    method: str
    weights: str | None
    iterations: int | None
    num_frames: int | None  # the only Z it can take; None: any
    notes: tuple[str, ...]


def predict(
    frames: np.ndarray | Sequence[np.ndarray],
    focus: Sequence[float] | None = None,
    *,
    unit: str | None = None,
    method: str | None = None,
    weights: str | Path | None = None,
    iterations: int | None = None,
    tile: int = 512,
    overlap: int = 64,
    align: str | None = None,
    progress: bool = False,
) -> Result:
    """Depth from a focal stack in memory.

    Args:
      frames: [Z,H,W,3], grey [Z,H,W], or a list of such frames; uint8, uint16, or float in [0,1]; any order.
      focus: [Z] focus settings in `unit`, one a frame; None: the frame index.
      unit: "disparity", "diopter", "metre" or "index"; None: disparity if `focus` is given, else index.
      method: one of `config.UNTRAINED`, estimators without weights; None: `weights` decide.
      weights: a `.safetensors` file or a run folder; without, the classical estimator answers.
      iterations: K of the unroll; None: as trained.
      tile, overlap: side of a tile and how far neighbours overlap, pixels; pictures up to about 1.5 tiles
        square go in one piece.
      align: brings the frames onto the middle one first: "similarity", "translation", "affine" or "homography";
        confidence is 0 where not all frames see. Needs the extra `align`.
      progress: shows a bar on a terminal, plain lines elsewhere (stderr).

    Raises:
      InputError: frames of several sizes or outside [0,1], focus settings that do not fit, unusable weights.
    """
    check_tiling(tile, overlap)
    chosen = _choose(method, weights, iterations)
    stack, notes = stack_from_arrays(frames, focus, unit)
    return _predict(stack, chosen, tile, overlap, progress, notes, align)


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
    tile: int = 512,
    overlap: int = 64,
    align: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Depth of a folder, glob or list of photographs, written to `output`; `dff-jax predict`.

    Writes depth.npy [H,W] float32 in the unit of the focus axis, depth.png (16 bit, scale in the summary),
    depth_color.png, confidence.npy, disagreement.npy, all_in_focus.png, overview.png and summary.json; with
    `align` also alignment.png, before and after.
    Arguments are those of `predict` and `folder.read_stack`; `max_size` makes all outputs smaller too.

    Returns:
      The summary, as in summary.json.

    Raises:
      InputError: bad photographs, focus settings, weights or output folder, found before anything is computed
        or written, save a disk that fills up meanwhile, which leaves nothing behind either.
    """
    start = time.perf_counter()
    check_tiling(tile, overlap)
    files = FILES if align is None else (*FILES, ALIGNMENT)
    check_output(output, files)
    chosen = _choose(method, weights, iterations)
    stack, read = read_stack(source, focus=focus, unit=unit, reverse=reverse, max_size=max_size)
    if Path(output).resolve() in {file.resolve().parent for file in read.files}:
        raise InputError(f"{output}: is the folder of the frames; write the maps to another one")
    pixels = int(np.prod(stack.frames.shape[1:3]))
    check_output(output, files, needed=30 * pixels + 2**21)
    names = [file.name for file in read.files]
    result = _predict(stack, chosen, tile, overlap, progress, read.notes, align, names)
    summary = {
        "source": str(source) if isinstance(source, str | Path) else [str(item) for item in source],
        "frames": names,
        "focus": result.focus.tolist(),
        "unit": result.unit,
        "near": {True: "larger", False: "smaller", None: "unknown"}[focus_axis.larger_is_nearer(result.unit)],
        "method": chosen.method,
        "weights": chosen.weights,
        "iterations": chosen.iterations,
        "size": list(result.depth.shape),
        "photograph_size": list(read.full_size),
        "notes": list(result.notes),
    }
    with staged_output(output, last="summary.json") as staging:
        title = f"{stack.name}, {chosen.method}"
        frames = stack.frames if result.aligned is None else result.aligned.frames
        summary |= write_maps(staging, frames, names, result, title)
        if result.aligned is not None:
            summary["alignment"] = report(result.aligned, names)
            summary["alignment"] |= write_alignment(staging, stack.frames, names, result.aligned)
        summary["seconds"] = round(time.perf_counter() - start, 2)
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        (staging / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def estimate(
    estimator: Estimator,
    variables: Variables,
    stack: FocalStack,
    *,
    iterations: int | None = None,
    tile: int = 512,
    overlap: int = 64,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs an estimator over a stack whose frames are sorted, in tiles.

    Returns:
      depth [H,W] in q, confidence [H,W], disagreement [H,W] in q^2, all-in-focus [H,W,3]; numpy float32.
    """
    run = _compiled(estimator, iterations)
    q = jnp.asarray(focus_axis.to_q(stack.focus, stack.unit), jnp.float32)[None]
    height, width = stack.frames.shape[1:3]
    tiles = list(split(height, width, tile, overlap))
    total = [np.zeros((height, width, *more), np.float32) for more in ((), (), (), (3,))]
    for part in _shown(tiles, "estimating depth", "tile", progress):
        crop = np.ascontiguousarray(stack.frames[:, part.rows, part.columns])
        with _interrupt_held_back():
            answer = jax.device_get(run(variables, jnp.asarray(crop)[None], q))
        for sums, values in zip(total, answer, strict=True):
            weight = part.weight.reshape(part.weight.shape + (1,) * (sums.ndim - 2))
            sums[part.rows, part.columns] += weight * values[0]
    return tuple(total)


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: raised inside XLA's compiler, it crashes Python on its way out.

    XLA could not be stopped half way in any case. A second Ctrl-C does not wait.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple] = []

    def remember(*args) -> None:
        if pressed:
            handler(*args)
        pressed.append(args)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        handler(*pressed[0])


def _shown(items: Sequence[Any], what: str, each: str, progress: bool) -> Iterator[Any]:
    """Goes through `items` with a bar on a terminal, and at most ten plain lines elsewhere."""
    terminal = sys.stderr.isatty()
    every = max(1, len(items) // 10)
    for i, item in enumerate(tqdm(items, desc=what, unit=each, disable=not (progress and terminal))):
        if progress and not terminal and i % every == 0:
            print(f"{what}: {each} {i + 1} of {len(items)}", file=sys.stderr, flush=True)
        yield item


@functools.lru_cache(maxsize=8)
def _compiled(estimator: Estimator, iterations: int | None) -> Callable:
    """apply on frames as photographed, without the history; compiled once a shape."""

    @jit
    def run(variables, frames, focus):
        if jnp.issubdtype(frames.dtype, jnp.integer):
            frames = frames.astype(jnp.float32) / jnp.iinfo(frames.dtype).max
        answer, _ = estimator.apply(variables, frames, focus, train=False, num_iterations=iterations)
        return answer.depth, answer.confidence, answer.disagreement, answer.all_in_focus

    return run


@functools.lru_cache(maxsize=8)
def _built(model: config.ModelConfig) -> Estimator:
    return estimators.build(model)


def _choose(method: str | None, weights: str | Path | None, iterations: int | None) -> _Method:
    if method not in (None, *config.UNTRAINED):
        choices = ", ".join(config.UNTRAINED)
        raise InputError(f"method: {method!r} is unknown; choose one of {choices}, or give weights")
    if method and weights is not None:
        raise InputError(f"method, weights: {method} needs no weights; give one of the two")
    if iterations is not None and iterations < 0:
        raise InputError(f"iterations: must be at least 0, got {iterations}")
    notes: tuple[str, ...] = ()
    model, variables, label = config.model_preset(method or "classical"), {}, None
    num_frames = None
    if weights is not None:
        from dff_jax.estimators.weights import load_estimator

        loaded = load_estimator(weights)
        model, variables, label = loaded.model, jax.device_put(loaded.variables), str(weights)
        num_frames = loaded.info.get("num_frames") if model.num_planes is None else None
    elif method is None:
        notes = ("no weights given: the classical estimator answers",)
    if model.method in config.UNTRAINED and model.method != "classical":
        if iterations is not None:
            notes += (f"iterations has no effect on {model.method}",)
        return _Method(_built(model), variables, model.method, None, None, None, notes)
    used = model.num_iterations if iterations is None else iterations
    return _Method(_built(model), variables, model.method, label, used, num_frames, notes)


def _predict(
    stack: FocalStack, chosen: _Method, tile: int, overlap: int, progress: bool, notes: tuple[str, ...],
    align: str | None = None, names: Sequence[str] | None = None,
) -> Result:  # fmt: skip
    if chosen.num_frames not in (None, len(stack.focus)):
        raise InputError(
            f"{chosen.weights}: this network takes stacks of {chosen.num_frames} frames, as in its training, "
            f"and here are {len(stack.focus)}"
        )
    order = focus_axis.sort_order(stack.focus, stack.unit)
    if not np.array_equal(order, np.arange(len(order))):
        stack = stack._replace(frames=stack.frames[order], focus=stack.focus[order])
    aligned = None
    if align is not None:
        each = functools.partial(_shown, what="aligning", each="frame", progress=progress)
        aligned = align_stack(stack.frames, align, each=each)
        stack = stack._replace(frames=aligned.frames)
        notes = (*notes, *remarks(aligned, names or [f"frame {i}" for i in order]))
    q, confidence, disagreement, sharp = estimate(
        chosen.estimator, chosen.variables, stack, iterations=chosen.iterations, tile=tile, overlap=overlap,
        progress=progress,
    )  # fmt: skip
    for name, values in (("depth", q), ("confidence", confidence), ("disagreement", disagreement)):
        if not np.isfinite(values).all():
            source = chosen.weights or chosen.method
            raise InputError(f"weights: {source} gives a {name} that is NaN or infinite")
    depth = focus_axis.from_q(q, stack.unit).astype(np.float32)
    if aligned is not None:
        confidence = np.where(aligned.mask, confidence, np.float32(0))
    return Result(
        depth, np.clip(confidence, 0, 1), np.maximum(disagreement, 0), np.clip(sharp, 0, 1), stack.focus,
        stack.unit, order, chosen.notes + tuple(notes), aligned,
    )  # fmt: skip
