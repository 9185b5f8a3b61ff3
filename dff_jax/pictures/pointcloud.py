"""A depth map as coloured points in space: a PLY file for MeshLab, CloudCompare or Blender."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax import focus_axis

MOST = 1_000_000
"""Largest number of points; of a larger image every second, third, ... row and column is taken."""
FIELD_OF_VIEW = 50.0  # degrees across the width, where depth is metric; unknown, so a usual one is assumed
RELIEF = 0.35  # of the image's width, from farthest to nearest, where depth is not metric
_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "<f4")])


def write_points(
    path: Path, q: np.ndarray, rgb: np.ndarray, confidence: np.ndarray, unit: str, unseen: np.ndarray | None = None
) -> dict[str, Any]:
    """Writes points with x to the right, y up and z towards the viewer; returns their number and scale in words.

    Metres and diopters become metres in front of a pinhole camera in the origin; pixels at infinity are left out. Of
    positions of a stage or rail the depth is a length, and the width is assumed. Other units have no scale: they become
    a relief, one unit wide.

    Args:
      q: [H,W] depth in the working coordinate of `unit`.
      rgb: [H,W,3] uint8.
      confidence: [H,W] in [0,1], written for each point, so that a viewer can filter by it.
      unseen: [H,W] bool, pixels that are left out.
    """
    height, width = q.shape
    step = max(1, math.ceil(math.sqrt(q.size / MOST)))
    rows, columns = np.mgrid[0:height:step, 0:width:step]
    x, y = (columns + 0.5) / width - 0.5, (height / 2 - rows - 0.5) / width
    q, rgb, confidence = (values[::step, ::step] for values in (q, rgb, confidence))
    keep = np.isfinite(q) if unseen is None else np.isfinite(q) & ~unseen[::step, ::step]
    if unit in ("metre", "diopter"):
        keep &= q > 1e-3  # nearer than a kilometre
        distance = 1 / np.where(keep, q, 1.0)
        wide = 2 * math.tan(math.radians(FIELD_OF_VIEW) / 2)
        xyz = np.stack([x * wide * distance, y * wide * distance, -distance], -1)
        says = f"metres, pinhole camera, {FIELD_OF_VIEW:g} degrees wide (assumed)"
    else:
        low, high = np.percentile(q[keep], (1, 99)) if keep.any() else (0.0, 1.0)
        size, says = 1.0, "relief: the image is one unit wide, its depth is not to scale"
        if focus_axis.base(unit) in focus_axis.POSITIONS:
            size = max(high - low, 1e-12) / RELIEF
            says = f"{focus_axis.base(unit)}: the depth is to scale, the width of {size:.4g} is assumed"
        xyz = size * np.stack([x, y, RELIEF * ((q - low) / max(high - low, 1e-12)).clip(-0.2, 1.2)], -1)
    points = np.empty(int(keep.sum()), _VERTEX)
    points["xyz"], points["rgb"], points["confidence"] = xyz[keep], rgb[keep], confidence[keep]
    names = [f"property float {name}" for name in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"comment {says}", f"element vertex {len(points)}", *names]
    header += ["property float confidence", "end_header", ""]
    with open(path, "wb") as file:
        file.write("\n".join(header).encode("ascii"))
        points.tofile(file)
    return {"count": len(points), "says": says}
