"""tfds dataset `flyingthings`: focal stacks rendered from FlyingThings3D, 1000 to train and 100 to test.

As distributed: `train/focal_stack/<id>/` and `val/focal_stack/<id>/` (val is the test set), each with 15 frames named
by their focus disparity (`16.428571428571427.png`), `AiF.png` and `disp.exr`. Some copies name the files of a stack in
a list instead, `<mode>/*_path.txt`: 17 paths a line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import StackBuilder, StackConfig
from dff_jax.data.datasets.frames import StackFiles, inventory
from dff_jax.data.datasets.labelled import labelled_stacks, read_path_list, settings_problems
from dff_jax.data.datasets.records import Facts, Inventory
from dff_jax.errors import InputError

SETTINGS = np.linspace(10.0, 100.0, 15).tolist()
MODES = {"train": ("train", 1000), "test": ("val", 100)}  # folder and number of stacks as published
LISTS = ("flyingthings3d_FS_path.txt", "focal_stack_path.txt")

FACTS = Facts(
    unit="disparity",
    focus_range=(10.0, 100.0),
    order="far to near",
    truth="disparity in pixels, dense, not limited to the focus range; none where it is 0 or below",
    licence="none stated",
    citation="N. Mayer et al., A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and Scene "
    "Flow Estimation, CVPR 2016; focal stacks: N.-H. Wang et al., Bridging Unsupervised and Supervised Depth from "
    "Focus via All-in-Focus Supervision, ICCV 2021",
    where="the Google Drive link in the readme of albert100121/AiFDepthNet or khurramashfaq/ddl-gru-sff",
    convention="flyingthings",
)


class FlyingThings(StackBuilder):
    """FlyingThings3D focal stacks: 15 frames of 540 x 960, focus settings 10 to 100 pixels of disparity."""

    name = "flyingthings"
    BUILDER_CONFIGS = [
        StackConfig(name="focal_stack", facts=FACTS, description="15 frames of 540 x 960; 1000 to train, 100 to test")
    ]

    def survey(self, source: Path) -> Inventory:
        splits: dict[str, list[StackFiles]] = {}
        problems, notes = [], []
        for split, (mode, published) in MODES.items():
            folder, lists = source / mode / "focal_stack", [source / mode / name for name in LISTS]
            path_list = next((path for path in lists if path.is_file()), None)
            if folder.is_dir():
                stacks, found = labelled_stacks(folder, split, FACTS.unit)
            elif path_list is not None:
                stacks, found = read_path_list(path_list, source, split, FACTS.unit)
            else:
                continue
            splits[split] = stacks
            problems += found
            if len(stacks) != published:
                notes.append(f"{mode}: {len(stacks)} stacks where {published} were published")
        if not splits:
            looked = "train/focal_stack/, val/focal_stack/ or a list <train|val>/" + " or ".join(LISTS)
            raise InputError(
                f"{source}: not FlyingThings3D's focal stacks; looked for {looked}; give "
                "the folder that holds train/ and val/"
            )
        notes += [f"no {MODES[s][0]}/ in {source}: no {s} split" for s in MODES if s not in splits]
        found, more = settings_problems(splits, SETTINGS)
        return inventory(splits, problems + found, notes + more)
