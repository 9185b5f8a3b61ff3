"""Alignment of a focal stack: every frame is brought onto the pixels of one of them, the reference.

Focusing changes the magnification ("breathing", up to a sixth over a macro stack) and a hand moves. Neighbours in focus
look alike, so each frame is registered to the neighbour nearer to the reference, and the motions are multiplied along
the chain. `registration` fits the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from dff_jax.data.files.frame_store import Allocate, release_pages
from dff_jax.data.files.registration import Motion, corner_move, describe, opencv, pyramid, register, seen_by, warp
from dff_jax.errors import InputError
from dff_jax.pictures.panels import Panel, bands, sheet, to_uint8

Model = Literal["similarity", "translation", "affine", "homography"]
MODELS: tuple[str, ...] = get_args(Model)
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


def check_model(model: str) -> None:
    """Raises InputError for an unknown model of the motion, or where OpenCV is missing."""
    if model not in MODELS:
        raise InputError(f"align: {model!r} is unknown; choose one of {', '.join(MODELS)}")
    opencv()


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
    check_model(model)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.kind not in "uf":
        raise InputError(f"align: frames of shape {frames.shape}, {frames.dtype}; give [Z,H,W,3] uint8 or uint16")
    if reference is not None and not 0 <= reference < count:
        raise InputError(f"align: reference {reference} is not one of {count} frames")
    fixed = middle = (count - 1) // 2 if reference is None else reference
    motions = _chain(frames, model, fixed, each)
    if reference is None and count > 2:
        for beside in (middle + 1, middle - 1):
            if sum(motion.ok for motion in motions) > 1:
                break  # else nothing aligns to it: it may itself be the frame that does not show the scene
            fixed, motions = beside, _chain(frames, model, beside, each)
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
            {"name": name} | motion._asdict() | {"matrix": motion.matrix.tolist(), "shift": list(motion.shift)}
            for name, motion in zip(names, aligned.motions, strict=True)
        ],
    }


def remarks(aligned: Aligned, names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """What the user must know, one sentence each."""
    moved = max(motion.corners for motion in aligned.motions)
    text = f"frames aligned to {names[aligned.reference]} ({aligned.model}): "
    if not moved:
        text += f"they move by less than {STILL:g} pixels and are left as they are"
    else:
        text += f"corners moved by up to {moved:.1f} pixels"
        if (seen := aligned.mask.mean()) < 1:
            text += f"; {seen:.1%} of the image is seen by all frames, elsewhere depth is uncertain"
    failed = ", ".join(names[z] for z in aligned.failed())
    return (text, f"{failed} would not align: placed by the neighbours' motion, and kept") if failed else (text,)


def alignment_sheet(before: np.ndarray, aligned: Aligned, names: list[str] | tuple[str, ...]) -> np.ndarray:
    """Before and after, side by side: the first frame in red over the last in cyan, so that what fits is grey.

    Args:
      before: [Z,H,W,3] as photographed, in the order of `aligned.frames`.
      names: [Z] of the frames.

    Returns:
      [H',W',3] uint8.
    """
    panels = []
    for when, frames in (("before", before), ("after", aligned.frames)):
        overlay = np.empty((*frames.shape[1:3], 3), np.uint8)
        for rows in bands(overlay):
            first, last = (to_uint8(frame[rows]).mean(-1) for frame in (frames[0], frames[-1]))
            overlay[rows] = np.stack([first, last, last], -1)
        panels.append(Panel(overlay, f"{when}: {names[0]} red, {names[-1]} cyan"))
    return sheet([panels], title=remarks(aligned, names)[0])


def _chain(frames: np.ndarray, model: str, reference: int, each: Callable) -> tuple[Motion, ...]:
    """Registers outwards from the reference; a frame that fails is passed over by the next."""
    size, count = frames.shape[1:3], len(frames)
    known = {reference: np.eye(3)}  # matrices of the frames that align
    correlations = [1.0] * count
    first = pyramid(frames[reference])
    last = {side: (reference, first) for side in (True, False)}  # the outermost that aligned, on either side
    for z in each([*range(reference + 1, count), *range(reference - 1, -1, -1)]):
        inner, fixed = last[z > reference]
        moving = pyramid(frames[z])
        release_pages(frames)
        step, correlations[z] = register(fixed, moving, model, size)
        if step is not None:
            matrix = step @ known[inner]
            known[z] = matrix / matrix[2, 2]
            last[z > reference] = z, moving
    aligned = sorted(known)
    columns = np.stack([known[z].ravel() for z in aligned], axis=1)
    # Breathing is smooth: frames that failed lie between the neighbours that aligned.
    matrices = np.stack([np.interp(np.arange(count), aligned, column) for column in columns], 1).reshape(-1, 3, 3)
    if max(corner_move(matrix, size) for matrix in matrices) < STILL:
        matrices[:] = np.eye(3)
    return tuple(describe(matrices[z], correlations[z], z in known, size) for z in range(count))


def _resample(
    frames: np.ndarray, matrices: list[np.ndarray], reference: int, allocate: Allocate
) -> tuple[np.ndarray, np.ndarray]:
    """The frames on the reference's pixels, and where all of them see.

    What a frame does not see comes from the neighbour nearer to the reference. That makes no false edges and no false
    sharpness; depth there is only known to lie among the other frames.
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
            release_pages(frames)
            release_pages(aligned)
    return aligned, everywhere
