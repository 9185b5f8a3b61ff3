"""Registers one photograph to another by OpenCV's ECC, from coarse to fine, and reads the motion found.

findTransformECC maximises the correlation of two images over a motion (Evangelidis and Psarakis, PAMI 2008). Brightness
and contrast do not matter to it, and defocus hardly does, because it is symmetric. It has no similarity model: an
affine motion is fitted and replaced by the nearest similarity. OpenCV belongs to the extra `align`.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from dff_jax.errors import InputError

FINEST = 1024  # pixels of the longer side at which the last fit is made; it is good to some hundredths of these
COARSEST = 48  # pixels of the longer side at which the first fit is made
LEAST = 16  # pixels of the shorter side
BORDER = 3  # pixels cut off each level, where smoothing invents values
FLAT = 1e-4  # standard deviation of an image that shows nothing
MIN_CORRELATION = 0.75  # of neighbours once aligned; below, they do not show the same
MAX_SCALE, MAX_TURN, MAX_SHIFT = 1.25, 15.0, 0.25  # of neighbours: a factor, degrees, and of the longer side


class Motion(NamedTuple):
    """How one frame lies to the reference."""

    matrix: np.ndarray  # [3,3] float64: pixel (x, y, 1) of the reference -> pixel of the frame as photographed
    scale: float  # magnification of the frame over the reference
    rotation_degrees: float
    shift: tuple[float, float]  # x, y of the frame's content at the image's centre, pixels
    corners: float  # how far the corner that moves most moves, pixels
    correlation: float  # with the neighbour that it was registered to, in [-1, 1]; 1 for the reference
    ok: bool  # False: it would not align, and `matrix` is interpolated from the frames that did


class Level(NamedTuple):
    """A photograph at one size."""

    image: np.ndarray  # [h,w] float32 in [0,1], grey, smoothed
    lift: np.ndarray  # [3,3]: its pixel (x, y, 1) -> pixel of the photograph


def pyramid(frame: np.ndarray) -> list[Level]:
    """A photograph [H,W,3], uint8, uint16 or float in [0,1], from coarse to fine."""
    cv2 = opencv()
    top = np.float32(1.0 if frame.dtype.kind == "f" else np.iinfo(frame.dtype).max)
    height, width = frame.shape[:2]
    side = min(FINEST, max(height, width))
    levels = []
    while not levels or side >= COARSEST:
        scale = side / max(height, width)
        w, h = (max(LEAST, round(full * scale)) for full in (width, height))
        # From the photograph itself, so that a level's pixels lie where its size says
        small = frame if (w, h) == (width, height) else cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA)
        smooth = cv2.GaussianBlur(small.astype(np.float32).mean(-1) / top, (5, 5), 0)
        x, y = width / w, height / h
        lift = [[x, 0, (BORDER + 0.5) * x - 0.5], [0, y, (BORDER + 0.5) * y - 0.5], [0, 0, 1]]
        levels.append(Level(np.ascontiguousarray(smooth[BORDER:-BORDER, BORDER:-BORDER]), np.array(lift, np.float64)))
        side /= 2
    return levels[::-1]


def register(
    fixed: list[Level], moving: list[Level], model: str, size: tuple[int, int]
) -> tuple[np.ndarray | None, float]:
    """The matrix that leads from pixels of `fixed` to those of `moving`, [3,3] float64, and their correlation.

    The matrix is None if they do not correlate, or the motion is none that focusing or a hand makes.

    Args:
      fixed, moving: the pyramids of two photographs of `size` H, W.
      model: "similarity", "translation", "affine" or "homography".
    """
    cv2 = opencv()
    kind = {"translation": cv2.MOTION_TRANSLATION, "homography": cv2.MOTION_HOMOGRAPHY}.get(model, cv2.MOTION_AFFINE)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-6)
    matrix = np.eye(3)
    for i, (still, other) in enumerate(zip(fixed, moving, strict=True)):
        if min(still.image.std(), other.image.std()) < FLAT:
            return None, 0.0
        # Small images could not settle the eight parameters of a homography.
        now = cv2.MOTION_AFFINE if kind == cv2.MOTION_HOMOGRAPHY and i < len(fixed) - 2 else kind
        start = _between_levels(matrix, still).astype(np.float32)[: 3 if now == cv2.MOTION_HOMOGRAPHY else 2].copy()
        try:
            _, fitted = cv2.findTransformECC(still.image, other.image, start, now, criteria, None, 1)
        except cv2.error:  # singular or no overlap; the coarser answer may still do
            continue
        if np.isfinite(fitted).all():
            fitted = np.vstack([fitted, [0, 0, 1]])[:3].astype(np.float64)
            found = still.lift @ fitted @ np.linalg.inv(still.lift)
            matrix = _similarity(found, size) if model == "similarity" else found / found[2, 2]
    before, after = (_correlation(fixed[-1], moving[-1], m) for m in (np.eye(3), matrix))
    if before >= after:
        matrix, after = np.eye(3), before
    motion = describe(matrix, after, True, size)
    plausible = (
        1 / MAX_SCALE < motion.scale < MAX_SCALE
        and abs(motion.rotation_degrees) < MAX_TURN
        and motion.corners < MAX_SHIFT * max(size)
    )
    return (matrix if plausible and after >= MIN_CORRELATION else None), after


def _between_levels(matrix: np.ndarray, level: Level) -> np.ndarray:
    """A motion between two photographs as one between their levels of this size."""
    matrix = np.linalg.inv(level.lift) @ matrix @ level.lift
    return matrix / matrix[2, 2]


def _similarity(affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The similarity nearest to `affine` [3,3] in the mean square over the pixels of an image of `size`."""
    scaled_cos, scaled_sin = (affine[0, 0] + affine[1, 1]) / 2, (affine[1, 0] - affine[0, 1]) / 2
    linear = np.array([[scaled_cos, -scaled_sin], [scaled_sin, scaled_cos]])
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    shift = affine[:2, :2] @ centre + affine[:2, 2] - linear @ centre  # the centre goes where it went
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


