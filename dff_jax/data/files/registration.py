"""How one photograph lies to another: OpenCV's ECC, coarse to fine, and what its answer means.

findTransformECC maximises the correlation of two pictures over a motion (Evangelidis and Psarakis, PAMI 2008);
brightness and contrast do not matter to it, and defocus, being symmetric, hardly does. It knows no similarity:
an affine motion is fitted and replaced by the similarity nearest in the metric of the fit (see `_project`).
OpenCV is imported when it is needed: it is an extra.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dff_jax.errors import InputError

FINEST = 1024  # pixels of the longer side at which the last fit is made; it is good to some hundredths of these
COARSEST = 48  # pixels of the longer side at which the first fit is made
LEAST = 16  # pixels of the shorter side
BORDER = 3  # pixels cut off each level: there the smoothing has made things up
FLAT = 1e-4  # standard deviation of a picture that shows nothing
MIN_CORRELATION = 0.75  # of neighbours once aligned; below, they do not show the same
MAX_SCALE, MAX_TURN, MAX_SHIFT = 1.25, 15.0, 0.25  # of neighbours: a factor, degrees, and of the longer side


class Motion(NamedTuple):
    """How one frame lies to the reference."""

    matrix: np.ndarray  # [3,3] float64: pixel (x, y, 1) of the reference -> pixel of the frame as photographed
    scale: float  # magnification of the frame over the reference
    rotation: float  # degrees
    shift: tuple[float, float]  # x, y of the frame's content at the picture's centre, pixels
    corners: float  # how far the corner that moves most moves, pixels
    correlation: float  # with the neighbour that it was registered to, in [-1, 1]; 1 for the reference
    ok: bool  # False: it would not align, and `matrix` is interpolated from the frames that did


class Level(NamedTuple):
    """A photograph at one size."""

    picture: np.ndarray  # [h,w] float32 in [0,1], grey, smoothed
    lift: np.ndarray  # [3,3]: its pixel (x, y, 1) -> pixel of the photograph

    def small(self, matrix: np.ndarray) -> np.ndarray:
        """A motion between photographs as one between levels of this size."""
        matrix = np.linalg.inv(self.lift) @ matrix @ self.lift
        return matrix / matrix[2, 2]

    def full(self, matrix: np.ndarray) -> np.ndarray:
        """The reverse of `small`."""
        matrix = self.lift @ matrix @ np.linalg.inv(self.lift)
        return matrix / matrix[2, 2]


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
        picture = np.ascontiguousarray(smooth[BORDER:-BORDER, BORDER:-BORDER])
        levels.append(Level(picture, np.array(lift, np.float64)))
        side /= 2
    return levels[::-1]


def register(
    fixed: list[Level], moving: list[Level], model: str, size: tuple[int, int]
) -> tuple[np.ndarray | None, float]:
    """The matrix that leads from pixels of `fixed` to those of `moving`, [3,3] float64, and their correlation.

    None if they do not correlate, or the motion is none that focusing or a hand makes.

    Args:
      fixed, moving: the pyramids of two photographs of `size` H, W.
      model: "similarity", "translation", "affine" or "homography".
    """
    cv2 = opencv()
    kind = {"translation": cv2.MOTION_TRANSLATION, "homography": cv2.MOTION_HOMOGRAPHY}.get(model, cv2.MOTION_AFFINE)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-6)
    matrix = np.eye(3)
    for i, (still, other) in enumerate(zip(fixed, moving, strict=True)):
        if min(still.picture.std(), other.picture.std()) < FLAT:
            return None, 0.0
        # Small pictures could not settle eight parameters.
        coarse = kind == cv2.MOTION_HOMOGRAPHY and i < len(fixed) - 2
        now, rows = (cv2.MOTION_AFFINE if coarse else kind), (3 if kind == cv2.MOTION_HOMOGRAPHY and not coarse else 2)
        start = still.small(matrix).astype(np.float32)[:rows].copy()
        try:
            _, fitted = cv2.findTransformECC(still.picture, other.picture, start, now, criteria, None, 1)
        except cv2.error:  # singular or no overlap; the coarser answer may still do
            continue
        if not np.isfinite(fitted).all():
            continue
        fitted = np.vstack([fitted, [0, 0, 1]])[:3].astype(np.float64)
        matrix = still.full(_project(fitted, still.picture) if model == "similarity" else fitted)
    before, after = (_correlation(fixed[-1], moving[-1], m) for m in (np.eye(3), matrix))
    if before >= after:
        matrix, after = np.eye(3), before
    motion = describe(matrix, after, True, size)
    plausible = (
        1 / MAX_SCALE < motion.scale < MAX_SCALE
        and abs(motion.rotation) < MAX_TURN
        and motion.corners < MAX_SHIFT * max(size)
    )
    return (matrix if plausible and after >= MIN_CORRELATION else None), after


def _project(affine: np.ndarray, still: np.ndarray) -> np.ndarray:
    """The similarity nearest to `affine` [3,3] in the metric of the fit, J^T J of its six parameters.

    J are the gradients of the picture times x, y, 1: a parameter that the picture says little about counts
    little. To second order this is the best correlation that any similarity reaches.
    """
    height, width = still.shape
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    gx, gy = np.gradient(still, axis=1), np.gradient(still, axis=0)
    jacobian = np.stack([gx * x, gx * y, gx, gy * x, gy * y, gy]).reshape(6, -1).astype(np.float64)
    jacobian -= jacobian.mean(1, keepdims=True)
    metric = jacobian @ jacobian.T
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    wanted = (np.linalg.inv(centre) @ affine @ centre)[:2].reshape(6)
    basis = np.array([[1, 0, 0, 0, 1, 0], [0, -1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], float)
    parameters = np.linalg.lstsq(basis @ metric @ basis.T, basis @ metric @ wanted, rcond=None)[0]
    similarity = np.vstack([(parameters @ basis).reshape(2, 3), [0, 0, 1]])
    return centre @ similarity @ np.linalg.inv(centre)


def _correlation(still: Level, other: Level, matrix: np.ndarray) -> float:
    """Of the two where both see, once aligned."""
    small = still.small(matrix)
    seen = seen_by(small, still.picture.shape)
    if seen.mean() < 0.25:
        return 0.0
    a, b = still.picture[seen], warp(other.picture, small)[seen]
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-12))


def describe(matrix: np.ndarray, correlation: float, ok: bool, size: tuple[int, int]) -> Motion:
    """Reads a matrix at the centre of the picture."""
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    at = _move(matrix, centre[None])[0]
    linear = np.stack([_move(matrix, (centre + step)[None])[0] - at for step in np.eye(2)], axis=1)
    scale = float(np.sqrt(max(np.linalg.det(linear), 0.0)))
    turn = float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])))
    shift = tuple((at - centre).tolist())
    return Motion(matrix, scale, turn, shift, corner_move(matrix, size), correlation, ok)


def corner_move(matrix: np.ndarray, size: tuple[int, int]) -> float:
    corners = np.array([(x, y) for x in (0, size[1] - 1) for y in (0, size[0] - 1)], np.float64)
    return float(np.linalg.norm(_move(matrix, corners) - corners, axis=1).max())


def _move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N,2] points (x, y) through [3,3]."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def warp(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`picture` [H,W] or [H,W,3] looked up at `matrix`, by Lanczos; type as given."""
    cv2 = opencv()
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    size = picture.shape[1::-1]
    warped = cv2.warpPerspective(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(warped, 0, 1) if picture.dtype.kind == "f" else warped


def seen_by(matrix: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """[H,W] bool: the pixels that `matrix` leads to one inside the frame."""
    cv2 = opencv()
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    inside = np.ones(size, np.uint8)
    return cv2.warpPerspective(inside, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT) > 0


def opencv():
    try:
        import cv2
    except ImportError:
        raise InputError("align: needs OpenCV; pip install 'dff-jax[align]'") from None
    return cv2
