"""Stacks of a dataset as folders of images, laid out like FlyingThings3D's focal stacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dff_jax.data.parts import StackSource
from dff_jax.pictures.panels import to_uint8
from dff_jax.runtime.files import check_output, staged_output


def export_stacks(source: StackSource, output: str | Path, limit: int | None = None) -> list[Path]:
    """Writes `<output>/<number>/<focus>.png ...`, `disp.npy` (0 = no truth) and, where the dataset has one, `AiF.png`
    for the first `limit` stacks.

    File names carry the focus settings in the dataset's unit, so `evaluate --source` and `predict` read them back.

    Raises:
      InputError: an output folder that cannot be written.
    """
    output = Path(output)
    check_output(output)
    folders = []
    for index in range(len(source) if limit is None else min(limit, len(source))):
        stack = source[index]
        folder = output / f"{index:05d}"
        with staged_output(folder) as staging:
            for frame, focus in zip(to_uint8(stack.frames), stack.focus, strict=True):
                Image.fromarray(frame).save(staging / f"{np.float32(focus)!s}.png")
            if stack.all_in_focus is not None:
                Image.fromarray(to_uint8(stack.all_in_focus)).save(staging / "AiF.png")
            if stack.depth is not None:
                depth = stack.depth if stack.mask is None else np.where(stack.mask, stack.depth, 0)
                np.save(staging / "disp.npy", depth.astype(np.float32))
        folders.append(folder)
    return folders
