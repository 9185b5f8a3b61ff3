"""The command `dff-jax prepare`: makes or converts a dataset, and exports stacks of it."""

from __future__ import annotations

from typing import Literal

from dff_jax.config import DataSpec
from dff_jax.data import datasets
from dff_jax.data.datasets.summary import describe
from dff_jax.data.export import export_stacks
from dff_jax.data.pipeline import open_data
from dff_jax.errors import InputError, printable


def prepare(
    name: str | None = None, *, list: bool = False, source: str | None = None, workers: int | None = None,
    data_dir: str | None = None, overwrite: bool = False, export: str | None = None,
    split: Literal["train", "validation", "test"] = "test", limit: int | None = None, unit: str | None = None,
    reverse: bool = False, max_size: int | None = None, align: str | None = None,
    focus_range: tuple[float, float] | None = None, frames: int | None = None, blur_per_q: float | None = None,
    noise: float | None = None, seed: int | None = None, scale: float | None = None, bgr: bool | None = None,
) -> None:  # fmt: skip
    """Makes a dataset, or converts the files of one: checks them all first, then writes records, an overview
    (overview.png) and statistics.

    Args:
      name: Name of the dataset, such as procedural/quickstart.
      list: List all names, with unit, frames and where to get them.
      source: Folder of the downloaded files, or of your own.
      workers: Processes that read; default one a core.
      data_dir: Folder in which tfds keeps its files; default ~/tensorflow_datasets.
      overwrite: Make it again even if it is there.
      export: Folder in which to write stacks as folders of PNG frames and disp.npy, too.
      split: Split to export.
      limit: Export only the first so many stacks.
      unit: stacks, rgbd: disparity, diopter, metre or index, of focus settings and truth; default as the files say.
      reverse: stacks: count the frame index from the end.
      max_size: stacks: shrink frames whose longer side exceeds this many pixels.
      align: stacks: align the frames; without a value by similarity, else translation, affine or homography.
      focus_range: rgbd, hci: lowest and highest focus setting, in the unit.
      frames: rgbd, hci: number of frames to make.
      blur_per_q: rgbd: blur radius, pixels per unit of focus.
      noise: rgbd: standard deviation of the noise, of full scale.
      seed: rgbd: seed of the noise.
      scale: rgbd: factor from stored values to depth.
      bgr: ddff12: the file has blue first (--bgr) or red (--no-bgr).
    """
    given = {
        "unit": unit, "reverse": reverse or None, "max_size": max_size, "align": align, "focus_range": focus_range,
        "frames": frames, "blur_per_q": blur_per_q, "noise": noise, "seed": seed, "scale": scale, "bgr": bgr,
    }  # fmt: skip
    if list:
        return print(datasets.describe_all())
    if name is None:
        raise InputError("prepare: give a name; dff-jax prepare --list shows them")
    if limit is not None and limit < 1:
        raise InputError(f"--limit: must be at least 1, got {limit}")
    if workers is not None and workers < 1:
        raise InputError(f"--workers: must be at least 1, got {workers}")
    options = {key: value for key, value in given.items() if value is not None}
    made = datasets.prepare(name, data_dir, source=source, overwrite=overwrite, workers=workers or 0, **options)
    print(describe(made))
    if export:
        stacks = open_data(DataSpec(dataset=name, split=split, data_dir=data_dir))
        for folder in export_stacks(stacks, export, limit):
            print(printable(folder))
        if stacks.unit != "disparity":  # as which a folder of stacks is read unless told otherwise
            print(f"note: settings and truth are in {stacks.unit}; read these folders with --unit {stacks.unit}")
