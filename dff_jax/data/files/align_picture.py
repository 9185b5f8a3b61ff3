"""What alignment did: a sheet of before and after, and how much sharper the stack became."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dff_jax.data.files.align import Aligned
from dff_jax.data.files.frame_store import let_go
from dff_jax.pictures.panels import Panel, bands, sheet, to_uint8

DETAIL = 160  # pixels, side of the details shown
SMOOTH = 9  # pixels, side of the window that sharpness is summed over
BLEND = 8.0  # pixels, sigma over which the weights of the blend are smoothed
WHEN = ("before", "after")


def alignment_sheet(
    before: np.ndarray, aligned: Aligned, names: Sequence[str]
) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """Before and after alignment, side by side.

    Above, the first frame in red over the last in cyan: what lies on itself is grey. Below, an all-in-focus
    picture (at each pixel the sharpest frame) where the frames moved most.

    Args:
      before: [Z,H,W,3] as photographed, in the order of `aligned.frames`.
      names: [Z] of the frames.

    Returns:
      The sheet, [H',W',3] uint8; and gradient energies where every frame sees, {"before": ..., "after": ...} each
      of "all_in_focus" (a smooth blend by sharpness) and "average" (the mean of the frames). Of a choice pixel by
      pixel it would tell nothing: frames that do not match are torn and double there, and every tear is an edge.
    """
    energy: dict[str, dict[str, float]] = {"all_in_focus": {}, "average": {}}
    stacks = (before, aligned.frames)
    for when, frames in zip(WHEN, stacks, strict=True):
        for name, picture in zip(energy, _blends(frames), strict=True):
            energy[name][when] = gradient_energy(picture, aligned.mask)
    composites = [sharpest(frames) for frames in stacks]
    rows, columns = _detail(composites[1], aligned)
    top, bottom = [], []
    for when, frames, picture in zip(WHEN, stacks, composites, strict=True):
        overlay = np.empty((*frames.shape[1:3], 3), np.uint8)
        overlay[..., 0] = _grey(frames[0])
        overlay[..., 1] = overlay[..., 2] = _grey(frames[-1])
        top.append(Panel(overlay, f"{when}: {names[0]} red, {names[-1]} cyan"))
        blend, average = (energy[name][when] for name in ("all_in_focus", "average"))
        told = f"gradient energy of a blend by sharpness {blend:.3g}, of the average {average:.3g}"
        bottom.append(Panel(picture[rows, columns], f"{when}: the sharpest frame at each pixel; {told}"))
    moved = max(motion.corners for motion in aligned.motions)
    title = f"alignment ({aligned.model}): corners moved by up to {moved:.1f} pixels"
    failed = aligned.failed()
    if failed:
        title += f"; {len(failed)} of {len(names)} frames would not align"
    return sheet([top, bottom], title=title), energy


def sharpest(frames: np.ndarray) -> np.ndarray:
    """[H,W,3] uint8: at each pixel of [Z,H,W,3] the frame with the largest Laplacian around it."""
    best, picture = None, None
    for each in frames:
        frame = to_uint8(each)
        sharpness = _sharpness(_grey(frame))
        if best is None:
            best, picture = sharpness, frame.copy()
            continue
        better = sharpness > best
        best[better], picture[better] = sharpness[better], frame[better]
        let_go(frames)
    return picture


def gradient_energy(grey: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared difference of neighbours of a picture [H,W], values 0 to 255, where `mask` [H,W] holds."""
    keep = mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:]
    if not keep.any():
        return 0.0
    square = np.square(np.diff(grey, axis=1)[:-1])
    square += np.square(np.diff(grey, axis=0)[:, :-1])
    return float(square[keep].mean())


def _blends(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey [H,W] float32, 0 to 255: the mean weighted by the square of the sharpness around, and the plain mean."""
    import cv2

    total, weighted, plain = (np.zeros(frames.shape[1:3], np.float32) for _ in range(3))
    for frame in frames:
        grey = _grey(frame)
        weight = cv2.GaussianBlur(_sharpness(grey), (0, 0), BLEND)
        weight **= 2
        weight += 1e-6
        total += weight
        plain += grey
        weighted += np.multiply(weight, grey, out=weight)
        let_go(frames)
    weighted /= total
    plain /= len(frames)
    return weighted, plain


def _grey(frame: np.ndarray) -> np.ndarray:
    """Mean of the colours of [H,W,3] as uint8: [H,W] float32, 0 to 255."""
    grey = np.empty(frame.shape[:2], np.float32)
    for rows in bands(frame):
        grey[rows] = to_uint8(frame[rows]).astype(np.float32).mean(-1)
    return grey


def _sharpness(grey: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (SMOOTH, SMOOTH))


def _detail(picture: np.ndarray, aligned: Aligned) -> tuple[slice, slice]:
    """A window with texture where the motion from the first to the last frame is large."""
    grey = _grey(picture)
    height, width = picture.shape[:2]
    side = min(DETAIL, height, width)
    first, last = aligned.motions[0].matrix, aligned.motions[-1].matrix
    best, found = -1.0, (slice(0, side), slice(0, side))
    for top in np.linspace(0, height - side, 9).astype(int):
        for left in np.linspace(0, width - side, 9).astype(int):
            window = slice(top, top + side), slice(left, left + side)
            centre = np.array([left + side / 2, top + side / 2, 1.0])
            ends = [matrix @ centre for matrix in (first, last)]
            moved = np.linalg.norm(ends[0][:2] / ends[0][2] - ends[1][:2] / ends[1][2])
            score = moved * gradient_energy(grey[window], aligned.mask[window]) * aligned.mask[window].mean()
            if score > best:
                best, found = score, window
    return found
