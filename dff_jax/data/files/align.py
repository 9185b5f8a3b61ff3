"""Alignment of a focal stack: every frame is brought onto the pixels of one of them.

Focusing changes the magnification ("breathing", up to a sixth over a macro stack) and a hand moves. Neighbours
in focus look alike, so each frame is registered to the neighbour nearer to the reference, and the motions are
multiplied along the chain. `registration` fits the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dff_jax.data.files.frame_store import Allocate, let_go
from dff_jax.data.files.registration import Motion, corner_move, describe, opencv, pyramid, register, seen_by, warp
from dff_jax.errors import InputError

MODELS = ("similarity", "translation", "affine", "homography")
STILL = 0.5  # pixels; a stack whose corners move less is left as it is, for interpolation costs sharpness


class Aligned(NamedTuple):
    """An aligned stack."""

    frames: np.ndarray  # [Z,H,W,3], type as given; what a frame did not see is filled from its neighbour
    mask: np.ndarray  # [H,W] bool: seen by every frame
    motions: tuple[Motion, ...]  # [Z]
    reference: int  # the frame whose pixels are kept
    model: str

    def failed(self) -> list[int]:
        """The frames that would not align."""
        return [z for z, motion in enumerate(self.motions) if not motion.ok]


def align_stack(
    frames: np.ndarray,
    model: str = "similarity",
    *,
    reference: int | None = None,
    each: Callable[[Any], Any] = iter,
    allocate: Allocate = np.empty,
) -> Aligned:
    """Registers and resamples the frames of a stack, frame by frame: all of them need not fit into memory.

    Args:
      frames: [Z,H,W,3] uint8, uint16, or float in [0,1]; sorted by focus, either way.
      model: "similarity" (magnification, rotation, translation), "translation", "affine" or "homography".
      reference: the frame that stays as it is; None: the middle one, or, if no other aligns to it, one beside it.
      each: wraps the sequence of pairs gone through, to show progress.
      allocate: makes the array of the aligned frames; see `frame_store`.

    Raises:
      InputError: an unknown model or reference, frames of another shape or type, OpenCV missing.
    """
    frames = np.asarray(frames)
    count = len(frames)
    if model not in MODELS:
        raise InputError(f"align: {model!r} is unknown; choose one of {', '.join(MODELS)}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.kind not in "uf":
        raise InputError(f"align: frames of shape {frames.shape}, {frames.dtype}; give [Z,H,W,3] uint8 or uint16")
    if reference is not None and not 0 <= reference < count:
        raise InputError(f"align: reference {reference} is not one of {count} frames")
    opencv()
    middle = (count - 1) // 2
    candidates = [middle, middle + 1, middle - 1] if count > 2 else [middle]
    for fixed in candidates if reference is None else [reference]:
        motions = _chain(frames, model, fixed, each)
        if sum(motion.ok for motion in motions) > 1:
            break  # else nothing aligns to it: it may itself be the frame that is no picture of the scene
    aligned, mask = _resample(frames, [motion.matrix for motion in motions], fixed, allocate)
    return Aligned(aligned, mask, motions, fixed, model)


def report(aligned: Aligned, names: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """The estimated motion for a summary in JSON; `names` [Z] of the frames."""
    return {
        "model": aligned.model,
        "reference": names[aligned.reference],
        "seen_by_all": float(aligned.mask.mean()),
        "failed": [names[z] for z in aligned.failed()],
        "frames": [
            {
                "name": name,
                "ok": motion.ok,
                "scale": motion.scale,
                "rotation_degrees": motion.rotation,
                "shift": list(motion.shift),
                "corners": motion.corners,
                "correlation": motion.correlation,
                "matrix": motion.matrix.tolist(),
            }
            for name, motion in zip(names, aligned.motions, strict=True)
        ],
    }


def remarks(aligned: Aligned, names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """What a reader must know, one sentence each."""
    moved = max(motion.corners for motion in aligned.motions)
    where = f"frames aligned to {names[aligned.reference]} ({aligned.model})"
    seen = aligned.mask.mean()
    said = [f"{where}: corners moved by up to {moved:.1f} pixels"]
    if not moved:
        said = [f"{where}: they move by less than {STILL:g} pixels and are left as they are"]
    elif seen < 1:
        said[0] += f"; {seen:.1%} of the picture is seen by all frames, elsewhere depth is uncertain"
    failed = [names[z] for z in aligned.failed()]
    if failed:
        said.append(f"{', '.join(failed)} would not align: placed by the neighbours' motion, and kept")
    return tuple(said)


# Registration -----------------------------------------------------------------------------------------------------


def _chain(frames: np.ndarray, model: str, reference: int, each: Callable) -> tuple[Motion, ...]:
    """Registers outwards from the reference; a frame that fails is passed over by the next."""
    size = frames.shape[1:3]
    count = len(frames)
    matrices: list[np.ndarray | None] = [None] * count
    correlations = [1.0] * count
    matrices[reference] = np.eye(3)
    last, first = {}, pyramid(frames[reference])
    for z in each([*range(reference + 1, count), *range(reference - 1, -1, -1)]):
        side = z > reference
        inner, fixed = last.get(side, (reference, first))
        moving = pyramid(frames[z])
        let_go(frames)
        step, correlations[z] = register(fixed, moving, model, size)
        if step is not None:
            matrix = step @ matrices[inner]
            matrices[z] = matrix / matrix[2, 2]
            last[side] = z, moving
    ok = [matrix is not None for matrix in matrices]
    known = np.flatnonzero(ok)
    for z in np.flatnonzero(~np.array(ok)):  # breathing is smooth: between the neighbours that did align
        stack = np.stack([matrices[k] for k in known]).reshape(len(known), 9)
        matrices[z] = np.array([np.interp(z, known, column) for column in stack.T]).reshape(3, 3)
    if max(corner_move(matrix, size) for matrix in matrices) < STILL:
        matrices = [np.eye(3)] * count
    return tuple(describe(*parts, size) for parts in zip(matrices, correlations, ok, strict=True))


# Resampling -------------------------------------------------------------------------------------------------------


def _resample(
    frames: np.ndarray, matrices: list[np.ndarray], reference: int, allocate: Allocate
) -> tuple[np.ndarray, np.ndarray]:
    """The frames on the reference's pixels, and where all of them see.

    What a frame does not see comes from the neighbour nearer to the reference: no false edges, and no false
    sharpness, at the price that depth there is known to lie among the other frames only.
    """
    aligned, everywhere = allocate(frames.shape, frames.dtype), np.ones(frames.shape[1:3], bool)
    aligned[reference] = frames[reference]
    for indices, inner in ((range(reference + 1, len(frames)), -1), (range(reference - 1, -1, -1), 1)):
        for z in indices:
            if np.array_equal(matrices[z], np.eye(3)):
                aligned[z] = frames[z]
            else:
                seen = seen_by(matrices[z], frames.shape[1:3])
                aligned[z] = np.where(seen[..., None], warp(frames[z], matrices[z]), aligned[z + inner])
                everywhere &= seen
            let_go(frames)
            let_go(aligned)
    return aligned, everywhere
