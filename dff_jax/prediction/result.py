"""What a prediction returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dff_jax.data.files.align import Aligned


class TilingReport(NamedTuple):
    """How an image was cut into tiles."""

    tile: tuple[int, int]  # H, W
    tiles: int
    memory: int  # bytes of the program with its inputs and outputs: of all devices on CPU, otherwise of each
    devices: int


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
    tiling: TilingReport
    aligned: Aligned | None = None  # with `align`: the frames used, their motions, where all of them see
    stages: Mapping[str, np.ndarray] = {}  # [H,W] in q: Dbar, D(0)..D(K), refined; none of large images
    unseen: np.ndarray | None = None  # [H,W] bool, where no frame has a pixel; None: nowhere
    deep: bool = False  # whether the frames have 16 bits
    profile: bytes = b""  # ICC profile of the frames