def _correlation(still: Level, other: Level, matrix: np.ndarray) -> float:
    """Correlation of the two where both see, once aligned by `matrix`; 0 where that is little."""
    small = _between_levels(matrix, still)
    seen = seen_by(small, still.image.shape)
    if seen.mean() < 0.25:
        return 0.0
    a, b = still.image[seen], warp(other.image, small)[seen]
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 0 else 0.0


def describe(matrix: np.ndarray, correlation: float, ok: bool, size: tuple[int, int]) -> Motion:
    """Reads scale, rotation and shift of a matrix at the centre of an image of `size` H, W."""
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    at, right, down = _move(matrix, centre + np.array([[0, 0], [1, 0], [0, 1]]))
    linear = np.stack([right - at, down - at], axis=1)
    scale = float(np.sqrt(max(np.linalg.det(linear), 0.0)))
    turn = float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])))
    x, y = at - centre
    return Motion(matrix, scale, turn, (float(x), float(y)), corner_move(matrix, size), correlation, ok)


def corner_move(matrix: np.ndarray, size: tuple[int, int]) -> float:
    """How far the corner of an image of `size` H, W moves that moves most, pixels."""
    corners = np.array([(x, y) for x in (0, size[1] - 1) for y in (0, size[0] - 1)], np.float64)
    return float(np.linalg.norm(_move(matrix, corners) - corners, axis=1).max())


def _move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N,2] points (x, y) through [3,3]."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`image` [H,W] or [H,W,3] looked up at `matrix`, by Lanczos; type as given."""
    cv2 = opencv()
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(image, matrix, image.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(warped, 0, 1) if image.dtype.kind == "f" else warped


def seen_by(matrix: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """[H,W] bool: the pixels that `matrix` leads to one inside the frame."""
    cv2 = opencv()
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    inside = np.ones(size, np.uint8)
    return cv2.warpPerspective(inside, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT) > 0


def opencv() -> ModuleType:
    """The module `cv2`, imported when it is needed; InputError without it."""
    try:
        import cv2
    except ImportError:
        raise InputError("align: needs OpenCV; pip install 'dff-jax[align]'") from None
    return cv2
